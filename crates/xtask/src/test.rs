//! Runs every test, with what the tests need: the binary, the plugins, the models, a client.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cargo::{cargo, must, release_dir, root};
use crate::plugins;

/// Pulls the pool once into the user's cache, then runs the documentation tests and all others.
pub fn test(arguments: &[String]) -> Result<u8, String> {
    let all_models = arguments.iter().any(|argument| argument == "--all-models");
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| *argument != "--all-models")
        .collect();
    plugins::stage()?;
    let release = release_dir()?;
    pull(&release, if all_models { "starter" } else { "default" })?;

    if filters.is_empty() {
        must(cargo([
            "test",
            "--release",
            "--workspace",
            "--doc",
            "--quiet",
        ]))?;
    }
    let mut tests = if has_nextest() {
        cargo([
            "nextest",
            "run",
            "--release",
            "--workspace",
            "--no-fail-fast",
        ])
    } else {
        cargo([
            "test",
            "--release",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ])
    };
    tests.args(filters).env("LLMPICK_REQUIRE_MODELS", "1");
    tests.env("LLMPICK_TEST_BIN", release.join("llmpick"));
    if all_models {
        tests.env("LLMPICK_ALL_MODELS", "1");
    }
    if let Some(python) = client_python() {
        tests.env("LLMPICK_TEST_PYTHON", python);
    }
    must(tests)?;
    Ok(0)
}

/// Asks the full-precision models again and writes what they say into
/// `crates/llmpick-engine/tests/data/reference`; what is there already is kept, so remove a file
/// to have it made anew. `models` are parts of their names; none means all.
pub fn golden(models: &[String]) -> Result<u8, String> {
    let mut wanted = Vec::new();
    for (test, model) in [
        ("make_smollm2", "smollm2-135m-instruct"),
        ("make_gemma", "gemma-3-270m"),
        ("make_small_qwen", "qwen2.5-coder-0.5b-instruct"),
        ("make_large_qwen", "qwen2.5-coder-1.5b-instruct"),
    ] {
        let named = models.iter().any(|part| model.contains(part.as_str()));
        if !named && !models.is_empty() {
            continue;
        }
        wanted.push(test);
    }
    if wanted.is_empty() {
        return Err(format!("no model is called {}", models.join(" or ")));
    }
    let mut tests = cargo(["test", "--release", "--package", "llmpick-engine"]);
    tests.args(["--test", "golden", "--", "--ignored", "--nocapture"]);
    tests.args(["--test-threads", "1"]).args(wanted);
    tests.env("LLMPICK_REQUIRE_MODELS", "1");
    tests.env("LLMPICK_ALL_MODELS", "1");
    must(tests)?;
    Ok(0)
}

/// The models come through the real command, so the tests begin by testing it.
fn pull(release: &Path, pool: &str) -> Result<(), String> {
    let mut command = Command::new(release.join("llmpick"));
    command.args(["pull", pool]).stdin(Stdio::null());
    must(command)
}

fn has_nextest() -> bool {
    let mut probe = cargo(["nextest", "--version"]);
    probe.stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// A Python with the real API clients and the peer of `tests/clients/*.txt`, kept in the user's
/// cache. Without venv or index the tests that need it skip with a line.
fn client_python() -> Option<PathBuf> {
    let venv = cache_folder()?.join("test-clients");
    let python = venv.join("bin/python");
    let run = |command: &mut Command| {
        command
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !python.exists() && !run(Command::new("python3").args(["-m", "venv"]).arg(&venv)) {
        eprintln!("xtask: no Python venv could be made; the client tests will skip");
        return None;
    }
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ];
    let from = |file: &str| root().join("tests/clients").join(file);
    let fetch = |file: &str| run(Command::new(&python).args(install).arg(from(file)));
    if !fetch("requirements.txt") {
        eprintln!("xtask: the API clients could not be installed; their tests will skip");
        return None;
    }
    // Apart, because there are machines that it is not built for.
    if !fetch("peer.txt") {
        eprintln!("xtask: llama.cpp could not be installed; the comparison with it will skip");
    }
    Some(python)
}

/// Our folder in the user's cache.
pub fn cache_folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    Some(cache.or_else(home)?.join("llmpick"))
}
