//! What a loaded model takes. A binary of its own: the peak is the whole process's.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use llmpick_core::{GenerateRequest, Prompt, Sampling};
use llmpick_engine::{EngineOptions, Model};

/// Names the model that a child process of the test loads.
const MODEL: &str = "LLMPICK_TEST_MEMORY_OF";

/// What a model may take beside 1.2 times its file: the program itself, the settings of
/// the file while they are read (some 40 MB for 262,144 tokens), and the tokenizer.
const BESIDE: u64 = 64 << 20;

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

/// Does nothing but in a child process of the test below.
#[test]
fn loads_the_model_that_it_is_told() {
    let Some(path) = std::env::var(MODEL).ok().and_then(|m| common::model(&m)) else {
        return;
    };
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let request = GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(4),
        ..GenerateRequest::new(Prompt::Text("The sky is".to_owned()))
    };
    model.generate(&request, &|| false, &mut |_| {}).unwrap();
    println!("peak {} file {}.", peak_bytes(), model.info().file_bytes);
}

#[test]
fn a_model_takes_little_more_than_its_file() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let models = [
        common::SMOLLM2,
        common::GEMMA,
        common::QWEN_SMALL,
        common::QWEN_LARGE,
    ];
    for name in models {
        if common::model(name).is_none() {
            continue;
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "loads_the_model_that_it_is_told", "--nocapture"])
            .env(MODEL, name)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        let number = |before: &str| -> u64 {
            let (_, rest) = said.split_once(before).expect(&said);
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
            digits.unwrap().parse().unwrap()
        };
        let (peak, file) = (number("peak "), number(" file "));
        eprintln!("{name}: {} MB of {} MB", peak / 1_000_000, file / 1_000_000);
        assert!(peak <= file + file / 5 + BESIDE, "{name}: {said}");
    }
}
