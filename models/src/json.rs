//! Reads a `config.json` key by key, with messages that name the key.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use crate::Error;

/// No dim of a published model comes near this; larger ones are refused before they are multiplied.
const MAX_COUNT: usize = 1 << 20;

/// No published model is near this deep; each layer is nodes of a graph, so a file may not ask for
/// any number of them.
const MAX_LAYERS: usize = 256;

/// The keys of one `config.json` that have not been read yet.
pub(crate) struct Keys {
    model: &'static str,
    left: Map<String, Json>,
}

impl Keys {
    /// The keys of `config`, which must be an object.
    pub(crate) fn new(model: &'static str, config: &Json) -> Result<Keys, Error> {
        match config {
            Json::Object(map) => Ok(Keys { model, left: map.clone() }),
            _ => Err(Error::NotAConfig { model, reason: "expected a JSON object".into() }),
        }
    }

    /// The value of `key`, or `default` where it is absent.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T, Error> {
        match self.left.remove(key) {
            None => Ok(default),
            Some(value) => {
                serde_json::from_value(value).map_err(|error| self.wrong(key, error.to_string()))
            }
        }
    }

    /// A count: 1 to 2^20.
    pub(crate) fn count(&mut self, key: &str, default: usize) -> Result<usize, Error> {
        self.at_most(key, default, MAX_COUNT)
    }

    /// A number of layers: 1 to 256.
    pub(crate) fn layers(&mut self, key: &str, default: usize) -> Result<usize, Error> {
        self.at_most(key, default, MAX_LAYERS)
    }

    fn at_most(&mut self, key: &str, default: usize, limit: usize) -> Result<usize, Error> {
        match self.take(key, default)? {
            count if (1..=limit).contains(&count) => Ok(count),
            found => Err(self.wrong(key, format!("expected 1 to {limit}, found {found}"))),
        }
    }

    /// A number above 0 and at most 2^20.
    pub(crate) fn positive(&mut self, key: &str, default: f64) -> Result<f64, Error> {
        match self.take(key, default)? {
            number if number > 0.0 && number <= MAX_COUNT as f64 => Ok(number),
            found => {
                let reason = format!("expected a number above 0, up to {MAX_COUNT}, found {found}");
                Err(self.wrong(key, reason))
            }
        }
    }

    /// A key whose only supported value is `expected`.
    pub(crate) fn fixed(&mut self, key: &str, expected: &str) -> Result<(), Error> {
        let found: String = self.take(key, expected.to_string())?;
        if found == expected {
            return Ok(());
        }
        Err(self.wrong(key, format!("expected `{expected}`, found `{found}`")))
    }

    /// A list of `count` entries whose only supported value is `expected`.
    pub(crate) fn all(&mut self, key: &str, expected: &str, count: usize) -> Result<(), Error> {
        let found: Vec<String> = self.take(key, vec![expected.to_string(); count])?;
        if found.len() == count && found.iter().all(|entry| entry == expected) {
            return Ok(());
        }
        Err(self.wrong(key, format!("expected {count} times `{expected}`, found {found:?}")))
    }

    /// An error about `key`.
    pub(crate) fn wrong(&self, key: &str, reason: String) -> Error {
        Error::Key { model: self.model, key: key.to_string(), reason }
    }

    /// Fails if a key is left that is neither `inert` nor private to the writer (`_`).
    pub(crate) fn end(self, inert: &[&str]) -> Result<(), Error> {
        match self.left.keys().find(|key| !key.starts_with('_') && !inert.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(self.wrong(key, "is not known; remove it if it has no effect".into())),
        }
    }
}
