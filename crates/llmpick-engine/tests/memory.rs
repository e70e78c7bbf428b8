//! What a loaded model takes. A binary of its own: the peak is the whole process's.
#![allow(clippy::unwrap_used)]

mod common;

use llmpick_core::{GenerateRequest, Prompt, Sampling};
use llmpick_engine::{EngineOptions, Model};

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[test]
fn gemma_loads_and_answers_under_a_gigabyte() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let Some(path) = common::model(common::GEMMA) else {
        return;
    };
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let request = GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(4),
        ..GenerateRequest::new(Prompt::Text("The sky is".to_owned()))
    };
    model.generate(&request, &|| false, &mut |_| {}).unwrap();
    let peak = peak_bytes();
    eprintln!(
        "peak: {} MB for a file of {} MB",
        peak / 1_000_000,
        model.info().file_bytes / 1_000_000
    );
    assert!(peak < 600_000_000, "{peak}");
}
