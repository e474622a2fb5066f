//! Tables of samples: CSV with named columns, or the two to six nameless columns of Open-Sora 1.0.
//!
//! Columns that are not known are passed over. A cell that cannot be is refused with its line and column;
//! a cell that is empty, or `nan`, is one that nobody filled in.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use csv::{ReaderBuilder, StringRecord};

use crate::{Error, Result};

/// Most rows: what an epoch can shuffle.
const MAX_ROWS: usize = crate::TorchRandom::MAX_PERMUTED;

/// Largest count of frames, height or width.
const MAX_SIDE: f64 = 16_777_216.0;

/// The columns that are read, in the order that 1.0 has them.
const COLUMNS: [&str; 6] = ["path", "text", "num_frames", "height", "width", "fps"];

/// One sample of a table.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// The image, video or folder of frames, below the table's root.
    pub path: PathBuf,
    /// The caption.
    pub text: String,
    /// Count of frames, 1 for images and 0 for files that could not be read.
    pub num_frames: Option<usize>,
    /// Rows of pixels.
    pub height: Option<usize>,
    /// Pixels in a row.
    pub width: Option<usize>,
    /// Frames per second.
    pub fps: Option<f64>,
    /// Line of the table's file, from 1.
    pub line: u64,
}

/// What decides a sample's bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VideoSize {
    /// Count of frames; 1 is an image.
    pub num_frames: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
}

/// The rows of a table, at least one.
#[derive(Clone, Debug)]
pub struct Table {
    path: PathBuf,
    rows: Vec<Row>,
}

impl Table {
    /// Reads a CSV file, or with the feature `parquet` a Parquet file; paths of samples are below `root` where
    /// one is given, else as they stand.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Table`], [`Error::Cell`].
    pub fn read(path: &Path, root: Option<&Path>) -> Result<Table> {
        let is = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
        let file = File::open(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            action: "open the table",
            source,
        })?;
        if is("parquet") { read_parquet(file, path, root) } else { Table::parse(file, path, root) }
    }

    /// As [`Table::read`], from any source; `path` is its name in messages.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn parse(csv: impl Read, path: &Path, root: Option<&Path>) -> Result<Table> {
        let fail = |reason: String| Error::Table { path: path.to_owned(), reason };
        let mut reader = ReaderBuilder::new().has_headers(false).from_reader(csv);
        let mut records = reader.records().map(|record| -> Result<(StringRecord, u64)> {
            let record = record.map_err(|error| fail(error.to_string()))?;
            let line = record.position().map_or(0, csv::Position::line);
            Ok((record, line))
        });
        let Some(first) = records.next().transpose()? else { return Table::new(path, Vec::new()) };
        let (columns, is_header) = Columns::of(&first.0).map_err(fail)?;
        let first = (!is_header).then_some(Ok(first));
        columns.rows(first.into_iter().chain(records), path, root)
    }

    fn new(path: &Path, rows: Vec<Row>) -> Result<Table> {
        let path = path.to_owned();
        if rows.is_empty() {
            let reason = "has no rows; expected one for each sample".into();
            return Err(Error::Table { path, reason });
        }
        Ok(Table { path, rows })
    }

    /// The table's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every row, in the table's order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The size of every row, which buckets need.
    ///
    /// # Errors
    /// [`Error::Table`] with the line and the column that is empty or missing.
    pub fn sizes(&self) -> Result<Vec<VideoSize>> {
        let of_row = |row: &Row| {
            let need = |value: Option<usize>, column: &str| {
                value.ok_or_else(|| Error::Table {
                    path: self.path.clone(),
                    reason: format!(
                        "line {} has no `{column}`, which buckets need; columns are {}",
                        row.line,
                        COLUMNS.join(", ")
                    ),
                })
            };
            Ok(VideoSize {
                num_frames: need(row.num_frames, "num_frames")?,
                height: need(row.height, "height")?,
                width: need(row.width, "width")?,
            })
        };
        self.rows.iter().map(of_row).collect()
    }
}

/// Reads a Parquet file; lines count its rows from 1.
#[cfg(feature = "parquet")]
fn read_parquet(file: File, path: &Path, root: Option<&Path>) -> Result<Table> {
    let fail = |reason: String| Error::Table { path: path.to_owned(), reason };
    let (names, records) = crate::parquet_file::records(file).map_err(fail)?;
    let (columns, is_header) = Columns::of(&names).map_err(fail)?;
    if !is_header {
        return Err(fail(format!("has none of the columns {}", COLUMNS.join(", "))));
    }
    let numbered = records.zip(1..).map(|(record, line)| Ok((record.map_err(fail)?, line)));
    columns.rows(numbered, path, root)
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(_: File, path: &Path, _: Option<&Path>) -> Result<Table> {
    let reason = "is Parquet, which this build does not read; build with --features parquet, or write it \
                  as CSV, in Python: pandas.read_parquet(p).to_csv(q, index=False)";
    Err(Error::Table { path: path.to_owned(), reason: reason.into() })
}

/// Where each of [`COLUMNS`] is.
struct Columns([Option<usize>; COLUMNS.len()]);

impl Columns {
    /// What the first record says, and whether it is a header.
    fn of(first: &StringRecord) -> std::result::Result<(Columns, bool), String> {
        let names: Vec<&str> = first.iter().map(str::trim).collect();
        // A byte order mark is no part of the first name.
        let names: Vec<&str> =
            names.iter().map(|name| name.trim_start_matches('\u{feff}')).collect();
        let named = COLUMNS.map(|column| names.iter().position(|name| *name == column));
        if named.iter().any(Option::is_some) {
            for (column, place) in COLUMNS.iter().zip(named).take(2) {
                if place.is_none() {
                    return Err(format!(
                        "has no column `{column}`; its columns are {}",
                        names.join(", ")
                    ));
                }
            }
            return Ok((Columns(named), true));
        }
        // Without names: path and caption, then what 1.0 may have.
        if names.len() < 2 || names.len() > COLUMNS.len() {
            return Err(format!(
                "its first line has {} columns and names none of {}; expected a header, or path and \
                 caption without one",
                names.len(),
                COLUMNS.join(", ")
            ));
        }
        let places = std::array::from_fn(|column| (column < names.len()).then_some(column));
        Ok((Columns(places), false))
    }

    /// A table of records, each with its line.
    fn rows(
        &self,
        records: impl Iterator<Item = Result<(StringRecord, u64)>>,
        path: &Path,
        root: Option<&Path>,
    ) -> Result<Table> {
        let mut rows = Vec::new();
        for record in records {
            let (record, line) = record?;
            if rows.len() == MAX_ROWS {
                let reason = format!("has more than {MAX_ROWS} rows; split it");
                return Err(Error::Table { path: path.to_owned(), reason });
            }
            rows.push(self.row(&record, line, path, root)?);
        }
        Table::new(path, rows)
    }

    fn row(
        &self,
        record: &StringRecord,
        line: u64,
        path: &Path,
        root: Option<&Path>,
    ) -> Result<Row> {
        let cell = |column: usize| self.0[column].and_then(|place| record.get(place));
        let wrong = |column: usize, expected: &'static str| Error::Cell {
            path: path.to_owned(),
            line,
            column: COLUMNS[column],
            expected,
            found: cell(column).unwrap_or_default().chars().take(80).collect(),
        };
        let number = |column: usize, expected: &'static str| match cell(column).map(str::trim) {
            None | Some("") => Ok(None),
            Some(text) => match text.parse::<f64>() {
                Ok(value) if value.is_nan() => Ok(None),
                Ok(value) if (0.0..=MAX_SIDE).contains(&value) => Ok(Some(value)),
                _ => Err(wrong(column, expected)),
            },
        };
        let count = |column: usize| {
            let expected = "a whole number from 0 to 16777216";
            match number(column, expected)? {
                // Tables that went through pandas have `16.0`.
                Some(value) if value.fract() == 0.0 => Ok(Some(value as usize)),
                Some(_) => Err(wrong(column, expected)),
                None => Ok(None),
            }
        };
        let relative = cell(0).unwrap_or_default();
        if relative.is_empty() {
            return Err(wrong(0, "the path of a file"));
        }
        Ok(Row {
            path: root.map_or_else(|| PathBuf::from(relative), |root| root.join(relative)),
            text: cell(1).unwrap_or_default().to_owned(),
            num_frames: count(2)?,
            height: count(3)?,
            width: count(4)?,
            fps: number(5, "frames per second")?.filter(|&fps| fps > 0.0),
            line,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(csv: &str) -> Result<Table> {
        Table::parse(csv.as_bytes(), Path::new("t.csv"), Some(Path::new("root")))
    }

    #[test]
    fn columns_are_found_by_name() {
        let csv = "width,path,aes,text,height,num_frames,fps\n\
                   640,a/b.mp4,5.5,\"a \"\"b\"\", c\",360.0,52,nan\n\
                   1,/c.png,,d,2,1,120\n";
        let table = parse(csv).unwrap();
        let size = VideoSize { num_frames: 52, height: 360, width: 640 };
        assert_eq!(table.sizes().unwrap()[0], size);
        let [first, second] = table.rows() else { panic!("{table:?}") };
        assert_eq!(first.path, Path::new("root/a/b.mp4"));
        assert_eq!((first.text.as_str(), first.fps, first.line), ("a \"b\", c", None, 2));
        assert_eq!((second.path.as_path(), second.fps), (Path::new("/c.png"), Some(120.0)));
    }

    #[test]
    fn a_table_of_1_0_has_no_header() {
        let table = parse("a.mp4,a cat\nb.mp4,\"a dog, running\"\n").unwrap();
        assert_eq!(table.rows()[1].text, "a dog, running");
        let error = table.sizes().unwrap_err().to_string();
        assert_eq!(
            error,
            "t.csv: line 1 has no `num_frames`, which buckets need; columns are path, text, \
             num_frames, height, width, fps"
        );
        assert_eq!(parse("a.mp4,a cat,16\n").unwrap().rows()[0].num_frames, Some(16));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        for (csv, expected) in [
            ("", "t.csv: has no rows"),
            ("path,text\n", "has no rows"),
            ("path,caption\na,b\n", "has no column `text`; its columns are path, caption"),
            ("id\n1\n", "its first line has 1 columns"),
            (
                "path,text,num_frames\na,b,1.5\n",
                "line 2, column `num_frames`: expected a whole number",
            ),
            ("path,text,height\na,b,1\nc,d,-2\n", "line 3, column `height`"),
            ("path,text,width\na,b,99999999\n", "found `99999999`"),
            ("path,text,fps\na,b,fast\n", "column `fps`: expected frames per second, found `fast`"),
            ("path,text\n,b\n", "line 2, column `path`: expected the path of a file"),
            ("path,text\na,b,c\n", "found record with 3 fields"),
        ] {
            let error = parse(csv).unwrap_err().to_string();
            assert!(error.contains(expected), "{csv:?}: {error}");
        }
        let error =
            Table::parse(&b"path,text\na,\xff\n"[..], Path::new("t.csv"), None).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }

    #[test]
    fn an_endless_line_of_quotes_ends() {
        let error = parse(&format!("path,text\n\"{}", "x\n".repeat(10_000))).unwrap_err();
        assert!(error.to_string().contains("t.csv"), "{error}");
    }
}
