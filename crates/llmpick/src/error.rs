//! What a person reads when something failed: a sentence, its causes, a hint; and the exit code.

use std::error::Error;
use std::fmt;

/// Stable numbers for scripts; the help lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Something failed that has no number of its own.
    Failed = 1,
    /// The command was typed wrongly.
    Usage = 2,
    /// A model is unknown or not here.
    ModelMissing = 3,
    /// A download failed.
    Download = 4,
    /// A model file cannot be used.
    ModelFile = 5,
    /// The request was refused: too long, invalid.
    Request = 6,
    /// A plugin cannot be used.
    Plugin = 7,
    /// The ledger cannot be used.
    Ledger = 8,
    /// The settings are wrong.
    Settings = 9,
    /// A remote provider failed.
    Provider = 10,
    /// A task succeeded, and some part of it was not answered.
    PartFailed = 11,
    /// The person stopped it.
    Interrupted = 130,
}

/// A failure on its way to the person.
#[derive(Debug)]
pub struct CliError {
    /// The exit code.
    pub code: ExitCode,
    /// What failed, and why, most outer first.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What verbs return.
pub type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    /// An error with its own sentence.
    pub fn new(code: ExitCode, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
            hint: None,
        }
    }

    /// An error and all its causes in one line.
    pub fn from_error(code: ExitCode, error: &(dyn Error + 'static)) -> Self {
        Self::new(code, chain(error))
    }

    /// The same with a hint.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

/// An error and its causes, outermost first, each cause said once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl Error for CliError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("load the model")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_is_told_with_its_causes_and_hint() {
        let outer = Outer(std::io::Error::other("the file ends early"));
        let error = CliError::from_error(ExitCode::ModelFile, &outer).hint("pull it again");
        assert_eq!(
            error.to_string(),
            "error: load the model: the file ends early\n hint: pull it again"
        );
    }
}
