//! What every story needs: a fresh home, the real binary, the real models.
//!
//! `cargo xtask test` builds the binary and the plugins, pulls the pool, and says where they are.

#![allow(
    clippy::unwrap_used,
    reason = "a story that cannot be set up has failed"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The small model of the default pool.
pub const SMALL: &str = "smollm2-135m-instruct";
/// The larger model of the default pool.
pub const LARGE: &str = "qwen2.5-coder-0.5b-instruct";
/// The models that `--all-models` adds.
pub const OTHERS: [&str; 2] = ["gemma-3-270m", "qwen2.5-coder-1.5b-instruct"];

/// A user's home that nobody used before; models come from the real cache.
pub struct Home {
    dir: TempDir,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// All of stdout.
    pub out: String,
    /// All of stderr.
    pub err: String,
}

impl Said {
    /// The last line of stdout as JSON.
    pub fn json(&self) -> Value {
        let line = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {self:#?}"))
    }

    /// Asserts success.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Asserts a failure with this code whose message holds every one of these texts, says
    /// nothing of a panic, and is short enough to be read.
    pub fn fails(self, code: i32, texts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for text in texts {
            assert!(self.err.contains(text), "no `{text}` in {self:#?}");
        }
        assert!(!self.err.contains("panicked"), "{self:#?}");
        self
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Home {
    /// A fresh home.
    pub fn new() -> Self {
        let home = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for folder in ["config/llmpick", "data", "state", "cache", "run", "work"] {
            std::fs::create_dir_all(home.dir.path().join(folder)).unwrap();
        }
        home
    }

    /// A path inside the home.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside)
    }

    /// Writes the user's settings.
    pub fn settings(&self, toml: &str) -> &Self {
        std::fs::write(self.path("config/llmpick/llmpick.toml"), toml).unwrap();
        self
    }

    /// The command in this home, not started yet.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(self.path("work"))
            .stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let ours = text.starts_with("LLMPICK_") || text.starts_with("XDG_");
            if ours || text.starts_with("HF_") {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.dir.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("LLMPICK_STORE__MODELS_DIR", models_dir());
        command
    }

    /// Runs the command to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Said {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs the command with this on its stdin.
    pub fn run_with<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S], stdin: &[u8]) -> Said {
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // The command may end before it has read everything.
        let _ = pipe.write_all(stdin);
        drop(pipe);
        child.wait_with_output().unwrap().into()
    }

    /// Starts a daemon on a free port and waits until it answers.
    pub fn serve(&self, arguments: &[&str]) -> Daemon {
        let port = free_port();
        let tcp = format!("127.0.0.1:{port}");
        let mut command = self.command(&["serve", "--tcp", &tcp]);
        command
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let daemon = Daemon {
            child,
            port,
            socket: self.path("run/llmpick.sock"),
        };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log: Vec<String> = lines.try_iter().collect();
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the daemon does not answer: {log:#?}"
            );
            std::thread::sleep(Duration::from_millis(30));
        }
        daemon
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

/// A running daemon; dropping it ends it.
pub struct Daemon {
    /// The process.
    pub child: Child,
    /// Its TCP port on loopback.
    pub port: u16,
    /// Its unix socket.
    pub socket: PathBuf,
}

impl Daemon {
    /// Where API clients on TCP begin.
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The real command: named by xtask, or beside the test's own folder.
pub fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("LLMPICK_TEST_BIN") {
        return binary.into();
    }
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("llmpick");
    assert!(binary.exists(), "build the command first: cargo xtask test");
    binary
}

/// Where the pool was pulled to.
pub fn models_dir() -> PathBuf {
    if let Some(models) = std::env::var_os("LLMPICK_TEST_MODELS") {
        return models.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    cache
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"))
        .join("llmpick/models")
}

/// The models of this run: the default pool, or all four. Absent ones fail under xtask and are
/// left out with a line otherwise.
pub fn models() -> Vec<&'static str> {
    let all = std::env::var_os("LLMPICK_ALL_MODELS").is_some();
    let wanted = [SMALL, LARGE]
        .into_iter()
        .chain(OTHERS.into_iter().filter(|_| all));
    wanted.filter(|name| has_model(name)).collect()
}

fn has_model(name: &str) -> bool {
    let present = models_dir().join(name).exists();
    assert!(
        present || std::env::var_os("LLMPICK_REQUIRE_MODELS").is_none(),
        "{name} is not pulled"
    );
    if !present {
        println!("skipped: {name} is not pulled");
    }
    present
}

/// True when the default pool is here.
pub fn has_pool() -> bool {
    has_model(SMALL) && has_model(LARGE)
}

/// A file of the evaluation data beside the checkout, or a line that says it is not there.
pub fn data(file: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let root = std::env::var_os("LLMPICK_TEST_DATA").map_or(beside, PathBuf::from);
    let path = root.join(file);
    if !path.exists() {
        println!("skipped: {file} is not beside the checkout");
        return None;
    }
    Some(path)
}

/// A Python that has the API clients, or a line that says there is none.
pub fn python() -> Option<PathBuf> {
    let python = std::env::var_os("LLMPICK_TEST_PYTHON").map(PathBuf::from);
    if python.is_none() {
        println!("skipped: no Python with the API clients; cargo xtask test makes one");
    }
    python
}

/// A file beside the stories.
pub fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(file)
}
