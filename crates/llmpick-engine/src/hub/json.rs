//! Settings out of the folder's JSON files, typed, with errors that name file and key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::LoadErrorKind;

/// A JSON object, and the name of the file it is in.
#[derive(Clone)]
pub(super) struct Json {
    file: &'static str,
    map: Map<String, Value>,
}

impl Json {
    /// Reads `file` of `folder`; `None` where there is none.
    pub fn read(folder: &Path, file: &'static str) -> Result<Option<Json>, LoadErrorKind> {
        let Some(bytes) = super::map(folder, file)? else {
            return Ok(None);
        };
        let map = parse(file, super::text(file, &bytes)?)?;
        Ok(Some(Json { file, map }))
    }

    /// An empty one, for a file that need not be there.
    pub fn none(file: &'static str) -> Json {
        let map = Map::new();
        Json { file, map }
    }

    /// What stands under a key; `null` is nothing.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// True where the key is there, be it `null`.
    pub fn names(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The object under a key.
    pub fn object(&self, key: &str) -> Result<Option<Json>, LoadErrorKind> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Json {
                file: self.file,
                map: map.clone(),
            })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, LoadErrorKind> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, LoadErrorKind> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A number of things, 1 to 2²⁴.
    pub fn count(&self, key: &str) -> Result<Option<usize>, LoadErrorKind> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(n @ 1..=0x100_0000) => Ok(Some(n as usize)),
            _ => Err(self.wrong(key, "a whole number from 1 to 16,777,216")),
        }
    }

    pub fn required_count(&self, key: &str) -> Result<usize, LoadErrorKind> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, LoadErrorKind> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, "a number")),
            },
        }
    }

    pub fn required_float(&self, key: &str) -> Result<f64, LoadErrorKind> {
        self.float(key)?.ok_or_else(|| self.missing(key))
    }

    pub fn list(&self, key: &str) -> Result<Option<&[Value]>, LoadErrorKind> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, "a list")),
        }
    }

    /// A list of numbers, as 32-bit fractions.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, LoadErrorKind> {
        let Some(list) = self.list(key)? else {
            return Ok(None);
        };
        list.iter()
            .map(|value| value.as_f64().map(|number| number as f32))
            .collect::<Option<_>>()
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a list of numbers"))
    }

    pub fn missing(&self, key: &str) -> LoadErrorKind {
        LoadErrorKind::Malformed(format!("`{}` has no `{key}`", self.file))
    }

    pub fn wrong(&self, key: &str, expected: &str) -> LoadErrorKind {
        LoadErrorKind::Malformed(format!("`{key}` in `{}` is not {expected}", self.file))
    }
}

/// Reads a value of a known form. Its nesting is bounded by the library.
pub(super) fn parse<'a, T: serde::Deserialize<'a>>(
    file: &str,
    text: &'a str,
) -> Result<T, LoadErrorKind> {
    serde_json::from_str(text)
        .map_err(|error| LoadErrorKind::Malformed(format!("`{file}` cannot be read ({error})")))
}
