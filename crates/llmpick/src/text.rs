//! Reading text that a person or a pipe hands in.

use std::io::{IsTerminal, Read};
use std::path::Path;

use crate::error::{CliError, ExitCode, Result};

/// True when a person sits at stdin.
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// All of stdin, which must be UTF-8.
pub fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|error| CliError::new(ExitCode::Failed, format!("read stdin: {error}")))?;
    utf8(bytes, "stdin")
}

/// All of a file, which must be UTF-8.
pub fn read_file(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| {
        CliError::new(ExitCode::Usage, format!("read {}: {error}", path.display()))
    })?;
    utf8(bytes, &path.display().to_string())
}

fn utf8(bytes: Vec<u8>, what: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        CliError::new(
            ExitCode::Usage,
            format!("{what} is not UTF-8 text: byte {at} begins no character"),
        )
        .hint("convert it first, for example with iconv -f latin1 -t utf-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_named() {
        let error = utf8(b"caf\xe9".to_vec(), "stdin").expect_err("latin-1");
        assert_eq!(error.code, ExitCode::Usage);
        assert!(error.message.contains("byte 3"), "{error}");
    }
}
