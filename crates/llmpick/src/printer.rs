//! The only place that prints: text or JSON to stdout, notes to stderr, tables.

use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::{CliError, ExitCode, Result};

/// Where a verb's output goes, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    json: bool,
}

impl Printer {
    /// `json` prints one JSON document instead of text.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// True when only JSON may reach stdout.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// True when a person looks at stdout.
    pub fn is_terminal(self) -> bool {
        !self.json && std::io::stdout().is_terminal()
    }

    /// Prints `value` as one line of JSON, or the text that `text` makes.
    pub fn value<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        if self.json {
            self.json_line(value)
        } else {
            self.line(&text())
        }
    }

    /// One line of JSON, whatever the form asked for.
    pub fn json_line<T: Serialize>(self, value: &T) -> Result<()> {
        let line = serde_json::to_string(value)
            .map_err(|error| CliError::new(ExitCode::Failed, format!("write JSON: {error}")))?;
        self.line(&line)
    }

    /// A line of text. A reader that went away (`| head`) is the end, not an error.
    pub fn line(self, text: &str) -> Result<()> {
        self.write(text)?;
        if text.ends_with('\n') {
            Ok(())
        } else {
            self.write("\n")
        }
    }

    /// A piece of text, shown at once.
    pub fn write(self, text: &str) -> Result<()> {
        let mut out = anstream::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => {
                CliError::new(ExitCode::Failed, "the reader of the output went away")
            }
            _ => CliError::new(ExitCode::Failed, format!("write the output: {error}")),
        })
    }

    /// A line beside the output, on stderr.
    pub fn note(self, text: &str) {
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(anstream::stderr().lock(), "{text}");
    }
}

/// A table with a header; columns whose name ends in `>` are aligned right.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|name| name.trim_end_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if name.ends_with('>') {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
    }
    table.trim_fmt()
}

/// Bytes as people read them.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// Milliseconds with as many digits as matter.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        ms if !ms.is_finite() => "–".to_owned(),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// Dollars with as many digits as matter.
pub fn dollars(usd: f64) -> String {
    match usd {
        usd if !usd.is_finite() => "–".to_owned(),
        0.0 => "$0".to_owned(),
        usd if usd < 0.01 => format!("${usd:.2e}"),
        usd => format!("${usd:.4}"),
    }
}
