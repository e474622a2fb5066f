//! Parquet files as records of text, which [`Table`](crate::Table) reads as it reads those of CSV.

use std::fs::File;

use csv::StringRecord;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};

/// The names of a file's columns, and its rows.
pub(crate) fn records(
    file: File,
) -> Result<(StringRecord, impl Iterator<Item = Result<StringRecord, String>>), String> {
    let describe = |error: ParquetError| format!("not a sound Parquet file: {error}");
    let reader = SerializedFileReader::new(file).map_err(describe)?;
    let schema = reader.metadata().file_metadata().schema();
    let names = schema.get_fields().iter().map(|field| field.name()).collect();
    Ok((names, reader.into_iter().map(move |row| row.map(|row| record(&row)).map_err(describe))))
}

fn record(row: &Row) -> StringRecord {
    let cell = |(_, field): (&String, &Field)| match field {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    };
    row.get_column_iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use crate::Table;

    #[test]
    fn a_parquet_file_is_a_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let schema = "message m { REQUIRED BYTE_ARRAY text (UTF8); REQUIRED BYTE_ARRAY path (UTF8); \
                      REQUIRED INT64 num_frames; OPTIONAL DOUBLE fps; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = std::fs::File::create(&path).unwrap();
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for texts in [["a, \"b\"", "c"], ["x.mp4", "y.mp4"]] {
            let mut column = group.next_column().unwrap().unwrap();
            let values = texts.map(ByteArray::from);
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[16, 1], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&[29.97], Some(&[1, 0]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();

        let table = Table::read(&path, Some(Path::new("root"))).unwrap();
        let [first, second] = table.rows() else { panic!("{table:?}") };
        assert_eq!((first.text.as_str(), first.num_frames), ("a, \"b\"", Some(16)));
        assert_eq!((first.fps, second.fps, second.height), (Some(29.97), None, None));
        assert_eq!((second.path.as_path(), second.line), (Path::new("root/y.mp4"), 2));

        let bytes = std::fs::read(&path).unwrap();
        for end in [0, 4, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..end]).unwrap();
            let error = Table::read(&path, None).unwrap_err().to_string();
            assert!(error.contains("not a sound Parquet file"), "{error}");
        }
    }
}
