//! Names of things, as types, so that an arm is never mistaken for a route.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The stable name of an arm, for example `qwen2.5-coder-0.5b-instruct` or `groq/llama-3.1-8b`.
///
/// Learnt state is keyed by it, so it must survive restarts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArmId(Arc<str>);

/// The context under which statistics are kept: a task tag, a session, a tenant. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContextKey(pub String);

/// The number of one routed request in the ledger, shown as `r17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RouteId(pub u64);

/// A text that cannot be the id it was given as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidId {
    /// What was given.
    pub text: String,
    /// What would have been right, completing "is not …".
    pub expected: &'static str,
}

impl ArmId {
    /// Checks and wraps a name: 1 to 200 printable characters without spaces.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
        let text = text.as_ref();
        let printable = text.chars().all(|c| !c.is_whitespace() && !c.is_control());
        if text.is_empty() || text.len() > 200 || !printable {
            return Err(InvalidId {
                text: text.chars().take(80).collect(),
                expected: "a model name (1 to 200 printable characters without spaces)",
            });
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ArmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for ArmId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl From<ArmId> for String {
    fn from(id: ArmId) -> String {
        id.0.to_string()
    }
}

impl fmt::Display for ContextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("r{}", self.0))
    }
}

impl FromStr for RouteId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId {
            text: text.to_owned(),
            expected: "a route id such as r17",
        };
        let digits = text.strip_prefix('r').unwrap_or(text);
        digits.parse().map(RouteId).map_err(|_| invalid())
    }
}

impl TryFrom<String> for RouteId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<RouteId> for String {
    fn from(id: RouteId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_id_reads_back_what_it_prints() {
        assert_eq!("r17".parse(), Ok(RouteId(17)));
        assert_eq!(RouteId(17).to_string(), "r17");
        assert!("seventeen".parse::<RouteId>().is_err());
    }

    #[test]
    fn an_arm_needs_a_printable_name() {
        assert!(ArmId::new("groq/llama-3.1:8b").is_ok());
        for bad in ["", "two words", "line\nbreak"] {
            assert!(ArmId::new(bad).is_err(), "{bad:?}");
        }
    }
}
