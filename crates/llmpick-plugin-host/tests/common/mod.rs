//! Builds fixture plugins as their authors would, and loads them.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use llmpick_core::{
    Candidate, Decision, DecisionSource, Feedback, OutcomeKind, RouteId, Router, Score,
};
use llmpick_plugin_host::{Isolation, Library, LoadOptions, RouterOptions, router};
use llmpick_testkit::{candidate, select_request};

pub fn repository() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A private folder that goes with the value.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.0.path()).unwrap()
    }
}

/// Compiles a C file of the repository to `name` in `folder`.
pub fn cc(folder: &Folder, source: &str, name: &str, flags: &[&str]) -> Utf8PathBuf {
    let root = repository();
    let library = folder.path().join(name);
    let output = Command::new("cc")
        .args([
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O1",
            "-shared",
            "-fPIC",
        ])
        .args(flags)
        .arg("-I")
        .arg(root.join("crates/llmpick-plugin-abi/include"))
        .arg("-o")
        .arg(&library)
        .arg(root.join(source))
        .arg("-lm")
        .output()
        .expect("a C compiler named `cc` is needed for the fixtures");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    library
}

/// Builds a crate of the repository with Cargo; answers its library.
pub fn cargo(folder: &str, library: &str) -> Utf8PathBuf {
    let target = Utf8Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins");
    let build = |offline: &[&str]| {
        Command::new(env!("CARGO"))
            .args(["build", "--release", "--quiet", "--manifest-path"])
            .arg(repository().join(folder).join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .args(offline)
            .output()
            .unwrap()
    };
    let mut output = build(&["--offline"]);
    if !output.status.success() {
        // Nothing was downloaded yet.
        output = build(&[]);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    target.join("release").join(library)
}

/// Target folders may be writable by the group; that is not what these tests are about.
pub const ANYWHERE: LoadOptions = LoadOptions::ANYWHERE;

pub fn load(path: &Utf8Path) -> Arc<Library> {
    Library::load(path, &ANYWHERE).unwrap_or_else(|error| panic!("{error}: {:?}", error.kind))
}

/// The router and scorer in C that misbehave on request, built once per test binary.
pub fn moody() -> Arc<Library> {
    static LIBRARY: OnceLock<Arc<Library>> = OnceLock::new();
    let build = || {
        let folder = Folder::new();
        load(&cc(&folder, "tests/plugins/moody.c", "moody.so", &[]))
    };
    Arc::clone(LIBRARY.get_or_init(build))
}

/// The plugin in Rust that panics on request, built once per test binary.
pub fn panics() -> Arc<Library> {
    static LIBRARY: OnceLock<Arc<Library>> = OnceLock::new();
    let build = || load(&cargo("tests/plugins/panics", "libpanics.so"));
    Arc::clone(LIBRARY.get_or_init(build))
}

/// Generous, so that a busy machine makes no faults of its own.
pub fn patient(isolation: Isolation) -> RouterOptions {
    RouterOptions {
        isolation,
        deadline: Duration::from_secs(10),
        control_deadline: Duration::from_secs(30),
        ..RouterOptions::default()
    }
}

pub fn make(
    library: &Arc<Library>,
    name: &str,
    config: &str,
    options: &RouterOptions,
) -> Box<dyn Router> {
    router(library, name, config, options).unwrap_or_else(|error| panic!("{error}"))
}

/// Why the fallback decided, or nothing where the router did.
pub fn why(source: &DecisionSource) -> &str {
    match source {
        DecisionSource::Fallback(why) => why,
        DecisionSource::Router => "",
        DecisionSource::Pinned => panic!("nobody pinned anything"),
    }
}

/// The program that plays a plugin's own process.
pub fn child_program() -> &'static str {
    env!("CARGO_BIN_EXE_llmpick-plugin-child")
}

/// Four arms; the last is not eligible, the third has the best measured score, which is
/// what the fallback goes by, and the first is the cheapest, which is what `moody` goes by.
pub fn arms() -> Vec<Candidate> {
    let mut arms: Vec<Candidate> = (0..4).map(candidate).collect();
    arms[3].eligible = false;
    arms[2].score = 0.9;
    arms
}

pub fn ask(router: &mut dyn Router, route: u64) -> Decision {
    router.select(&select_request(&arms(), route)).unwrap()
}

pub fn feedback(route: u64, arm: u32, score: f64) -> Feedback {
    Feedback {
        route_id: RouteId(route),
        arm: candidate(arm).id,
        position: 0,
        outcome: OutcomeKind::Ok,
        task: String::new(),
        features: Vec::new(),
        fallback: false,
        cold: false,
        prompt_tokens: 10,
        completion_tokens: 10,
        latency_ms: 5.0,
        ttft_ms: 1.0,
        cost: 1e-6,
        score: Score::new(score).ok(),
    }
}

/// Bytes of memory that this process occupies.
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kib.unwrap() << 10
}
