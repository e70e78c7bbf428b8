//! How numbers and words go into SQLite and come back.

use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};

/// SQLite has no NaN (it stores NULL): unknown numbers are NULL on purpose.
pub(crate) fn real(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// The number of a column that may be NULL: NaN then.
pub(crate) fn nan(row: &Row<'_>, column: &str) -> rusqlite::Result<f64> {
    Ok(row.get::<_, Option<f64>>(column)?.unwrap_or(f64::NAN))
}

/// All 64 bits of an unsigned number, kept in SQLite's signed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bits(pub(crate) u64);

impl ToSql for Bits {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok((self.0 as i64).into())
    }
}

impl FromSql for Bits {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(|bits| Self(bits as u64))
    }
}

/// A serde word such as `any_win`, kept as plain text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word<T>(pub(crate) T);

impl<T: serde::Serialize> ToSql for Word<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match serde_json::to_value(&self.0) {
            Ok(serde_json::Value::String(word)) => Ok(word.into()),
            _ => Err(rusqlite::Error::ToSqlConversionFailure(
                "not a plain word".into(),
            )),
        }
    }
}

impl<T: serde::de::DeserializeOwned> FromSql for Word<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let word = serde_json::Value::String(value.as_str()?.to_owned());
        serde_json::from_value(word)
            .map(Self)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// Features as 32-bit floats, little-endian; none at all are NULL.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Floats(pub(crate) Vec<f32>);

impl ToSql for Floats {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(match bytes.is_empty() {
            true => rusqlite::types::Null.into(),
            false => bytes.into(),
        })
    }
}

impl FromSql for Floats {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let Some(bytes) = value.as_blob_or_null()? else {
            return Ok(Self(Vec::new()));
        };
        let (floats, rest) = bytes.as_chunks::<4>();
        match rest.is_empty() {
            true => Ok(Self(
                floats.iter().map(|x| f32::from_le_bytes(*x)).collect(),
            )),
            false => Err(FromSqlError::InvalidType),
        }
    }
}

/// Anything serde knows, kept as JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: serde::Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        serde_json::to_string(&self.0)
            .map(Into::into)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    }
}

impl<T: serde::de::DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?)
            .map(Self)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}
