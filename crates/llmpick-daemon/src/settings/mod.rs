//! Settings: what the layers say, checked once, and what the program may rely on after that.
//!
//! `default-config.toml` is the reference for people and the lowest layer for the
//! program, so the two cannot disagree. Every value keeps its origin: an error names the
//! file and the line, and [`Settings::explain`] answers where a value came from.

mod check;
pub(crate) use check::read_secret;
mod keys;
mod layers;

use std::net::SocketAddr;
use std::time::Duration;

use camino::Utf8PathBuf;
use llmpick_core::{ArmId, Mode, NanoDollars, Sampling, Score};
use llmpick_dispatch::ContextFrom;
use llmpick_engine::{DeviceChoice, KvType, Rounding};
use llmpick_plugin_host::Isolation;
use llmpick_remote::{RemoteSchedulerOptions, Secret};

pub use layers::{Origin, SettingsFile};

use crate::Paths;

/// The commented reference, as it is built in.
pub const DEFAULT_CONFIG: &str = include_str!("default-config.toml");

/// What [`Settings::load`] reads.
#[derive(Clone, Debug, Default)]
pub struct SettingsSources {
    /// A file above the system's, the user's and the project's; it has to be there.
    pub file: Option<Utf8PathBuf>,
    /// `key=value` pairs of flags, for example `("router.plugin", "pickllm")`.
    pub overrides: Vec<(String, String)>,
    /// The environment; only `LLMPICK_*` is looked at, and the variables that
    /// `api_key_env` names.
    pub environment: Vec<(String, String)>,
    /// The folder whose `llmpick.toml` is the project's.
    pub directory: Utf8PathBuf,
    /// The system's file.
    pub system_file: Utf8PathBuf,
}

/// Everything the program may rely on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where things are kept.
    pub paths: Paths,
    /// Local models that may answer, names or paths, in order.
    pub pool: Vec<String>,
    /// Who chooses, and how.
    pub router: RouterSettings,
    /// How plugins are treated.
    pub plugins: PluginSettings,
    /// What may be spent.
    pub budget: BudgetSettings,
    /// This machine.
    pub compute: ComputeSettings,
    /// Where models come from.
    pub store: StoreSettings,
    /// The memory of decisions.
    pub ledger: LedgerSettings,
    /// The daemon.
    pub server: ServerSettings,
    /// What the daemon draws for others.
    pub scheduler: SchedulerSettings,
    /// How the command chats.
    pub chat: ChatSettings,
    /// Remote arms.
    pub remotes: Vec<RemoteSettings>,
    merged: layers::Merged,
    files: Vec<SettingsFile>,
    sources: Kept,
}

/// Where the settings were read from, for reading them again. The environment may hold keys,
/// so it is not printed.
#[derive(Clone)]
struct Kept(SettingsSources);

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SettingsSources")
    }
}

/// `[router]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterSettings {
    /// Name or path of the plugin.
    pub plugin: String,
    /// JSON object for the plugin.
    pub config_json: String,
    /// Plugin folders, in order of preference.
    pub paths: Vec<Utf8PathBuf>,
    /// How the chosen arms work together.
    pub mode: Mode,
    /// Most arms per request, at least 1.
    pub max_arms: u32,
    /// What any_win accepts.
    pub accept_threshold: Score,
    /// How long the plugin may think.
    pub deadline: Duration,
    /// The seed of every decision, if one is fixed.
    pub seed: Option<u64>,
    /// Decide and record, but learn nothing.
    pub frozen: bool,
    /// A plugin that decides beside the first, without effect.
    pub shadow: Option<String>,
    /// What of a request is its context.
    pub context: ContextFrom,
    /// Who draws the set where the router gives only probabilities; `None` is this machine.
    pub scheduler: Option<RemoteSchedulerOptions>,
    /// The file with its key; read when the parts are put together.
    pub scheduler_key_file: Option<Utf8PathBuf>,
}

/// `[scheduler]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerSettings {
    /// Whether sets are drawn for others.
    pub enabled: bool,
    /// Calls running or waiting that make an arm full, at least 1.
    pub queue: u32,
    /// Failures in a row that make an arm down, at least 1.
    pub down_after: u32,
    /// How long it stays down after the last of them.
    pub cool_down: Duration,
    /// Most sessions held, at least 1.
    pub sessions: usize,
}

/// `[plugins]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginSettings {
    /// Where their code runs.
    pub isolation: Isolation,
    /// A changed file is refused until somebody trusts it.
    pub pin: bool,
    /// The daemon reloads the router when its file changes.
    pub watch: bool,
    /// Scorers that grade beside those built in: `LIBRARY[:SCORER][,KEY=VALUE]...`.
    pub scorers: Vec<String>,
}

/// `[budget]`.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetSettings {
    /// Long-term budget per request in dollars.
    pub per_request_usd: Option<f64>,
    /// The limit that is never passed.
    pub limit: Option<NanoDollars>,
    /// The window of that limit; without one it holds for ever.
    pub window: Option<Duration>,
}

/// `[compute]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ComputeSettings {
    /// Dollars per hour of this machine.
    pub usd_per_hour: f64,
    /// Threads of the engine.
    pub threads: Option<usize>,
    /// Most tokens of context.
    pub max_context: Option<u32>,
    /// Bytes that models may occupy.
    pub memory_limit: Option<u64>,
    /// How keys and values are kept.
    pub kv_cache: KvType,
    /// How finely quantised weights meet what is multiplied with them.
    pub activations: Rounding,
    /// Where models run.
    pub device: DeviceChoice,
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreSettings {
    /// Where models are kept.
    pub models_dir: Utf8PathBuf,
    /// No network for models.
    pub offline: bool,
    /// The Python for `pip download`.
    pub python: Option<String>,
    /// The hub to use.
    pub hub_endpoint: Option<String>,
}

/// `[ledger]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerSettings {
    /// The file.
    pub path: Utf8PathBuf,
    /// Keep the text of prompts.
    pub keep_prompts: bool,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSettings {
    /// The unix socket.
    pub socket: Utf8PathBuf,
    /// The TCP address, if one is wanted.
    pub tcp: Option<SocketAddr>,
    /// The file with the key of HTTP clients; read when serving begins.
    pub api_key_file: Option<Utf8PathBuf>,
    /// Most bytes of a request.
    pub body_limit: usize,
    /// Most requests at one time.
    pub max_requests: usize,
}

/// `[chat]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatSettings {
    /// The system message.
    pub system: Option<String>,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// How tokens are drawn; the seed is dispatch's.
    pub sampling: Sampling,
}

/// One `[[remote]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteSettings {
    /// The arm.
    pub name: ArmId,
    /// The address up to and with `/v1`, or `unix:/path`.
    pub base_url: String,
    /// The model's name at the provider.
    pub model: String,
    /// The key, if one is needed.
    pub api_key: Option<Secret>,
    /// Why there is no key although one was asked for; the arm is then unavailable.
    pub key_missing: Option<String>,
    /// Tokens of context.
    pub context_tokens: u32,
    /// Dollars per 10⁶ prompt tokens.
    pub input_usd_per_mtok: f64,
    /// Dollars per 10⁶ completion tokens.
    pub output_usd_per_mtok: f64,
    /// Longest silence.
    pub timeout: Duration,
    /// The provider takes `top_k`, `min_p` and `repeat_penalty`.
    pub extended_sampling: bool,
}

/// One setting, its value, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Dotted key.
    pub key: String,
    /// The value as TOML; `None` where there is neither a value nor a default.
    pub value: Option<String>,
    /// Which layer said so.
    pub origin: Origin,
    /// The variable that would set it.
    pub variable: String,
}

/// Why settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file could not be read.
    #[error("read `{path}`")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A file is no TOML.
    #[error("read {origin}: {message}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// What the parser says.
        message: String,
    },
    /// There is no such setting.
    #[error("{origin}: there is no setting `{key}`{}", hint(suggestion))]
    UnknownKey {
        /// What was written.
        key: String,
        /// Where.
        origin: Origin,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A value is of the wrong kind or out of range.
    #[error("{origin}: `{key}` {problem}")]
    Value {
        /// The setting.
        key: String,
        /// Where.
        origin: Origin,
        /// What is wrong, completing the sentence.
        problem: String,
    },
    /// A project's file says what only a user may say.
    #[error(
        "{origin}: `{key}` cannot be set by the file of a project, since a folder that was \
         copied from elsewhere could then run programs or read keys; set it in your own \
         llmpick.toml"
    )]
    NotInProject {
        /// The setting.
        key: String,
        /// Where.
        origin: Origin,
    },
    /// There is no home folder.
    #[error("find the home folder: {0}")]
    NoHome(String),
}

fn hint(suggestion: &Option<String>) -> String {
    suggestion
        .as_ref()
        .map(|name| format!("; did you mean `{name}`?"))
        .unwrap_or_default()
}

impl SettingsSources {
    /// What this process sees: its environment, its working directory, `/etc`.
    pub fn of_process() -> Self {
        let directory = std::env::current_dir()
            .ok()
            .and_then(|path| Utf8PathBuf::from_path_buf(path).ok())
            .unwrap_or_else(|| Utf8PathBuf::from("."));
        Self {
            file: None,
            overrides: Vec::new(),
            environment: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            directory,
            system_file: Utf8PathBuf::from("/etc/llmpick/llmpick.toml"),
        }
    }
}

impl Settings {
    /// Reads and checks every layer, with the paths of this user.
    pub fn load(sources: SettingsSources) -> Result<Self, SettingsError> {
        let paths = Paths::of_user().map_err(SettingsError::NoHome)?;
        Self::load_with(sources, paths)
    }

    /// The same with given paths.
    pub fn load_with(sources: SettingsSources, paths: Paths) -> Result<Self, SettingsError> {
        let (merged, files) = layers::merge(&sources, &paths)?;
        check::check(merged, files, paths, &sources)
    }

    /// Reads and checks every layer again: the files as they are now, under the environment and
    /// the flags of then.
    ///
    /// # Errors
    /// What is wrong in them, as at the start.
    pub fn reread(&self) -> Result<Self, SettingsError> {
        Self::load_with(self.sources.0.clone(), self.paths.clone())
    }

    /// The settings whose values differ, remotes and the router's own table included.
    pub(crate) fn differing(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (&self.merged.values, &other.merged.values);
        let keys: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        let value = |settings: &std::collections::BTreeMap<String, (toml::Value, Origin)>, key| {
            settings.get(key).map(|(value, _)| value.clone())
        };
        keys.into_iter()
            .filter(|key| value(ours, *key) != value(theirs, *key))
            .cloned()
            .collect()
    }

    /// One setting with its value and origin. A key without value and default is known too.
    pub fn explain(&self, key: &str) -> Result<Explained, SettingsError> {
        let known =
            keys::kind_of(keys::KEYS, key).is_some() || self.merged.values.contains_key(key);
        if !known {
            return Err(SettingsError::UnknownKey {
                key: key.to_owned(),
                origin: Origin::Flag,
                suggestion: keys::suggestion(keys::KEYS, key),
            });
        }
        let (value, origin) = match self.merged.values.get(key) {
            Some((value, origin)) => (Some(value.to_string()), origin.clone()),
            None => (None, Origin::Default),
        };
        Ok(Explained {
            key: key.to_owned(),
            value,
            origin,
            variable: layers::variable_name(key),
        })
    }

    /// Every setting, in the order of the reference, then the router's own table and the
    /// remotes. No secret is among them.
    pub fn explain_all(&self) -> Vec<Explained> {
        let plain = keys::KEYS.iter().map(|(key, _)| (*key).to_owned());
        let free = self
            .merged
            .values
            .keys()
            .filter(|key| keys::kind_of(keys::KEYS, key).is_none())
            .cloned();
        plain
            .chain(free)
            .filter_map(|key| self.explain(&key).ok())
            .collect()
    }

    /// The settings files that were looked for, lowest layer first.
    pub fn files(&self) -> &[SettingsFile] {
        &self.files
    }
}
