//! What a file says about its making: an ordered list of (key, text), stored in every format.
//!
//! Invariant: a [`Metadata`] that exists can be stored in every format and comes back equal. Keys are
//! lowercase words, texts hold no NUL, and the whole stays below [`MAX_BYTES`].

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Fault;
use crate::{Error, Result};

/// Most bytes that keys and texts may have together, for writing and for reading.
pub const MAX_BYTES: usize = 1 << 20;

/// Longest key, in bytes; PNG allows 79.
const MAX_KEY_BYTES: usize = 32;

/// Most entries.
const MAX_ENTRIES: usize = 256;

/// Ordered `(key, text)` entries with distinct keys.
///
/// The keys that `kino sample` writes are `prompt`, `seed`, `settings` (JSON) and `version`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    entries: Vec<(String, String)>,
}

impl Metadata {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] when the key is not 1 to 32 characters of `a-z 0-9 _`, is there already, the
    /// text holds a NUL, or the whole passes [`MAX_BYTES`] or 256 entries.
    pub fn push(&mut self, key: &str, text: &str) -> Result<()> {
        let refuse = |reason: String| Err(Error::BadMetadata { key: key.into(), reason });
        if !is_key(key) {
            return refuse(format!(
                "is not a key: expected 1 to {MAX_KEY_BYTES} characters of a-z, 0-9 and _"
            ));
        }
        if self.get(key).is_some() {
            return refuse("is there twice: remove one".into());
        }
        if text.contains('\0') {
            return refuse("holds a NUL character, which no format can store: remove it".into());
        }
        let bytes = self.bytes() + key.len() + text.len();
        if bytes > MAX_BYTES {
            return refuse(format!(
                "makes the metadata {bytes} bytes long, the limit is {MAX_BYTES}: shorten it"
            ));
        }
        if self.entries.len() == MAX_ENTRIES {
            return refuse(format!(
                "is one entry more than the limit of {MAX_ENTRIES}: remove one"
            ));
        }
        self.entries.push((key.into(), text.into()));
        Ok(())
    }

    /// The text of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, text)| text)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(key, text)| (key.as_str(), text.as_str()))
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn bytes(&self) -> usize {
        self.iter().map(|(key, text)| key.len() + text.len()).sum()
    }

    /// [`Metadata::push`] for entries that come from a file.
    pub(crate) fn push_read(&mut self, key: &str, text: &str) -> std::result::Result<(), Fault> {
        self.push(key, text).map_err(|error| Fault::Malformed(error.to_string()))
    }

    /// One line of JSON, an object of strings, in ASCII: GIF comments are 7-bit.
    pub(crate) fn to_ascii_json(&self) -> String {
        let json = serde_json::to_string(self).expect("an object of strings is always JSON");
        let mut ascii = String::with_capacity(json.len());
        for c in json.chars() {
            if c.is_ascii() {
                ascii.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    ascii.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        ascii
    }

    /// Several lines of JSON for people to read.
    pub(crate) fn to_pretty_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("an object of strings is always JSON");
        json + "\n"
    }

    /// The inverse of both.
    pub(crate) fn from_json(json: &[u8]) -> std::result::Result<Self, Fault> {
        serde_json::from_slice(json).map_err(|error| {
            Fault::Malformed(format!("metadata is not an object of strings: {error}"))
        })
    }
}

/// Whether `key` may be a metadata key.
pub(crate) fn is_key(key: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Most bytes that [`Metadata`] can take as JSON: each byte of text becomes at most six.
pub(crate) const MAX_JSON_BYTES: usize = MAX_BYTES * 6 + MAX_ENTRIES * 16;

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for (key, text) in self.iter() {
            map.serialize_entry(key, text)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Metadata, A::Error> {
                let mut metadata = Metadata::new();
                while let Some((key, text)) = map.next_entry::<String, String>()? {
                    metadata.push(&key, &text).map_err(serde::de::Error::custom)?;
                }
                Ok(metadata)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_order_and_every_character() {
        let mut metadata = Metadata::new();
        metadata.push("zeta", "\u{1f9df} läuft\n\"\\</x>&\u{1}").unwrap();
        metadata.push("alpha", "").unwrap();
        let ascii = metadata.to_ascii_json();
        assert!(ascii.is_ascii());
        assert_eq!(Metadata::from_json(ascii.as_bytes()).unwrap(), metadata);
        assert_eq!(Metadata::from_json(metadata.to_pretty_json().as_bytes()).unwrap(), metadata);
    }

    #[test]
    fn refuses_what_some_format_cannot_store() {
        let mut metadata = Metadata::new();
        metadata.push("seed", "1").unwrap();
        for (key, text) in [("seed", "2"), ("", "x"), ("Prompt", "x"), ("a b", "x"), ("a", "x\0y")]
        {
            assert!(metadata.push(key, text).is_err(), "{key:?}");
        }
        assert!(metadata.push("long", &"x".repeat(MAX_BYTES)).is_err());
        assert_eq!(metadata.iter().collect::<Vec<_>>(), [("seed", "1")]);
    }

    #[test]
    fn json_reader_rejects_other_shapes() {
        for json in
            ["", "[]", "{\"a\":1}", "{\"a\":\"x\",\"a\":\"y\"}", "{\"a\":\"x\"} x", "{\"A\":\"\"}"]
        {
            assert!(Metadata::from_json(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn escaped_json_stays_below_its_bound() {
        let mut metadata = Metadata::new();
        metadata.push("a", &"\u{1}".repeat(MAX_BYTES - 1)).unwrap();
        assert!(metadata.to_ascii_json().len() <= MAX_JSON_BYTES);
    }
}
