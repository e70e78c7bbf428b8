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

/// Numbers with commas or spaces between, JSON's brackets around them or not; `@FILE` reads them
/// from a file.
pub fn numbers(list: &str) -> Result<Vec<f32>> {
    let text = match list.strip_prefix('@') {
        Some(path) => read_file(Path::new(path))?,
        None => list.to_owned(),
    };
    let inside = text.trim().trim_start_matches('[').trim_end_matches(']');
    let between = |c: char| c == ',' || c.is_whitespace();
    let words = inside.split(between).filter(|word| !word.is_empty());
    let read = |word: &str| {
        let number: Option<f32> = word.parse().ok();
        number.filter(|number| number.is_finite()).ok_or_else(|| {
            let word: String = word.chars().take(40).collect();
            CliError::new(ExitCode::Usage, format!("`{word}` is not a finite number"))
                .hint("--features \"0.1,-2\" or --features @FILE")
        })
    };
    words.map(read).collect()
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
    fn numbers_are_read_with_commas_spaces_and_brackets() {
        let read = |text| numbers(text).ok();
        assert_eq!(read("0.1,-2"), Some(vec![0.1, -2.0]));
        assert_eq!(read("[1, 2.5,\n3e-2]"), Some(vec![1.0, 2.5, 0.03]));
        assert_eq!(read(""), Some(vec![]));
        for bad in ["1,two", "nan", "1e300", "@/no/such/file"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_named() {
        let error = utf8(b"caf\xe9".to_vec(), "stdin").expect_err("latin-1");
        assert_eq!(error.code, ExitCode::Usage);
        assert!(error.message.contains("byte 3"), "{error}");
    }
}
