//! What an evaluation has measured already, so that an interruption costs one question.
//!
//! JSON lines, appended and flushed one at a time; the first line names the version and what was
//! asked. A torn last line (the machine lost power) is dropped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{CliError, ExitCode, Result};

/// Raise it when a line's meaning changes; an older journal is then set aside, not read.
const VERSION: u32 = 1;

/// What makes two runs the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The format's version.
    pub version: u32,
    /// sha256 of the question file.
    pub questions_sha256: String,
    /// How the models were asked.
    pub method: String,
    /// The context under which this run's feedback stands in the ledger.
    pub context: String,
    /// Chance of the router's decisions.
    pub seed: u64,
    /// The router and its settings, as text.
    pub router: String,
}

/// What one arm did with one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The question's line.
    pub line: usize,
    /// The arm's name.
    pub arm: String,
    /// The grade that the router learns from.
    pub score: Option<f64>,
    /// `acc` and `acc_norm`, for choices by log-likelihood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<super::grade::ChoiceGrade>,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub completion_tokens: u32,
    /// Seconds the device worked.
    pub busy_s: f64,
    /// Seconds until the answer.
    pub latency_s: f64,
    /// Dollars.
    pub cost_usd: f64,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the router did with one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Routed {
    /// The question's line.
    pub routed: usize,
    /// The arm whose answer counts.
    pub arm: String,
    /// Its grade.
    pub score: Option<f64>,
    /// Dollars of all arms that ran.
    pub cost_usd: f64,
    /// Seconds until the answer.
    pub latency_s: f64,
    /// The entry in the ledger.
    pub route_id: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Measurement(Measurement),
    Routed(Routed),
}

/// An open journal.
pub struct Journal {
    file: File,
    path: PathBuf,
    /// The run it belongs to.
    pub header: Header,
    /// By question line and arm.
    pub measured: HashMap<(usize, String), Measurement>,
    /// By question line.
    pub routed: HashMap<usize, Routed>,
}

impl Journal {
    /// Opens the journal of this very run, or begins one. `fresh` sets an existing one aside.
    pub fn open(path: &Path, header: Header, fresh: bool) -> Result<Self> {
        let failed = |error: std::io::Error| {
            CliError::new(
                ExitCode::Failed,
                format!("write the journal {}: {error}", path.display()),
            )
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let text = if fresh {
            String::new()
        } else {
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let kept = text
            .lines()
            .next()
            .and_then(|line| serde_json::from_str::<Header>(line).ok());
        let same = kept.as_ref().is_some_and(|kept| {
            // The context holds the run's own number, so it is taken over, not compared.
            Header {
                context: header.context.clone(),
                ..kept.clone()
            } == header
        });
        let header = Header {
            version: VERSION,
            ..if same { kept.unwrap_or(header) } else { header }
        };
        let lines: Vec<&str> = if same {
            text.lines().skip(1).collect()
        } else {
            Vec::new()
        };
        let mut journal = Self {
            file: rewrite(path, &header, &lines).map_err(failed)?,
            path: path.to_owned(),
            header,
            measured: HashMap::new(),
            routed: HashMap::new(),
        };
        for line in lines {
            match serde_json::from_str(line) {
                Ok(Line::Measurement(measurement)) => journal.keep(measurement),
                Ok(Line::Routed(routed)) => {
                    journal.routed.insert(routed.routed, routed);
                }
                Err(_) => {} // torn by an interruption: measured again
            }
        }
        Ok(journal)
    }

    /// Adds a measurement.
    pub fn add(&mut self, measurement: Measurement) -> Result<()> {
        self.append(&measurement)?;
        self.keep(measurement);
        Ok(())
    }

    /// Adds a decision.
    pub fn add_routed(&mut self, routed: Routed) -> Result<()> {
        self.append(&routed)?;
        self.routed.insert(routed.routed, routed);
        Ok(())
    }

    fn keep(&mut self, measurement: Measurement) {
        self.measured
            .insert((measurement.line, measurement.arm.clone()), measurement);
    }

    fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let written = serde_json::to_vec(line)
            .map_err(std::io::Error::from)
            .and_then(|mut bytes| {
                bytes.push(b'\n');
                self.file.write_all(&bytes)
            });
        written.map_err(|error| {
            CliError::new(
                ExitCode::Failed,
                format!("write the journal {}: {error}", self.path.display()),
            )
        })
    }
}

/// Writes what is known into a fresh file and renames it over the old one, so that a torn line
/// is never followed by another.
fn rewrite(path: &Path, header: &Header, lines: &[&str]) -> std::io::Result<File> {
    let fresh = path.with_extension("fresh");
    let mut file = File::create(&fresh)?;
    serde_json::to_writer(&mut file, header)?;
    file.write_all(b"\n")?;
    for line in lines
        .iter()
        .filter(|line| serde_json::from_str::<Line>(line).is_ok())
    {
        writeln!(file, "{line}")?;
    }
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    OpenOptions::new().append(true).open(path)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            questions_sha256: "ab".into(),
            method: "likelihood".into(),
            context: "eval/q/1".into(),
            seed: 7,
            router: "c2mabv".into(),
        }
    }

    fn measurement(line: usize) -> Measurement {
        Measurement {
            line,
            arm: "small".into(),
            score: Some(1.0),
            choice: None,
            prompt_tokens: 3,
            completion_tokens: 0,
            busy_s: 0.1,
            latency_s: 0.1,
            cost_usd: 1e-6,
            error: None,
        }
    }

    #[test]
    fn a_torn_line_is_dropped_and_the_rest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::open(&path, header(), false).unwrap();
        journal.add(measurement(1)).unwrap();
        journal.add(measurement(2)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 9]).unwrap();

        let mut again = Journal::open(&path, header(), false).unwrap();
        assert_eq!(
            again
                .measured
                .keys()
                .map(|(line, _)| *line)
                .collect::<Vec<_>>(),
            [1]
        );
        again.add(measurement(2)).unwrap();
        assert_eq!(
            Journal::open(&path, header(), false)
                .unwrap()
                .measured
                .len(),
            2
        );
    }

    #[test]
    fn another_run_does_not_read_it_and_the_context_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        Journal::open(&path, header(), false)
            .unwrap()
            .add(measurement(1))
            .unwrap();
        let later = Header {
            context: "eval/q/2".into(),
            ..header()
        };
        let resumed = Journal::open(&path, later, false).unwrap();
        assert_eq!(
            (resumed.measured.len(), resumed.header.context.as_str()),
            (1, "eval/q/1")
        );
        let other = Header {
            seed: 8,
            ..header()
        };
        assert!(
            Journal::open(&path, other, false)
                .unwrap()
                .measured
                .is_empty()
        );
    }
}
