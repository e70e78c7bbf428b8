//! Each model answers, tokenises, and is listed.

use llmpick_stories::{Home, LARGE, has_pool, models};

#[test]
fn qwen_knows_the_capital_of_france() {
    let home = Home::new();
    for model in models().into_iter().filter(|name| name.starts_with("qwen")) {
        let arguments = [
            "chat",
            "-m",
            model,
            "What is the capital of France?",
            "--max-tokens",
            "24",
            "--temperature",
            "0",
            "--json",
        ];
        let answer = home.run(&arguments).ok().json();
        let text = answer["text"].as_str().unwrap();
        assert!(text.contains("Paris"), "{model}: {text}");
        assert_eq!(answer["model"], model);
        assert!(
            answer["usage"]["prompt_tokens"].as_u64().unwrap() > 5,
            "{answer}"
        );
        assert!(
            answer["usage"]["completion_tokens"].as_u64().unwrap() > 0,
            "{answer}"
        );
        for key in ["ttft_ms", "latency_ms", "cost_usd"] {
            assert!(answer[key].as_f64().unwrap() > 0.0, "{key} in {answer}");
        }
    }
}

/// Fluent here means: words that English has, not one token over and over.
#[test]
fn every_model_writes_words() {
    let home = Home::new();
    for model in models() {
        let prompt = "The history of the Roman Empire is";
        let arguments = [
            "chat",
            "-m",
            model,
            "--raw",
            prompt,
            "--max-tokens",
            "40",
            "--temperature",
            "0",
            "--json",
        ];
        let answer = home.run(&arguments).ok().json();
        let text = answer["text"].as_str().unwrap().to_lowercase();
        let words: std::collections::BTreeSet<&str> = text.split_whitespace().collect();
        let common = [
            "the", "of", "a", "and", "in", "to", "is", "was", "that", "into", "under", "by",
            "from", "for", "with", "as", "which",
        ];
        let found = common.iter().filter(|word| words.contains(*word)).count();
        assert!(words.len() >= 12 && found >= 3, "{model}: {text}");
    }
}

#[test]
fn tokens_come_back_as_the_text() {
    let text = "fn main() { println!(\"안녕, 世界 🌍\"); }\n\n    done.\t\n";
    let home = Home::new();
    for model in models() {
        let said = home
            .run_with(&["tokenize", "-m", model, "--json"], text.as_bytes())
            .ok()
            .json();
        let ids = said["ids"].as_array().unwrap();
        let tokens = said["tokens"].as_array().unwrap();
        assert!(
            ids.len() > 10 && ids.len() == tokens.len(),
            "{model}: {said}"
        );
    }
}

#[test]
fn the_pool_is_listed_and_shown() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let listed = home.run(&["ls"]).ok().out;
    assert!(listed.contains(LARGE), "{listed}");
    let shown = home.run(&["show", LARGE, "--json"]).ok().json();
    assert!(shown.to_string().contains("qwen2"), "{shown}");
    home.run(&["show", "qwen2.5-coder-0.5b-instuct"])
        .fails(3, &["qwen2.5-coder-0.5b-instruct"]);
}

#[test]
fn perplexity_and_bench_speak_json() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let text = "The quick brown fox jumps over the lazy dog near the river bank. ".repeat(20);
    std::fs::write(home.path("work/text.txt"), text).unwrap();
    let arguments = [
        "perplexity",
        "-m",
        "smollm2-135m-instruct",
        "text.txt",
        "--context",
        "64",
        "--json",
    ];
    let said = home.run(&arguments).ok().json();
    assert!(
        said["ppl"].as_f64().unwrap() > 1.0 && said["context"] == 64,
        "{said}"
    );

    let plan = ["--prompt-tokens", "16", "--gen-tokens", "4", "--runs", "2"];
    let mut arguments = vec!["bench", "engine", "-m", "smollm2-135m-instruct", "--json"];
    arguments.extend(plan);
    let said = home.run(&arguments).ok().json();
    for key in ["prompt_tps", "gen_tps"] {
        assert!(said[key]["median"].as_f64().unwrap() > 0.0, "{said}");
    }
    assert!(
        said["peak_rss_bytes"].as_u64().unwrap() > 50_000_000,
        "{said}"
    );
}

#[test]
fn bench_runs_llama_cpp_in_turn() {
    if !has_pool() {
        return;
    }
    let Some(python) = llmpick_stories::python() else {
        return;
    };
    let has_peer = std::process::Command::new(&python)
        .args(["-c", "import xllamacpp"])
        .output();
    if !has_peer.is_ok_and(|output| output.status.success()) {
        println!("skipped: the Python of the tests has no xllamacpp");
        return;
    }
    let home = Home::new();
    let bench = ["bench", "engine", "-m", "smollm2-135m-instruct", "--json"];
    let small = ["--prompt-tokens", "24", "--gen-tokens", "4", "--runs", "2"];
    let against = ["--against", "llama.cpp", "--peer"];
    let mut arguments: Vec<&str> = bench.into_iter().chain(small).chain(against).collect();
    let python = python.to_str().unwrap();
    arguments.push(python);
    home.run(&arguments).fails(6, &["--allow-load", "5 runs"]);
    arguments.push("--allow-load");
    let said = home.run(&arguments).ok().json();

    let ratio = |value: &serde_json::Value| {
        let [median, min, max] = ["median", "min", "max"].map(|key| value[key].as_f64().unwrap());
        assert!(min > 0.0 && min <= max && median > 0.0, "{said}");
    };
    ratio(&said["ratio"]);
    let measures = said["measures"].as_array().unwrap();
    let named = |name: &str| measures.iter().find(|measure| measure["name"] == name);
    for name in ["prompt 24", "generate 4", "load", "peak memory"] {
        let measure = named(name).unwrap_or_else(|| panic!("no {name} in {said}"));
        ratio(&measure["ratio"]);
        assert!(measure["peer"]["median"].as_f64().unwrap() > 0.0, "{said}");
    }
    let features = said["against"]["system"].as_str().unwrap();
    assert!(features.contains("CPU"), "{said}");
    assert!(said["quiet"].is_boolean() && said["foreign_cores"].is_number());
    // The file is 102 MB, and each side holds all of it once.
    assert!(said["memory"]["share"].as_f64().unwrap() < 4.0, "{said}");
    assert!(said["memory"]["peer_bytes"].as_u64().unwrap() > 50_000_000);
    assert!(said["decode"]["share"]["median"].as_f64().unwrap() > 0.0);

    let mut wrong: Vec<&str> = bench.into_iter().chain(against).collect();
    wrong.extend(["/nowhere/llama-server", "--measure", "load"]);
    home.run(&wrong)
        .fails(1, &["/nowhere/llama-server", "xllamacpp"]);
}
