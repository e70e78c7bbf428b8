//! A text that is never printed.

use std::fmt;
use std::sync::Arc;

/// An API key. Neither `Debug` nor anything else prints it; [`expose`](Self::expose) is
/// the one way to it, so that its uses can be searched for.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a key.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text.as_ref().into())
    }

    /// The key itself, for the header it belongs into.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// True if `given` is this key. Takes the same time wherever they differ.
    pub fn matches(&self, given: &str) -> bool {
        let (own, given) = (self.0.as_bytes(), given.as_bytes());
        let differences = own
            .iter()
            .zip(given.iter().chain(std::iter::repeat(&0)))
            .fold(0u8, |all, (a, b)| all | (a ^ b));
        differences == 0 && own.len() == given.len()
    }

    /// `text` with every occurrence of the key blotted out.
    pub fn blot(&self, text: &str) -> String {
        match self.0.len() {
            0 => text.to_owned(),
            _ => text.replace(&*self.0, "[key]"),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_compared_but_never_printed() {
        let secret = Secret::new("sk-123");
        assert_eq!(format!("{secret:?}"), "Secret");
        assert!(secret.matches("sk-123"));
        for wrong in ["", "sk-12", "sk-1234", "sk-124"] {
            assert!(!secret.matches(wrong), "{wrong}");
        }
        assert_eq!(secret.blot("bad key sk-123!"), "bad key [key]!");
    }
}
