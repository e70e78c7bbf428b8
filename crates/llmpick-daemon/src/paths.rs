//! Where things are kept: the XDG folders, and the names inside them.

use camino::Utf8PathBuf;
use etcetera::BaseStrategy;

/// The folders of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The home folder, what `~/` means in settings.
    pub home: Utf8PathBuf,
    /// Settings: `$XDG_CONFIG_HOME/llmpick`.
    pub config: Utf8PathBuf,
    /// What must not be lost: `$XDG_DATA_HOME/llmpick`.
    pub data: Utf8PathBuf,
    /// What can be fetched again: `$XDG_CACHE_HOME/llmpick`.
    pub cache: Utf8PathBuf,
    /// History and the like: `$XDG_STATE_HOME/llmpick`.
    pub state: Utf8PathBuf,
    /// `$XDG_RUNTIME_DIR`, where the machine has one.
    pub runtime: Option<Utf8PathBuf>,
}

impl Paths {
    /// The folders as the environment names them; the error completes "find the home folder".
    pub fn of_user() -> Result<Self, String> {
        let base = etcetera::base_strategy::Xdg::new().map_err(|error| error.to_string())?;
        let utf8 = |path: std::path::PathBuf| {
            Utf8PathBuf::from_path_buf(path)
                .map_err(|path| format!("`{}` is not UTF-8", path.display()))
        };
        let home = utf8(base.home_dir().to_path_buf())?;
        let state = base.state_dir().unwrap_or_else(|| base.data_dir());
        Ok(Self {
            home,
            config: utf8(base.config_dir())?.join("llmpick"),
            data: utf8(base.data_dir())?.join("llmpick"),
            cache: utf8(base.cache_dir())?.join("llmpick"),
            state: utf8(state)?.join("llmpick"),
            runtime: base.runtime_dir().map(utf8).transpose()?,
        })
    }

    /// All of it below one folder, for tests and portable installations.
    pub fn below(folder: impl Into<Utf8PathBuf>) -> Self {
        let home = folder.into();
        Self {
            config: home.join("config"),
            data: home.join("data"),
            cache: home.join("cache"),
            state: home.join("state"),
            runtime: None,
            home,
        }
    }

    /// The user's settings file.
    pub fn config_file(&self) -> Utf8PathBuf {
        self.config.join("llmpick.toml")
    }

    /// Decisions, costs, scores.
    pub fn ledger(&self) -> Utf8PathBuf {
        self.data.join("ledger.db")
    }

    /// Snapshots of what routers have learnt.
    pub fn routers(&self) -> Utf8PathBuf {
        self.data.join("routers")
    }

    /// The user's own plugins.
    pub fn plugins(&self) -> Utf8PathBuf {
        self.data.join("plugins")
    }

    /// Weights.
    pub fn models(&self) -> Utf8PathBuf {
        self.cache.join("models")
    }

    /// What was typed into the REPL.
    pub fn history(&self) -> Utf8PathBuf {
        self.state.join("history.txt")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> Utf8PathBuf {
        match &self.runtime {
            Some(runtime) => runtime.join("llmpick.sock"),
            None => self.state.join("llmpick.sock"),
        }
    }

    /// Where plugins are looked for after the folders of the settings: the user's, then
    /// the ones beside the program.
    pub fn plugin_folders(&self) -> Vec<Utf8PathBuf> {
        let mut folders = vec![self.plugins()];
        folders.extend(program_plugins());
        folders
    }
}

/// The folders of the plugins that come with the program.
pub(crate) fn program_plugins() -> Vec<Utf8PathBuf> {
    let program = std::env::current_exe().ok();
    let program = program.and_then(|path| Utf8PathBuf::from_path_buf(path).ok());
    let Some(folder) = program.as_ref().and_then(|path| path.parent()) else {
        return Vec::new();
    };
    let prefix = folder.parent();
    let installed = prefix.map(|prefix| prefix.join("lib/llmpick/plugins"));
    [Some(folder.join("plugins")), installed]
        .into_iter()
        .flatten()
        .collect()
}
