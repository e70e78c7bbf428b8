//! The Hugging Face hub through `hf-hub`: its cache layout, its settings, resumed downloads.
//!
//! `hf-hub` 0.5 has no timeouts, keeps downloading after its future is dropped, and may panic
//! on an odd answer. So a short probe comes first, every download runs on a runtime of its
//! own that ends with it, and a watch gives up on one that stands still.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hf_hub::api::tokio::{Api, ApiBuilder, ApiError, ApiRepo, Progress as HubProgress};
use hf_hub::{Cache, Repo, RepoType};
use tokio::sync::{Mutex, oneshot};

use crate::card::is_sha256;
use crate::progress::Meter;
use crate::pull::{Context, Origin, Staged, StagedFile};
use crate::{HubSource, ModelCard, PullErrorKind, SourceError, StoreOptions};

/// How long a hub that cannot be reached may cost, and for how long that is remembered.
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(5);
const REMEMBER: Duration = Duration::from_secs(600);

/// A download that stands still for this long has failed.
const STALL: Duration = Duration::from_secs(60);

/// A broken connection is resumed this many times.
const RETRIES: u32 = 3;

/// Downloads are fetched, and resumed, in chunks of this many bytes, some at a time.
const CHUNK: usize = 8 << 20;
const AT_ONCE: usize = 4;

/// How this user reaches the hub.
pub(crate) struct Hub {
    endpoint: String,
    token: Option<String>,
    cache: Option<PathBuf>,
    offline: bool,
    /// When the last probe failed, and why. The lock is held while probing: pulls that begin
    /// together pay for one probe.
    down: Mutex<Option<(Instant, String)>>,
}

impl Hub {
    /// The options win over the environment variables of the Hugging Face tools.
    pub(crate) fn new(options: &StoreOptions, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |key: &str| env(key).filter(|value| !value.trim().is_empty());
        let under = |key: &str, below: &str| set(key).map(|dir| PathBuf::from(dir).join(below));
        let home = under("HF_HOME", "")
            .or_else(|| under("XDG_CACHE_HOME", "huggingface"))
            .or_else(|| under("HOME", ".cache/huggingface"));
        let cache = under("HF_HUB_CACHE", "")
            .or_else(|| under("HUGGINGFACE_HUB_CACHE", ""))
            .or_else(|| home.as_ref().map(|home| home.join("hub")));
        let token_file = under("HF_TOKEN_PATH", "").or_else(|| home.map(|home| home.join("token")));
        let token = options
            .hub_token
            .clone()
            .or_else(|| set("HF_TOKEN"))
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| token_file.and_then(|file| std::fs::read_to_string(file).ok()))
            .map(|token| token.trim().to_string())
            .filter(|token| !token.is_empty());
        let endpoint = options
            .hub_endpoint
            .clone()
            .or_else(|| set("HF_ENDPOINT"))
            .unwrap_or_else(|| "https://huggingface.co".into());
        let yes = ["1", "ON", "YES", "TRUE"];
        Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            token,
            cache,
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|v| yes.contains(&v.to_uppercase().as_str())),
            down: Mutex::default(),
        }
    }

    /// The model's files in the hub's cache, where other tools may have put them.
    pub(crate) fn cached(
        &self,
        source: &HubSource,
        card: &ModelCard,
    ) -> Result<Staged, SourceError> {
        let cache = self.cache.clone().ok_or(SourceError::Absent)?;
        let files = wanted(source, card)
            .map(|wanted| find_cached(&cache, source, &wanted))
            .collect::<Option<Vec<_>>>();
        files
            .map(|files| Staged { files })
            .ok_or(SourceError::Absent)
    }

    /// Downloads the model's files into the hub's cache.
    pub(crate) async fn fetch(
        &self,
        source: &HubSource,
        context: &Context,
    ) -> Result<Staged, SourceError> {
        if self.offline {
            return Err(SourceError::Skipped("HF_HUB_OFFLINE is set".into()));
        }
        let Some(cache) = self.cache.clone() else {
            return Err(SourceError::Skipped(
                "no home folder for the hub's cache".into(),
            ));
        };
        self.probe().await?;
        let job = Job {
            endpoint: self.endpoint.clone(),
            token: self.token.clone(),
            cache,
            wanted: wanted(source, &context.card).collect(),
            source: source.clone(),
            meter: context.meter.clone(),
        };
        on_own_runtime(Arc::clone(&context.lock), job.run()).await
    }

    /// Whether anything answers at the endpoint; any answer will do.
    async fn probe(&self) -> Result<(), SourceError> {
        let mut down = self.down.lock().await;
        if let Some((_, reason)) = down.as_ref().filter(|(when, _)| when.elapsed() < REMEMBER) {
            return Err(self.unreachable(reason.clone()));
        }
        *down = match ask(&self.endpoint).await {
            Ok(()) => None,
            Err(error) => Some((Instant::now(), root_cause(&error))),
        };
        match down.as_ref() {
            None => Ok(()),
            Some((_, reason)) => Err(self.unreachable(reason.clone())),
        }
    }

    fn unreachable(&self, reason: String) -> SourceError {
        SourceError::Unreachable {
            endpoint: self.endpoint.clone(),
            reason,
        }
    }
}

async fn ask(endpoint: &str) -> Result<(), reqwest::Error> {
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .timeout(ANSWER)
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    client.head(endpoint).send().await.map(|_| ())
}

/// One file to get from the hub.
struct Wanted {
    /// Its name under the model's folder.
    file: String,
    /// Its path in the repository.
    path: String,
    /// Length and sha256, where the hub must hold the card's bytes.
    expected: Option<(u64, String)>,
}

fn wanted(source: &HubSource, card: &ModelCard) -> impl Iterator<Item = Wanted> {
    let digest = |file: &crate::FileCard| (file.bytes, file.sha256.clone());
    let weights = Wanted {
        file: card.file.file.clone(),
        path: source.file.clone(),
        expected: source.same_bytes.then(|| digest(&card.file)),
    };
    let extra = card.extra.iter().map(move |file| Wanted {
        file: file.file.clone(),
        path: file.file.clone(),
        expected: Some(digest(file)),
    });
    std::iter::once(weights).chain(extra.collect::<Vec<_>>())
}

fn repo_of(source: &HubSource) -> Repo {
    Repo::with_revision(
        source.repo.clone(),
        RepoType::Model,
        source.revision.clone(),
    )
}

/// A cached file whose right hash is known: the card's, or the one that names its blob.
fn find_cached(cache: &Path, source: &HubSource, wanted: &Wanted) -> Option<StagedFile> {
    let repo = repo_of(source);
    let folder = cache.join(repo.folder_name());
    let blob = wanted
        .expected
        .as_ref()
        .map(|(_, sha256)| folder.join("blobs").join(sha256));
    let snapshot = folder
        .join("snapshots")
        .join(&source.revision)
        .join(&wanted.path);
    let cached = Cache::new(cache.to_path_buf()).repo(repo);
    let path = [blob, cached.get(&wanted.path), Some(snapshot)]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())?;
    let (bytes, sha256) = match &wanted.expected {
        Some((bytes, sha256)) => (*bytes, sha256.clone()),
        None => {
            let blob = std::fs::canonicalize(&path).ok()?;
            let name = blob.file_name()?.to_str().filter(|name| is_sha256(name))?;
            (std::fs::metadata(&blob).ok()?.len(), name.to_string())
        }
    };
    // Another file under this name, of another revision: the hub has the right one.
    (std::fs::metadata(&path).ok()?.len() == bytes).then(|| StagedFile {
        file: wanted.file.clone(),
        path,
        bytes,
        sha256,
        origin: Origin::HubCache,
    })
}

/// One download with all it needs, to be run away from the caller's runtime.
struct Job {
    endpoint: String,
    token: Option<String>,
    cache: PathBuf,
    wanted: Vec<Wanted>,
    source: HubSource,
    meter: Meter,
}

/// What the hub says of a file.
struct Remote {
    wanted: Wanted,
    bytes: u64,
    sha256: String,
    blob: PathBuf,
}

impl Job {
    async fn run(self) -> Result<Staged, SourceError> {
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_chunk_size(Some(CHUNK))
            .with_max_files(AT_ONCE)
            .build()
            .map_err(|error| self.refused(&error, ""))?;
        let repo = api.repo(repo_of(&self.source));
        let remotes = self.describe(&api, &repo).await?;
        self.check_space(&remotes)?;
        let mut staged = Vec::new();
        let mut before = 0;
        for remote in remotes {
            let path = match remote.blob.is_file() {
                true => remote.blob.clone(),
                false => self.download(&repo, &remote, before).await?,
            };
            before += remote.bytes;
            self.meter.at(before);
            staged.push(StagedFile {
                file: remote.wanted.file,
                path,
                bytes: remote.bytes,
                sha256: remote.sha256,
                origin: Origin::HubCache,
            });
        }
        Ok(Staged { files: staged })
    }

    /// Lengths and hashes before any byte: a file that cannot be right is not downloaded.
    async fn describe(&self, api: &Api, repo: &ApiRepo) -> Result<Vec<Remote>, SourceError> {
        let mut remotes = Vec::new();
        for wanted in &self.wanted {
            let url = repo.url(&wanted.path);
            let metadata = tokio::time::timeout(Duration::from_secs(30), api.metadata(&url))
                .await
                .map_err(|_| SourceError::Hub("the hub did not answer in 30 seconds".into()))?
                .map_err(|error| self.refused(&error, &wanted.path))?;
            remotes.push(self.judge(wanted, metadata.etag(), metadata.size() as u64)?);
        }
        self.meter
            .set_total(remotes.iter().map(|remote| remote.bytes).sum());
        Ok(remotes)
    }

    fn judge(&self, wanted: &Wanted, etag: &str, bytes: u64) -> Result<Remote, SourceError> {
        // The tag becomes a file name in the cache, so it must be nothing but a digest.
        if !etag.bytes().all(|c| c.is_ascii_hexdigit()) || etag.len() < 32 {
            return Err(SourceError::Hub(format!(
                "the hub gave `{}` an entity tag that is no digest",
                wanted.path
            )));
        }
        let (expected_bytes, sha256) = match &wanted.expected {
            Some((bytes, sha256)) => (*bytes, sha256.clone()),
            None if is_sha256(etag) => (bytes, etag.to_string()),
            None => {
                return Err(SourceError::Hub(format!(
                    "the hub gave no sha256 for `{}`",
                    wanted.path
                )));
            }
        };
        if bytes != expected_bytes || (is_sha256(etag) && etag != sha256) {
            return Err(SourceError::Hub(format!(
                "the hub now holds another `{}` ({bytes} bytes, tag {etag})",
                wanted.path
            )));
        }
        let folder = self.cache.join(repo_of(&self.source).folder_name());
        Ok(Remote {
            wanted: Wanted {
                file: wanted.file.clone(),
                path: wanted.path.clone(),
                expected: wanted.expected.clone(),
            },
            bytes,
            sha256,
            blob: folder.join("blobs").join(etag),
        })
    }

    /// The cache's disk may not be the model folder's: a full one leaves the other sources.
    fn check_space(&self, remotes: &[Remote]) -> Result<(), SourceError> {
        std::fs::create_dir_all(&self.cache).map_err(|error| self.cache_failed(error))?;
        let missing = remotes.iter().filter(|remote| !remote.blob.is_file());
        let needed = missing.map(|remote| remote.bytes).sum();
        let free = fs4::available_space(&self.cache).map_err(|error| self.cache_failed(error))?;
        match free < needed {
            true => Err(SourceError::Hub(
                PullErrorKind::DiskFull {
                    dir: self.cache.clone(),
                    needed,
                    free,
                }
                .to_string(),
            )),
            false => Ok(()),
        }
    }

    async fn download(
        &self,
        repo: &ApiRepo,
        remote: &Remote,
        before: u64,
    ) -> Result<PathBuf, SourceError> {
        let mut retries = 0;
        loop {
            let position = Position::new(self.meter.clone(), before);
            let download = repo.download_with_progress(&remote.wanted.path, position.clone());
            let error = tokio::select! {
                result = download => match result {
                    Ok(path) => return Ok(path),
                    Err(error) => error,
                },
                () = position.stalled() => {
                    return Err(SourceError::Hub("the download stands still".into()));
                }
            };
            if retries == RETRIES || !is_transient(&error) {
                return Err(self.refused(&error, &remote.wanted.path));
            }
            retries += 1;
            tracing::info!(retries, error = %error, "hub download resumed");
            tokio::time::sleep(Duration::from_millis(250) * 2u32.pow(retries)).await;
        }
    }

    /// A refusal in words that say what to do.
    fn refused(&self, error: &ApiError, path: &str) -> SourceError {
        let repo = &self.source.repo;
        let text = match error {
            ApiError::RequestError(request) => match request.status().map(|s| s.as_u16()) {
                Some(404) => format!("`{repo}` has no file `{path}` on the hub"),
                Some(401 | 403) => {
                    format!("the hub refuses `{repo}`; accept its terms there and set HF_TOKEN")
                }
                Some(429) => "the hub asks for fewer requests; try later".into(),
                Some(status) => format!("the hub answered {status}"),
                None => format!("the connection broke ({})", root_cause(request)),
            },
            ApiError::IoError(error) => {
                return self.cache_failed(std::io::Error::new(error.kind(), error.to_string()));
            }
            ApiError::LockAcquisition(_) => "another program downloads the same file".into(),
            other => format!("the hub's answer could not be used ({other})"),
        };
        SourceError::Hub(text)
    }

    fn cache_failed(&self, error: std::io::Error) -> SourceError {
        SourceError::Hub(format!(
            "its cache `{}` could not be written ({error})",
            self.cache.display()
        ))
    }
}

fn is_transient(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(request) => request.status().is_none_or(|s| s.is_server_error()),
        _ => false,
    }
}

/// Counts what `hf-hub` reports.
#[derive(Clone)]
struct Position {
    meter: Meter,
    before: u64,
    done: Arc<AtomicU64>,
}

impl Position {
    fn new(meter: Meter, before: u64) -> Self {
        Self {
            meter,
            before,
            done: Arc::default(),
        }
    }

    /// Ends when nothing has come for too long.
    async fn stalled(&self) {
        let mut last = self.done.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(STALL).await;
            let now = self.done.load(Ordering::Relaxed);
            if now == last {
                return;
            }
            last = now;
        }
    }
}

impl HubProgress for Position {
    async fn init(&mut self, _size: usize, _filename: &str) {}

    async fn update(&mut self, size: usize) {
        let done = self.done.fetch_add(size as u64, Ordering::Relaxed) + size as u64;
        self.meter.at(self.before + done);
    }

    async fn finish(&mut self) {}
}

/// Runs `work` on a thread and a runtime that end with it, and with the caller: chunks that
/// `hf-hub` has spawned stop too, and a panic in it is an error here.
async fn on_own_runtime<T: Send + 'static>(
    lock: Arc<File>,
    work: impl Future<Output = Result<T, SourceError>> + Send + 'static,
) -> Result<T, SourceError> {
    let (result_sender, result) = oneshot::channel();
    let (_alive, caller_gone) = oneshot::channel::<()>();
    let thread = move || {
        let _held = lock;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            tokio::select! {
                result = work => { let _ = result_sender.send(result); }
                _ = caller_gone => {}
            }
        });
        // Writes that began are finished before the lock is let go.
        runtime.shutdown_timeout(Duration::from_secs(5));
    };
    std::thread::Builder::new()
        .name("hub".into())
        .spawn(thread)
        .map_err(|_| PullErrorKind::Interrupted)?;
    match result.await {
        Ok(result) => result,
        Err(_) => Err(SourceError::Hub(
            "the hub's answer could not be used".into(),
        )),
    }
}

/// The innermost cause, which says more than "error sending request", without the address.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn hub(pairs: &[(&str, &str)]) -> Hub {
        let options = StoreOptions {
            models_dir: "/nowhere".into(),
            offline: false,
            hub_endpoint: None,
            hub_token: None,
            python: None,
            extra_catalogue: None,
        };
        let env = |key: &str| {
            let pair = pairs.iter().find(|(name, _)| *name == key);
            pair.map(|(_, value)| value.to_string())
        };
        Hub::new(&options, &env)
    }

    #[test]
    fn the_variables_of_the_hugging_face_tools_are_honoured() {
        let plain = hub(&[("HOME", "/h")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(
            plain.cache.as_deref(),
            Some(Path::new("/h/.cache/huggingface/hub"))
        );
        assert!(!plain.offline);

        let set = hub(&[
            ("HOME", "/h"),
            ("HF_HOME", "/hf"),
            ("HF_ENDPOINT", "http://mirror/"),
            ("HF_TOKEN", " secret\n"),
            ("HF_HUB_OFFLINE", "true"),
        ]);
        assert_eq!(set.endpoint, "http://mirror");
        assert_eq!(set.cache.as_deref(), Some(Path::new("/hf/hub")));
        assert_eq!(set.token.as_deref(), Some("secret"));
        assert!(set.offline);

        let cache = hub(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]).cache;
        assert_eq!(cache.as_deref(), Some(Path::new("/c")));
        assert_eq!(hub(&[]).cache, None);
    }
}
