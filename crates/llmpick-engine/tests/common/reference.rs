//! What the full-precision models say about a text and twenty prompts, kept as data.
//!
//! Their weights take up to 7 GB and their answers minutes, so `cargo xtask golden` asks them
//! once, and the tests compare the engine with what is in `tests/data/reference`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Tokens of a window of the perplexity; all but the first are scored.
pub const CONTEXT: usize = 512;
/// Tokens of a continuation.
pub const LENGTH: usize = 64;
/// Candidates this much less likely than the likeliest are kept; natural logarithm.
pub const KEPT: f64 = 1.0;

/// The text of the perplexity: the start of "Around the World in Eighty Days", a translation
/// in the public domain.
pub const TEXT: &str = include_str!("../data/eighty-days.txt");

/// A prompt, and how it is put to a model.
pub enum Ask {
    /// A message for models that were tuned to answer; text for others.
    Chat(&'static str),
    /// Text to go on with.
    Text(&'static str),
}

/// Chosen before any of them was run, and not changed since: questions, code, prose, lists.
pub const PROMPTS: [Ask; 20] = [
    Ask::Chat("What is the capital of France?"),
    Ask::Chat("Explain in two sentences why the sky is blue."),
    Ask::Chat("Write a Python function that checks whether a string is a palindrome."),
    Ask::Chat("List five animals that live in the sea."),
    Ask::Chat("Translate to French: \"Where is the railway station?\""),
    Ask::Chat("What is 17 times 23? Show your work."),
    Ask::Chat("Write a short poem about autumn."),
    Ask::Chat("What is the difference between a list and a tuple in Python?"),
    Ask::Chat("Give me a recipe for pancakes."),
    Ask::Chat("Write a SQL query that counts the orders of each customer."),
    Ask::Text("The three primary colours are"),
    Ask::Text("1, 2, 3, 4,"),
    Ask::Text("def fibonacci(n):\n    "),
    Ask::Text("Once upon a time, in a small village by the sea,"),
    Ask::Text("The Pythagorean theorem states that"),
    Ask::Text("#include <stdio.h>\n\nint main(void) {\n"),
    Ask::Text("Q: Who wrote Hamlet?\nA:"),
    Ask::Text("The best way to learn a new language is"),
    Ask::Text("{\"name\": \"Alice\", \"age\": 30, \"city\":"),
    Ask::Text("In 1969, the first humans landed on the Moon."),
];

/// What one model says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reference {
    /// The model file: SHA-256 in hexadecimal.
    pub model: String,
    pub perplexity: Scored,
    /// One for each of [`PROMPTS`].
    pub continuations: Vec<Continuation>,
}

/// Negative log-likelihoods of [`TEXT`], natural logarithm.
#[derive(Debug, Serialize, Deserialize)]
pub struct Scored {
    /// SHA-256 of the text in hexadecimal.
    pub text: String,
    /// Tokens that were scored.
    pub tokens: usize,
    /// The sum of each window.
    pub nll: Vec<f64>,
}

/// The most likely tokens after a prompt, one after the other.
#[derive(Debug, Serialize, Deserialize)]
pub struct Continuation {
    pub prompt: Vec<u32>,
    /// [`LENGTH`] tokens, or up to the first that ends an answer.
    pub tokens: Vec<u32>,
    /// Candidates that were nearly as likely: which of `tokens` they could have replaced,
    /// the candidate, and by how much it is less likely.
    pub ties: Vec<(usize, u32, f64)>,
}

impl Continuation {
    /// By how much `token` is less likely than the one at `index`; `None`: by more than
    /// [`KEPT`].
    pub fn gap(&self, index: usize, token: u32) -> Option<f64> {
        let at = |tie: &&(usize, u32, f64)| tie.0 == index && tie.1 == token;
        self.ties.iter().find(at).map(|tie| tie.2)
    }
}

/// Where the answers of a model are kept.
pub fn path(name: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference");
    data.join(format!("{name}.json"))
}

impl Reference {
    /// What is kept of a model.
    pub fn read(name: &str) -> Reference {
        let text = std::fs::read_to_string(path(name)).unwrap();
        let reference: Reference = serde_json::from_str(&text).unwrap();
        assert_eq!(reference.perplexity.text, digest(TEXT.as_bytes()));
        assert_eq!(reference.continuations.len(), PROMPTS.len());
        reference
    }

    /// What is kept of a model of exactly this file, be it incomplete; empty where there is
    /// nothing. What was said of another text is dropped.
    pub fn begun(name: &str, file: &Path) -> Reference {
        let model = digest(&std::fs::read(file).unwrap());
        let fresh = Scored {
            text: digest(TEXT.as_bytes()),
            tokens: 0,
            nll: Vec::new(),
        };
        let kept = std::fs::read_to_string(path(name)).ok();
        match kept.and_then(|text| serde_json::from_str::<Reference>(&text).ok()) {
            Some(mut kept) if kept.model == model => {
                if kept.perplexity.text != fresh.text {
                    kept.perplexity = fresh;
                }
                kept
            }
            _ => Reference {
                model,
                perplexity: fresh,
                continuations: Vec::new(),
            },
        }
    }

    pub fn write(&self, name: &str) {
        let path = path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, serde_json::to_string(self).unwrap() + "\n").unwrap();
    }
}

pub fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
