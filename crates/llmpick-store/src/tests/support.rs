//! A home folder, cards, wheels, a hub and a pip for one test.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::{Progress, PullEvent, Store, StoreOptions};

/// A machine of its own: home, model cache, cards.
pub(super) struct Home {
    pub(super) dir: tempfile::TempDir,
    pub(super) options: StoreOptions,
}

impl Home {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("cards")).unwrap();
        let options = StoreOptions {
            models_dir: at("models"),
            offline: false,
            // Nothing listens there: a test that means a hub names one.
            hub_endpoint: Some("http://127.0.0.1:9".into()),
            hub_token: None,
            python: Some("no-such-python".into()),
            extra_catalogue: Some(at("cards")),
        };
        Self { dir, options }
    }

    pub(super) fn store(&self) -> Store {
        self.store_with(&[])
    }

    pub(super) fn store_with(&self, pairs: &[(&str, &str)]) -> Store {
        let hub_home = self.hub_home().display().to_string();
        let env = |key: &str| match key {
            "HF_HOME" => Some(hub_home.clone()),
            _ => pairs
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| v.to_string()),
        };
        Store::open_with(self.options.clone(), &env).unwrap()
    }

    pub(super) fn hub_home(&self) -> PathBuf {
        self.dir.path().join("huggingface")
    }

    pub(super) fn model_dir(&self, name: &str) -> PathBuf {
        self.options.models_dir.join(name)
    }

    pub(super) fn installed_file(&self, name: &str) -> PathBuf {
        self.model_dir(name).join(format!("{name}.gguf"))
    }

    /// Writes a card of one file; `sources` are its `[[source]]` tables.
    pub(super) fn card(&self, name: &str, content: &[u8], sources: &str) {
        self.card_text(name, content.len() as u64, &sha256(content), "", sources);
    }

    pub(super) fn card_text(&self, name: &str, bytes: u64, sha: &str, more: &str, sources: &str) {
        let text = format!(
            "format = 1\nname = \"{name}\"\ndescription = \"a test\"\nkind = \"generate\"\n\
             architecture = \"llama\"\nquantisation = \"none\"\nparameters = 1\n\
             context_tokens = 8\nlicence = \"none\"\ninstruct = false\ntemplate = \"none\"\n\
             bytes = {bytes}\nsha256 = \"{sha}\"\n{more}\n{sources}"
        );
        fs::write(
            self.dir.path().join("cards").join(format!("{name}.toml")),
            text,
        )
        .unwrap();
    }

    /// A `python3` that is a shell script; `body` sees `$package` and `$out`.
    pub(super) fn python(&mut self, body: &str) {
        let path = self.dir.path().join("python3");
        let script = format!(
            "#!/bin/sh\nwheels='{home}/wheels'\nlog='{home}/pip.log'\n\
             while [ $# -gt 1 ]; do [ \"$1\" = -d ] && out=\"$2\"; shift; done\n\
             package=\"$1\"\necho \"$package\" >> \"$log\"\n{body}\n",
            home = self.dir.path().display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.options.python = Some(path.display().to_string());
    }

    /// The usual pip: gives the wheel that was put there.
    pub(super) fn honest_python(&mut self) {
        self.python("cp \"$wheels/$package.whl\" \"$out/\"");
    }

    pub(super) fn pip_log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.path().join("pip.log")).unwrap_or_default();
        log.lines().map(str::to_string).collect()
    }

    pub(super) fn wheel(&self, package: &str, members: &[(&str, &[u8], bool)]) -> PathBuf {
        let dir = self.dir.path().join("wheels");
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("{package}.whl"));
        fs::write(&path, zip(members)).unwrap();
        path
    }
}

/// A zip file; each member is name, content, and whether it is deflated.
fn zip(members: &[(&str, &[u8], bool)]) -> Vec<u8> {
    let (mut body, mut directory) = (Vec::new(), Vec::new());
    for (name, content, deflated) in members {
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let stored = match deflated {
            false => content.to_vec(),
            true => {
                let mut encoder =
                    flate2::write::DeflateEncoder::new(Vec::new(), Default::default());
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
        };
        let mut common = Vec::new();
        let method: u16 = if *deflated { 8 } else { 0 };
        for short in [20_u16, 0, method, 0, 0x21] {
            common.extend(short.to_le_bytes());
        }
        for long in [crc.sum(), stored.len() as u32, content.len() as u32] {
            common.extend(long.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());
        common.extend(0_u16.to_le_bytes());
        let offset = body.len() as u32;
        body.extend(0x0403_4b50_u32.to_le_bytes());
        body.extend(&common);
        body.extend(name.as_bytes());
        body.extend(&stored);
        directory.extend(0x0201_4b50_u32.to_le_bytes());
        directory.extend(20_u16.to_le_bytes());
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (offset, size) = (body.len() as u32, directory.len() as u32);
    body.extend(directory);
    body.extend(0x0605_4b50_u32.to_le_bytes());
    body.extend([0; 4]);
    for _ in 0..2 {
        body.extend((members.len() as u16).to_le_bytes());
    }
    body.extend(size.to_le_bytes());
    body.extend(offset.to_le_bytes());
    body.extend([0; 2]);
    body
}

pub(super) fn sha256(content: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(content) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// Bytes that do not repeat, the same for the same seed.
pub(super) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Keeps the events of a pull.
#[derive(Default)]
pub(super) struct Recorder(Mutex<Vec<PullEvent>>);

impl Progress for Recorder {
    fn event(&self, event: PullEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Recorder {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn events(&self) -> Vec<PullEvent> {
        self.0.lock().unwrap().clone()
    }

    /// Panics if the bytes ever fall; returns the last position.
    pub(super) fn bytes(&self) -> Option<(u64, u64)> {
        let mut last = None;
        for event in self.events() {
            if let PullEvent::Bytes { done, total } = event {
                assert!(
                    last.is_none_or(|(before, _)| before < done),
                    "bytes fell to {done}"
                );
                assert!(done <= total);
                last = Some((done, total));
            }
        }
        last
    }

    pub(super) fn failures(&self) -> Vec<String> {
        let events = self.events().into_iter();
        let reasons = events.filter_map(|event| match event {
            PullEvent::SourceFailed { reason, .. } => Some(reason),
            _ => None,
        });
        reasons.collect()
    }
}

/// A hub on loopback: `resolve` with the hub's headers, a redirect to another host, ranges.
pub(super) struct FakeHub {
    pub(super) endpoint: String,
    pub(super) state: Arc<HubState>,
}

#[derive(Default)]
pub(super) struct HubState {
    /// `OWNER/NAME/resolve/REVISION/FILE` and its content and tag.
    files: Mutex<HashMap<String, (Vec<u8>, String)>>,
    /// Requests as `METHOD PATH RANGE`, and the last authorization.
    pub(super) log: Mutex<Vec<String>>,
    pub(super) authorization: Mutex<Option<String>>,
    pub(super) connections: AtomicUsize,
    /// Bodies of ranges that start here or later are cut in the middle.
    pub(super) cut_from: Mutex<Option<u64>>,
    /// Bodies never come.
    pub(super) hang: AtomicBool,
    /// Redirects lack their target.
    pub(super) lost: AtomicBool,
}

impl FakeHub {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(HubState::default());
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::Relaxed);
                let state = Arc::clone(&serving);
                tokio::spawn(async move { answer(stream, port, &state).await });
            }
        });
        Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            state,
        }
    }

    pub(super) fn put(&self, path: &str, content: &[u8], tag: &str) {
        let entry = (content.to_vec(), tag.to_string());
        self.state.files.lock().unwrap().insert(path.into(), entry);
    }

    /// Ranges of content asked for, without the one-byte looks at the length.
    pub(super) fn ranges(&self) -> Vec<String> {
        let log = self.state.log.lock().unwrap();
        let ranges = log
            .iter()
            .filter(|l| l.contains("/cdn/") && !l.ends_with("bytes=0-0"));
        ranges
            .map(|l| l.rsplit(' ').next().unwrap().to_string())
            .collect()
    }
}

/// One request, then the connection is closed. Errors are the client's going away.
async fn answer(mut stream: TcpStream, port: u16, state: &HubState) -> Option<()> {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    let request = lines.next_line().await.ok()??;
    let mut range = None;
    while let Some(line) = lines
        .next_line()
        .await
        .ok()?
        .filter(|line| !line.is_empty())
    {
        let (key, value) = line.split_once(": ")?;
        match key.to_lowercase().as_str() {
            "range" => range = Some(value.to_string()),
            "authorization" => *state.authorization.lock().unwrap() = Some(value.into()),
            _ => {}
        }
    }
    let (method, rest) = request.split_once(' ')?;
    let path = rest.split_once(' ')?.0.to_string();
    let entry = format!("{method} {path} {}", range.clone().unwrap_or_default());
    state.log.lock().unwrap().push(entry);
    let plain = "connection: close\r\ncontent-length: 0\r\n";
    let key = path
        .trim_start_matches("/cdn")
        .trim_start_matches('/')
        .to_string();
    let found = state.files.lock().unwrap().get(&key).cloned();
    let head = match (path.as_str(), found) {
        ("/", _) => format!("HTTP/1.1 200 OK\r\n{plain}\r\n"),
        (_, None) => format!("HTTP/1.1 404 Not Found\r\n{plain}\r\n"),
        (path, Some((content, tag))) if path.starts_with("/cdn/") => {
            return send_body(&mut writer, &content, &tag, &range?, state).await;
        }
        (_, Some((_, tag))) => {
            // Another host name, as the hub's content network is another host.
            let location = match state.lost.load(Ordering::Relaxed) {
                true => String::new(),
                false => format!("location: http://localhost:{port}/cdn/{key}\r\n"),
            };
            format!(
                "HTTP/1.1 302 Found\r\n{plain}{location}x-repo-commit: c0ffee\r\n\
                 x-linked-etag: \"{tag}\"\r\netag: \"other\"\r\n\r\n"
            )
        }
    };
    writer.write_all(head.as_bytes()).await.ok()
}

async fn send_body(
    writer: &mut (impl AsyncWriteExt + Unpin),
    content: &[u8],
    tag: &str,
    range: &str,
    state: &HubState,
) -> Option<()> {
    let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end): (usize, usize) = (start.parse().ok()?, end.parse().ok()?);
    let end = end.min(content.len() - 1);
    let body = content.get(start..=end)?;
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nconnection: close\r\netag: \"{tag}\"\r\n\
         content-range: bytes {start}-{end}/{}\r\ncontent-length: {}\r\n\r\n",
        content.len(),
        body.len()
    );
    writer.write_all(head.as_bytes()).await.ok()?;
    if body.len() > 1 && state.hang.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    let cut = state
        .cut_from
        .lock()
        .unwrap()
        .is_some_and(|from| start as u64 >= from);
    if cut {
        writer.write_all(body.get(..body.len() / 2)?).await.ok()?;
        // Lets the earlier chunks end first, as in a download that ran for a while.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        return None;
    }
    writer.write_all(body).await.ok()
}

pub(super) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// Everything an error says, cause by cause.
pub(super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        write!(text, ": {inner}").unwrap();
        cause = inner.source();
    }
    text
}
