//! Caches of this machine, as Linux tells them.

use std::fs;
use std::path::Path;

/// Level 1, level 2 and last-level data caches in bytes where the system does not tell.
const USUAL_CACHES: [usize; 3] = [32 << 10, 1 << 20, 16 << 20];

/// Most bytes of the last-level cache that are counted on: a virtual machine is told of all that its socket has, and
/// shares it with others.
const MAX_LAST_LEVEL: usize = 32 << 20;

/// Bytes of data caches: level 1 and 2 of a core, and what may be counted on of the last level.
pub fn caches() -> [usize; 3] {
    let mut caches = USUAL_CACHES;
    for index in 0..8 {
        let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name: &str| fs::read_to_string(Path::new(&folder).join(name)).ok();
        let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size"))
        else {
            continue;
        };
        let level = level.trim().parse::<usize>().ok().filter(|level| (1..=3).contains(level));
        if let (Some(level), Some(size), false) =
            (level, cache_size(&size), kind.trim() == "Instruction")
        {
            caches[level - 1] = size;
        }
    }
    caches[2] = caches[2].min(MAX_LAST_LEVEL);
    caches
}

/// `48K` in bytes.
fn cache_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => (text.strip_suffix('M')?, 1 << 20),
    };
    number.parse::<usize>().ok()?.checked_mul(unit).filter(|&size| size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_sizes_have_units() {
        assert_eq!(cache_size("48K\n"), Some(48 << 10));
        assert_eq!(cache_size("32M"), Some(32 << 20));
        for bad in ["", "K", "48", "0K", "99999999999999999999K"] {
            assert_eq!(cache_size(bad), None, "{bad:?}");
        }
    }
}
