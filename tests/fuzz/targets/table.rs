//! Tables of samples: rows or a message, and every row has a path.

#![no_main]

use std::path::Path;

use data::Table;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|csv: &[u8]| {
    let Ok(table) = Table::parse(csv, Path::new("table.csv"), Some(Path::new("root"))) else {
        return;
    };
    assert!(!table.rows().is_empty());
    assert!(table.rows().iter().all(|row| !row.path.as_os_str().is_empty()));
    if let Ok(sizes) = table.sizes() {
        assert_eq!(sizes.len(), table.rows().len());
    }
});
