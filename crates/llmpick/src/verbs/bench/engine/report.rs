//! What was measured, as JSON and as a table.

use llmpick_daemon::engine::Spread;
use serde::Serialize;

use super::peer::About;
use crate::printer::{bytes, table};

/// Everything a run of `bench engine` found out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model as it was named.
    pub model: String,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// Tokens of context that both sides made room for.
    pub context_tokens: usize,
    /// How our keys and values are kept.
    pub kv_cache: String,
    /// Threads that computed.
    pub threads: usize,
    /// Counted runs of each measure.
    pub runs: usize,
    /// Seconds to load, the file in memory; the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_s: Option<f64>,
    /// Prompt tokens per second with the first size of prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tps: Option<Spread>,
    /// Milliseconds from that prompt to the first token, the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Generated tokens per second, the first not counted: it comes out of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gen_tps: Option<Spread>,
    /// The most memory that a process with this model had.
    pub peak_rss_bytes: u64,
    /// Each size of prompt.
    pub prompts: Vec<PromptSpeed>,
    /// What a start took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadTimes>,
    /// Memory, beside what cannot be done without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryUse>,
    /// The rate at which generation reads weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode: Option<DecodeRate>,
    /// The most that other processes used during a counted run, in cores.
    pub foreign_cores: Option<f64>,
    /// The most that the machine under this virtual one gave to others, in cores.
    pub stolen_cores: Option<f64>,
    /// Whether foreign load stayed within the limit in every counted run.
    pub quiet: bool,
    /// The other side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
    /// Our speed over the peer's for a whole answer, or for the prompt if only that was
    /// measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Spread>,
    /// Every measure, with the peer's figures where there is one.
    pub measures: Vec<Measure>,
    /// What was left out, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Speed with one size of prompt.
#[derive(Debug, Serialize)]
pub struct PromptSpeed {
    /// Its tokens.
    pub tokens: usize,
    /// Tokens per second.
    pub tps: Spread,
    /// Milliseconds to the first token, the median.
    pub ttft_ms: f64,
}

/// Seconds that a new process takes.
#[derive(Debug, Serialize)]
pub struct LoadTimes {
    /// To load, the file in memory.
    pub warm_s: Spread,
    /// To the first token after the shortest prompt, load included.
    pub warm_first_token_s: Spread,
    /// To load, the file on the disk; none where it could not be got out of memory.
    pub cold_s: Option<Spread>,
    /// To the first token, the file on the disk.
    pub cold_first_token_s: Option<Spread>,
}

/// Memory of a process that ran every prompt once.
#[derive(Debug, Serialize)]
pub struct MemoryUse {
    /// The most it had.
    pub peak_bytes: u64,
    /// The model's file.
    pub file_bytes: u64,
    /// Keys and values of the longest run.
    pub kv_bytes: u64,
    /// `peak_bytes` over the sum of the other two.
    pub share: f64,
    /// The peer's peak, without the interpreter around it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_bytes: Option<u64>,
    /// The interpreter around the peer before it loaded, not in `peer_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_interpreter_bytes: Option<u64>,
}

/// Weights read by generation, beside a plain read of the same bytes in the same minutes.
#[derive(Debug, Serialize)]
pub struct DecodeRate {
    /// Bytes of weights for each token; keys and values are not counted.
    pub bytes_per_token: u64,
    /// Bytes per second while generating.
    pub bytes_per_s: Spread,
    /// Bytes per second of the plain read.
    pub stream_bytes_per_s: Spread,
    /// The first over the second.
    pub share: Spread,
}

/// The peer and how it was run.
#[derive(Debug, Serialize)]
pub struct Against {
    /// Always `llama.cpp`.
    pub name: &'static str,
    /// What it says about itself.
    #[serde(flatten)]
    pub about: About,
    /// How it keeps keys and values: its default.
    pub kv_cache: &'static str,
}

/// One thing that was measured.
#[derive(Debug, Serialize)]
pub struct Measure {
    /// What, for example `prompt 512`.
    pub name: String,
    /// `tokens/s`, `s` or `bytes`.
    pub unit: Unit,
    /// Which of two figures is the better one.
    pub better: Better,
    /// Our figures.
    pub ours: Spread,
    /// The peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Spread>,
    /// Ours over the peer's: of the medians, and the least and greatest of the pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Spread>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    #[serde(rename = "tokens/s")]
    TokensPerSecond,
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "bytes")]
    Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    More,
    Less,
}

/// Figures of two sides that took turns; the peer's are empty without one.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    pub ours: Vec<f64>,
    pub peer: Vec<f64>,
}

impl Pairs {
    /// Ours over the other's: of the medians, and the least and greatest of the pairs.
    pub fn ratio(&self) -> Option<Spread> {
        let pairs = self.ours.iter().zip(&self.peer);
        let each = Spread::of(pairs.map(|(ours, peer)| ours / peer));
        let medians = self.ours().median / self.peer()?.median;
        Some(Spread {
            median: medians,
            ..each
        })
    }

    pub fn ours(&self) -> Spread {
        Spread::of(self.ours.iter().copied())
    }

    pub fn peer(&self) -> Option<Spread> {
        (!self.peer.is_empty()).then(|| Spread::of(self.peer.iter().copied()))
    }

    pub fn measure(&self, name: impl Into<String>, unit: Unit) -> Measure {
        Measure {
            name: name.into(),
            unit,
            better: match unit {
                Unit::TokensPerSecond => Better::More,
                Unit::Seconds | Unit::Bytes => Better::Less,
            },
            ours: self.ours(),
            peer: self.peer(),
            ratio: self.ratio(),
        }
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let header: &[&str] = match self.against {
            Some(_) => &[
                "",
                "llmpick>",
                "min>",
                "max>",
                "llama.cpp>",
                "ratio>",
                "min>",
                "max>",
                "",
            ],
            None => &["", "median>", "min>", "max>"],
        };
        let mut text = table(header, self.measures.iter().map(Measure::row));
        text.push_str("\n\n");
        for line in self.below() {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    fn below(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.against.is_some() {
            lines.push(
                "ratio: llmpick over llama.cpp, of the medians, then the least and greatest of \
                 the pairs; the bar is how many times better, `|` is even"
                    .to_owned(),
            );
        }
        lines.push(format!(
            "{}, {}; {} tokens of context, keys and values as {}, {} of each measure",
            self.model,
            count(self.threads, "thread"),
            self.context_tokens,
            self.kv_cache,
            count(self.runs, "run"),
        ));
        if let Some(ttft_ms) = self.ttft_ms {
            lines.push(format!("first token after {ttft_ms:.1} ms when loaded"));
        }
        if let Some(decode) = &self.decode {
            lines.push(format!(
                "generating reads {} of weights a token, {:.1} GB/s: {:.2} ({:.2}–{:.2}) of a plain read ({:.1} GB/s)",
                bytes(decode.bytes_per_token),
                decode.bytes_per_s.median / 1e9,
                decode.share.median,
                decode.share.min,
                decode.share.max,
                decode.stream_bytes_per_s.median / 1e9,
            ));
        }
        if let Some(memory) = &self.memory {
            lines.push(format!(
                "peak memory {} is {:.2} × (file {} + keys and values {})",
                bytes(memory.peak_bytes),
                memory.share,
                bytes(memory.file_bytes),
                bytes(memory.kv_bytes),
            ));
            if let Some(interpreter) = memory.peer_interpreter_bytes.filter(|b| *b > 0) {
                lines.push(format!(
                    "llama.cpp's memory is without the {} that its Python had before loading",
                    bytes(interpreter)
                ));
            }
        }
        if let Some(against) = &self.against {
            lines.push(format!(
                "llama.cpp is {} ({}), keys and values as {}; built with and found: {}",
                against.about.version,
                against.about.program,
                against.kv_cache,
                against.about.system,
            ));
        }
        lines.push(match (self.foreign_cores, self.quiet) {
            (None, _) => "who else used the processor cannot be told on this system".to_owned(),
            (Some(cores), true) => format!("other processes used at most {cores:.2} cores"),
            (Some(cores), false) => format!(
                "NOT QUIET: other processes used up to {cores:.2} cores meanwhile, so these \
                 figures say little"
            ),
        });
        if let Some(cores) = self.stolen_cores.filter(|cores| *cores >= 0.05) {
            lines.push(format!(
                "the machine under this virtual one took up to {cores:.2} cores"
            ));
        }
        lines.extend(self.notes.iter().cloned());
        lines
    }
}

impl Measure {
    fn row(&self) -> Vec<String> {
        let mut row = vec![self.name.clone()];
        let ours = [self.ours.median, self.ours.min, self.ours.max];
        row.extend(ours.map(|value| self.unit.cell(value)));
        if let (Some(peer), Some(ratio)) = (&self.peer, &self.ratio) {
            row.push(self.unit.cell(peer.median));
            row.extend([ratio.median, ratio.min, ratio.max].map(|value| format!("{value:.2}")));
            row.push(bar(match self.better {
                Better::More => ratio.median,
                Better::Less => 1.0 / ratio.median,
            }));
        }
        row
    }
}

impl Unit {
    fn cell(self, value: f64) -> String {
        match self {
            Unit::TokensPerSecond => format!("{value:.1} t/s"),
            Unit::Seconds => format!("{value:.3} s"),
            Unit::Bytes => bytes(value as u64),
        }
    }
}

/// Four characters for each "times better", at most 32; the end of the first is marked.
fn bar(times: f64) -> String {
    const ONE: usize = 4;
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (times.clamp(0.0, 8.0) * 8.0 * ONE as f64).round() as usize;
    let drawn = "█".repeat(eighths / 8) + PARTS[eighths % 8];
    let mut cells: Vec<char> = drawn.chars().collect();
    if cells.len() <= ONE {
        cells.resize(ONE, ' ');
        cells.push('|');
    } else {
        cells.insert(ONE, '|');
    }
    cells.into_iter().collect()
}

fn count(number: usize, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ => format!("{number} {thing}s"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_ratio_is_of_medians_and_its_ends_are_of_pairs() {
        let pairs = Pairs {
            ours: vec![10.0, 30.0, 20.0],
            peer: vec![5.0, 10.0, 4.0],
        };
        let ratio = pairs.ratio().unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (4.0, 2.0, 5.0));
        let alone = Pairs {
            ours: vec![1.0],
            peer: Vec::new(),
        };
        let measure = alone.measure("load", Unit::Seconds);
        assert_eq!((measure.ratio, measure.better), (None, Better::Less));
        assert_eq!(measure.row().len(), 4);
        let json = serde_json::to_value(pairs.measure("prompt 8", Unit::TokensPerSecond)).unwrap();
        assert_eq!(json["unit"], "tokens/s");
        assert_eq!(json["better"], "more");
        assert_eq!(json["ratio"]["median"], 4.0);
        assert_eq!(json["peer"]["max"], 10.0);
    }

    #[test]
    fn a_bar_shows_how_many_times() {
        assert_eq!(bar(1.0), "████|");
        assert_eq!(bar(0.5), "██  |");
        assert_eq!(bar(2.125), "████|████▌");
        assert_eq!(bar(100.0).chars().count(), 33);
        assert_eq!(bar(f64::NAN), "    |");
    }
}
