//! llama.cpp as a process of its own: its server, or the one inside the Python package
//! `xllamacpp`. Both speak the same HTTP.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::quiet;
use crate::error::{CliError, ExitCode, Result};

/// Serves a model through the Python package.
const SCRIPT: &str = include_str!("peer.py");

const HINT: &str = "python3 -m venv peer && peer/bin/pip install xllamacpp, then --peer \
                    peer/bin/python; or --peer with the path of a llama-server";

/// Ends well where the Python package is there, without loading it.
const HAS_PACKAGE: &str =
    "import importlib.util, sys; sys.exit(importlib.util.find_spec('xllamacpp') is None)";

/// How long a program may take to show that it is one.
const TRIAL: Duration = Duration::from_secs(20);

/// A program that can serve a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// A `llama-server`.
    Server(PathBuf),
    /// A Python that has `xllamacpp`.
    Python(PathBuf),
}

/// What both sides are told.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// The GGUF file.
    pub file: PathBuf,
    /// Threads that compute.
    pub threads: usize,
    /// Tokens of context.
    pub context: usize,
}

/// What the peer says about itself.
#[derive(Clone, Debug, Default, Serialize)]
pub struct About {
    /// The program that was started.
    pub program: String,
    /// Its version.
    pub version: String,
    /// The processor features that it was built with and found, in its words.
    pub system: String,
}

/// A server with the model loaded. It ends when this is dropped.
pub struct Peer {
    child: Child,
    about: About,
    address: String,
    http: reqwest::Client,
    tail: Tail,
    /// What the process had before it began to load.
    interpreter_bytes: u64,
}

/// How long the peer took for one run, by its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Timings {
    prompt_n: usize,
    prompt_ms: f64,
    predicted_n: usize,
    predicted_ms: f64,
}

impl Timings {
    /// From the prompt to the first token.
    pub fn first(&self) -> Duration {
        Duration::try_from_secs_f64(self.prompt_ms / 1e3).unwrap_or_default()
    }

    /// For the tokens after the first.
    pub fn rest(&self) -> Duration {
        Duration::try_from_secs_f64(self.predicted_ms / 1e3).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Completion {
    timings: Timings,
}

#[derive(Deserialize)]
struct Hello {
    version: String,
    system: String,
}

#[derive(Deserialize)]
struct Listening {
    address: String,
}

/// The last lines of the peer's stderr.
type Tail = Arc<Mutex<VecDeque<String>>>;

impl Program {
    /// The one that is named, or what this machine has.
    ///
    /// # Errors
    /// If there is none, or the one named is none; the hint says how to get one.
    pub async fn find(named: Option<&Path>) -> Result<Program> {
        if let Some(path) = named {
            let program = Program::named(path);
            program.try_out().await?;
            return Ok(program);
        }
        if let Some(path) = on_path("llama-server") {
            return Ok(Program::Server(path));
        }
        if let Some(path) = on_path("python3") {
            let program = Program::Python(path);
            if program.try_out().await.is_ok() {
                return Ok(program);
            }
        }
        let why = "llama.cpp is not here: no `llama-server` on the PATH, and `python3` has no `xllamacpp`";
        Err(CliError::new(ExitCode::Failed, why).hint(HINT))
    }

    fn named(path: &Path) -> Program {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match name.starts_with("python") || name.starts_with("pypy") {
            true => Program::Python(path.to_owned()),
            false => Program::Server(path.to_owned()),
        }
    }

    /// Starts it for a moment, so that a wrong one is told before anything is measured.
    async fn try_out(&self) -> Result<()> {
        let mut command = Command::new(self.path());
        match self {
            Program::Server(_) => command.arg("--version"),
            Program::Python(_) => command.args(["-c", HAS_PACKAGE]),
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.cannot_start(&error))?;
        let ended = tokio::time::timeout(TRIAL, child.wait()).await;
        let python = matches!(self, Program::Python(_));
        match ended {
            // What a server's version has as its status differs from build to build.
            Ok(Ok(status)) if python && !status.success() => {
                let path = self.path().display();
                Err(failed(format!("`{path}` has no package xllamacpp")).hint(HINT))
            }
            _ => Ok(()),
        }
    }

    fn cannot_start(&self, error: &std::io::Error) -> CliError {
        failed(format!("start `{}`: {error}", self.path().display())).hint(HINT)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Program::Server(path) | Program::Python(path) => path,
        }
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

impl Peer {
    /// Starts the program and waits until it can answer. Also gives the moment at which it
    /// began to load: a Python's own start is not counted.
    ///
    /// # Errors
    /// If it cannot be started or ends; with its last words.
    pub async fn start(program: &Program, asked: &Asked) -> Result<(Peer, Instant)> {
        let (mut child, port) = spawn(program, asked)?;
        let tail = keep_tail(&mut child);
        let http = reqwest::Client::builder().no_proxy().build();
        let http = http.map_err(|error| failed(format!("make an HTTP client: {error}")))?;
        let mut peer = Peer {
            child,
            about: About {
                program: program.path().display().to_string(),
                ..About::default()
            },
            address: format!("http://127.0.0.1:{port}"),
            http,
            tail,
            interpreter_bytes: 0,
        };
        let mut begun = Instant::now();
        match program {
            Program::Python(_) => begun = peer.greet_python().await?,
            Program::Server(_) => drop(peer.child.stdout.take().map(discard)),
        }
        peer.wait_healthy().await?;
        if let Program::Server(_) = program {
            peer.ask_server().await;
        }
        Ok((peer, begun))
    }

    /// What it says about itself.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// The most memory it ever had, and what of that is the interpreter around it.
    pub fn peak_bytes(&self) -> (u64, u64) {
        (quiet::peak_memory(self.id()), self.interpreter_bytes)
    }

    /// Computes a prompt and generates so many tokens greedily.
    ///
    /// # Errors
    /// If it does not answer, or did something else.
    pub async fn run(&mut self, prompt: &[u32], gen_tokens: usize) -> Result<Timings> {
        let body = serde_json::json!({
            "prompt": prompt,
            "n_predict": gen_tokens,
            "cache_prompt": false,
            // The most likely token, found in the shortest way it has.
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
            "ignore_eos": true,
        });
        let url = format!("{}/completion", self.address);
        let sent = self.http.post(url).json(&body).send();
        let answered = async { sent.await?.error_for_status()?.json::<Completion>().await };
        let answered = answered.await;
        let timings = match answered {
            Ok(completion) => completion.timings,
            Err(error) => return Err(self.fell(&format!("did not answer: {error}"))),
        };
        if timings.prompt_n != prompt.len() || timings.predicted_n != gen_tokens {
            return Err(failed(format!(
                "llama.cpp computed {} prompt tokens and {} more, and was asked for {} and {gen_tokens}",
                timings.prompt_n,
                timings.predicted_n,
                prompt.len(),
            )));
        }
        Ok(timings)
    }

    /// Ends the process and waits until it is gone.
    pub async fn end(mut self) {
        // It may have ended by itself.
        let _ = self.child.kill().await;
    }

    async fn greet_python(&mut self) -> Result<Instant> {
        let (Some(stdout), Some(mut stdin)) = (self.child.stdout.take(), self.child.stdin.take())
        else {
            return Err(failed("talk to the peer: it has no pipes"));
        };
        let mut lines = BufReader::new(stdout).lines();
        let Some(hello) = line_of::<Hello>(&mut lines).await else {
            return Err(self.fell("did not start").hint(HINT));
        };
        self.about.version = format!("xllamacpp {}", hello.version);
        self.about.system = hello.system.trim().to_owned();
        self.interpreter_bytes = quiet::peak_memory(self.id());
        let begun = Instant::now();
        let begin = stdin.write_all(b"\n").await;
        let listening = match begin {
            Ok(()) => line_of::<Listening>(&mut lines).await,
            Err(_) => None,
        };
        let Some(Listening { address }) = listening else {
            return Err(self.fell("did not load the model"));
        };
        self.address = address.trim_end_matches('/').to_owned();
        // Closing it ends the script, should this process be killed.
        self.child.stdin = Some(stdin);
        drop(discard(lines.into_inner().into_inner()));
        Ok(begun)
    }

    async fn wait_healthy(&mut self) -> Result<()> {
        let url = format!("{}/health", self.address);
        loop {
            let answer = self.http.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if let Ok(Some(_)) = self.child.try_wait() {
                return Err(self.fell("ended before it could answer"));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What a server tells of its build, over HTTP and in its log.
    async fn ask_server(&mut self) {
        #[derive(Deserialize)]
        struct Properties {
            build_info: String,
        }
        let url = format!("{}/props", self.address);
        let asked = async { self.http.get(url).send().await?.json::<Properties>().await };
        if let Ok(properties) = asked.await {
            self.about.version = format!("llama-server {}", properties.build_info);
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let line = tail.iter().find_map(|line| line.split_once("system_info:"));
        if let Some((_, features)) = line {
            self.about.system = features.trim().to_owned();
        }
    }

    /// Why the peer is of no use, with the last that it said.
    fn fell(&self, what: &str) -> CliError {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let said: Vec<&str> = tail
            .iter()
            .rev()
            .take(3)
            .rev()
            .map(String::as_str)
            .collect();
        let said = match said.is_empty() {
            true => String::new(),
            false => format!("; it said: {}", said.join(" / ")),
        };
        failed(format!("llama.cpp ({}) {what}{said}", self.about.program))
    }
}

fn failed(why: impl std::fmt::Display) -> CliError {
    CliError::new(ExitCode::Failed, why)
}

fn spawn(program: &Program, asked: &Asked) -> Result<(Child, u16)> {
    let mut port = 0;
    let mut command = Command::new(program.path());
    match program {
        Program::Python(_) => {
            let asked = serde_json::to_string(asked).map_err(failed)?;
            command.args(["-c", SCRIPT]).arg(asked);
        }
        Program::Server(_) => {
            port = free_port()?;
            let numbers = [
                ("--ctx-size", asked.context),
                ("--threads", asked.threads),
                ("--threads-batch", asked.threads),
                ("--parallel", 1),
                ("--n-gpu-layers", 0),
                ("--port", usize::from(port)),
            ];
            command
                .args([OsStr::new("--model"), asked.file.as_os_str()])
                .args(["--host", "127.0.0.1", "--no-warmup"]);
            for (name, value) in numbers {
                command.arg(name).arg(value.to_string());
            }
        }
    }
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| program.cannot_start(&error))?;
    Ok((child, port))
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| Ok(listener.local_addr()?.port()))
        .map_err(|error| failed(format!("find a free port: {error}")))
}

/// The next line that is JSON of this form; `None` when there will be no more.
async fn line_of<T: serde::de::DeserializeOwned>(
    lines: &mut Lines<BufReader<ChildStdout>>,
) -> Option<T> {
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(value) = serde_json::from_str(&line) {
            return Some(value);
        }
    }
    None
}

/// Reads what nobody wants, so that the writer never waits.
fn discard(mut from: ChildStdout) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    })
}

fn keep_tail(child: &mut Child) -> Tail {
    const LINES: usize = 400;
    let tail = Tail::default();
    if let Some(stderr) = child.stderr.take() {
        let tail = Arc::clone(&tail);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                if tail.len() == LINES {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
        });
    }
    tail
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn timings_are_the_servers_own() {
        let answer = r#"{"content":"x","timings":{"cache_n":0,"prompt_n":32,"prompt_ms":100.5,
            "prompt_per_second":318.4,"predicted_n":3,"predicted_ms":20.0,
            "predicted_per_second":103.9}}"#;
        let Completion { timings } = serde_json::from_str(answer).unwrap();
        assert_eq!((timings.prompt_n, timings.predicted_n), (32, 3));
        assert_eq!(timings.first(), Duration::from_micros(100_500));
        assert_eq!(timings.rest(), Duration::from_millis(20));
        assert!(serde_json::from_str::<Completion>(r#"{"content":"x"}"#).is_err());
    }

    #[test]
    fn a_program_is_told_by_its_name() {
        let is_python = |path: &str| matches!(Program::named(Path::new(path)), Program::Python(_));
        assert!(is_python("peer/bin/python") && is_python("/usr/bin/python3.11"));
        assert!(!is_python("llama-server") && !is_python("/opt/python/llama-server"));
    }

    #[tokio::test]
    async fn a_peer_that_is_none_is_told_with_what_to_do() {
        let asked = Asked {
            file: "none.gguf".into(),
            threads: 1,
            context: 256,
        };
        let missing = Program::Server("/nowhere/llama-server".into());
        let error = Peer::start(&missing, &asked).await.err().unwrap();
        assert!(error.message.contains("/nowhere/llama-server"), "{error}");
        assert!(error.hint.unwrap().contains("xllamacpp"));
        for missing in ["/nowhere/llama-server", "/nowhere/python3"] {
            let error = Program::find(Some(Path::new(missing))).await.err().unwrap();
            assert!(error.message.contains(missing), "{error}");
        }
        // A Python that does not find the package ends as `false` does.
        let folder = tempfile::tempdir().unwrap();
        let python = folder.path().join("python3");
        std::os::unix::fs::symlink("/bin/false", &python).unwrap();
        let error = Program::find(Some(&python)).await.err().unwrap();
        assert!(error.message.contains("no package xllamacpp"), "{error}");
        let found = Program::find(Some(Path::new("/bin/true"))).await.unwrap();
        assert_eq!(found, Program::Server("/bin/true".into()));
    }
}
