//! Numbers in a snapshot that come back bit for bit.
//!
//! A JSON parser may be one unit in the last place off when it reads a float, and knows no
//! infinity. The standard library's own `Display` and `FromStr` are exact, so numbers
//! travel as text, which also stays readable.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// Writes the shortest text that reads back as the same number.
pub(crate) fn serialize<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(x)
}

/// Reads it back.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    text.parse()
        .map_err(|_| D::Error::custom(format_args!("`{text}` is not a number")))
}
