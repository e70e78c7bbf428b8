//! What the tests of this crate share: where models are, tiny models made on the spot, and
//! the stock models of candle-transformers as reference.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod full;
pub mod hub;
pub mod plain;
pub mod reference;
pub mod stock;
pub mod tiny;

use std::path::PathBuf;

use llmpick_core::{Arm, ArmId, Locality, Price};

pub const SMOLLM2: &str = "smollm2-135m-instruct";
pub const QWEN_SMALL: &str = "qwen2.5-coder-0.5b-instruct";
pub const QWEN_LARGE: &str = "qwen2.5-coder-1.5b-instruct";
pub const GEMMA: &str = "gemma-3-270m";

fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "1")
}

/// The file of a pulled model. Where it is missing the test has nothing to do, unless
/// `LLMPICK_REQUIRE_MODELS=1` makes that a failure. The two models outside of the default
/// pool are wanted only with `LLMPICK_ALL_MODELS=1`.
pub fn model(name: &str) -> Option<PathBuf> {
    if [QWEN_LARGE, GEMMA].contains(&name) && !is_set("LLMPICK_ALL_MODELS") {
        eprintln!("skipped: {name} is not in the default pool (LLMPICK_ALL_MODELS=1 adds it)");
        return None;
    }
    let folder = match std::env::var_os("LLMPICK_TEST_MODELS") {
        Some(folder) => PathBuf::from(folder),
        None => match std::env::var_os("XDG_CACHE_HOME") {
            Some(cache) => PathBuf::from(cache).join("llmpick/models"),
            None => PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/llmpick/models"),
        },
    };
    let path = folder.join(name).join(format!("{name}.gguf"));
    if path.exists() {
        return Some(path);
    }
    assert!(
        !is_set("LLMPICK_REQUIRE_MODELS"),
        "{} is missing",
        path.display()
    );
    eprintln!("skipped: {} is missing", path.display());
    None
}

/// A free local arm.
pub fn arm(name: &str) -> Arm {
    Arm {
        id: ArmId::new(name).unwrap(),
        locality: Locality::Local,
        context_tokens: 256,
        price: Price::PerHour { usd: 0.0 },
    }
}
