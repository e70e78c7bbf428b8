//! Turn merged layers into [`Settings`]: ranges, units, paths, keys from their files.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use llmpick_core::{ArmId, Mode, NanoDollars, Sampling, Score};
use llmpick_dispatch::ContextFrom;
use llmpick_engine::{DeviceChoice, KvType, Rounding};
use llmpick_plugin_host::Isolation;
use llmpick_remote::{RemoteSchedulerOptions, Secret};
use llmpick_store::names_weights;
use toml::Value;

use super::keys::ROUTER_CONFIG;
use super::layers::{Merged, Origin, SettingsFile};
use super::{
    BudgetSettings, ChatSettings, ComputeSettings, LedgerSettings, PluginSettings, RemoteSettings,
    RouterSettings, SchedulerSettings, ServerSettings, Settings, SettingsError, SettingsSources,
    StoreSettings,
};
use crate::Paths;

/// Checks everything; the first thing wrong is the error.
pub(super) fn check(
    merged: Merged,
    files: Vec<SettingsFile>,
    paths: Paths,
    sources: &SettingsSources,
) -> Result<Settings, SettingsError> {
    let reader = Reader {
        merged: &merged,
        paths: &paths,
        sources,
    };
    Ok(Settings {
        pool: reader.pool()?,
        router: reader.router()?,
        plugins: reader.plugins()?,
        budget: reader.budget()?,
        compute: reader.compute()?,
        store: reader.store()?,
        ledger: LedgerSettings {
            path: reader.path("ledger.path").unwrap_or_else(|| paths.ledger()),
            keep_prompts: reader.switch("ledger.keep_prompts"),
        },
        server: reader.server()?,
        scheduler: reader.scheduler()?,
        chat: reader.chat()?,
        remotes: reader.remotes()?,
        paths: paths.clone(),
        merged,
        files,
        sources: super::Kept(sources.clone()),
    })
}

/// Typed access to the merged values. Kinds were checked when the layers were read; the
/// built-in layer has every key that has a default.
struct Reader<'a> {
    merged: &'a Merged,
    paths: &'a Paths,
    sources: &'a SettingsSources,
}

impl Reader<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.merged.values.get(key).map(|(value, _)| value)
    }

    fn origin(&self, key: &str) -> Origin {
        self.merged
            .values
            .get(key)
            .map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(Value::as_str)
    }

    fn texts(&self, key: &str) -> Vec<String> {
        let items = self.value(key).and_then(Value::as_array);
        items
            .into_iter()
            .flatten()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    }

    fn switch(&self, key: &str) -> bool {
        self.value(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn integer(&self, key: &str) -> Option<i64> {
        self.value(key).and_then(Value::as_integer)
    }

    fn count(&self, key: &str) -> Option<u32> {
        self.integer(key).and_then(|n| u32::try_from(n).ok())
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.value(key).and_then(Value::as_float)
    }

    fn wrong(&self, key: &str, problem: impl Into<String>) -> SettingsError {
        SettingsError::Value {
            key: key.to_owned(),
            origin: self.origin(key),
            problem: problem.into(),
        }
    }

    /// A number within bounds, or the fallback where nothing was said.
    fn ranged(&self, key: &str, low: f64, high: f64, default: f64) -> Result<f64, SettingsError> {
        let number = self.number(key).unwrap_or(default);
        if (low..=high).contains(&number) {
            Ok(number)
        } else {
            Err(self.wrong(
                key,
                format!("is {number}, and has to be from {low} to {high}"),
            ))
        }
    }

    /// A count of at least 1.
    fn positive(&self, key: &str, default: u32) -> Result<u32, SettingsError> {
        match self.count(key).unwrap_or(default) {
            0 => Err(self.wrong(key, "has to be at least 1")),
            n => Ok(n),
        }
    }

    fn optional_positive(&self, key: &str) -> Result<Option<u32>, SettingsError> {
        match self.count(key) {
            Some(0) => Err(self.wrong(key, "has to be at least 1")),
            other => Ok(other),
        }
    }

    /// A path: `~/` is the home folder; in a file, relative means relative to the file.
    fn path(&self, key: &str) -> Option<Utf8PathBuf> {
        let text = self.text(key).filter(|text| !text.is_empty())?;
        Some(self.absolute(text, &self.origin(key)))
    }

    fn absolute(&self, text: &str, origin: &Origin) -> Utf8PathBuf {
        if let Some(rest) = text.strip_prefix("~/") {
            return self.paths.home.join(rest);
        }
        let base = match origin {
            Origin::File { path, .. } => path.parent().unwrap_or(&self.sources.directory),
            _ => &self.sources.directory,
        };
        base.join(text)
    }

    fn pool(&self) -> Result<Vec<String>, SettingsError> {
        let mut arms: Vec<String> = Vec::new();
        for arm in self.texts("pool.arms") {
            // A folder is told from a name with a slash by how it begins.
            let starts = ["/", "./", "../", "~/"];
            let is_path = names_weights(&arm) || starts.iter().any(|start| arm.starts_with(start));
            if !is_path && let Err(error) = ArmId::new(&arm) {
                return Err(self.wrong("pool.arms", format!("is wrong: {error}")));
            }
            let arm = match is_path {
                true => self.absolute(&arm, &self.origin("pool.arms")).into_string(),
                false => arm,
            };
            // Naming an arm twice means what naming it once means.
            if !arms.contains(&arm) {
                arms.push(arm);
            }
        }
        Ok(arms)
    }

    fn router(&self) -> Result<RouterSettings, SettingsError> {
        let mode = match self.text("router.mode") {
            Some("single") | None => Mode::Single,
            Some("any_win") => Mode::AnyWin,
            Some(other) => {
                let problem = format!("is `{other}`, and has to be single or any_win");
                return Err(self.wrong("router.mode", problem));
            }
        };
        let threshold = self.ranged("router.accept_threshold", 0.0, 1.0, 0.5)?;
        let threshold = Score::new(threshold)
            .map_err(|error| self.wrong("router.accept_threshold", error.to_string()))?;
        Ok(RouterSettings {
            plugin: self.plugin()?,
            config_json: self.router_config()?,
            paths: self.plugin_paths(),
            mode,
            max_arms: self.positive("router.max_arms", 2)?,
            accept_threshold: threshold,
            deadline: Duration::from_millis(self.positive("router.deadline_ms", 100)?.into()),
            seed: self
                .integer("router.seed")
                .and_then(|seed| u64::try_from(seed).ok()),
            frozen: self.switch("router.frozen"),
            shadow: self
                .text("router.shadow")
                .filter(|plugin| !plugin.is_empty())
                .map(str::to_owned),
            context: match self.text("router.context") {
                Some("task") | None => ContextFrom::Task,
                Some("session") => ContextFrom::Session,
                Some(other) => {
                    let problem = format!("is `{other}`, and has to be task or session");
                    return Err(self.wrong("router.context", problem));
                }
            },
            scheduler: self.remote_scheduler()?,
            scheduler_key_file: self.path("router.scheduler_key_file"),
        })
    }

    /// Who draws the sets, if that is another machine.
    fn remote_scheduler(&self) -> Result<Option<RemoteSchedulerOptions>, SettingsError> {
        let resend_after = self.positive("router.resend_after", 1)?;
        let resend_tolerance = self.ranged("router.resend_tolerance", 0.0, 1.0, 0.01)?;
        let key = "router.scheduler";
        let Some(address) = self.text(key).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        if !is_http(address) && !address.starts_with("unix:/") {
            let problem = "has to begin with http://, https:// or unix:/";
            return Err(self.wrong(key, problem));
        }
        Ok(Some(RemoteSchedulerOptions {
            address: address.to_owned(),
            // Read when it is first needed, like the daemon's own.
            api_key: None,
            resend_after,
            resend_tolerance,
        }))
    }

    fn scheduler(&self) -> Result<SchedulerSettings, SettingsError> {
        let cool_down = self.text("scheduler.cool_down").unwrap_or("30s");
        let cool_down = parse_duration(cool_down).ok_or_else(|| {
            self.wrong(
                "scheduler.cool_down",
                "takes a length of time such as \"30s\" or \"5min\"",
            )
        })?;
        Ok(SchedulerSettings {
            enabled: self.switch("scheduler.enabled"),
            queue: self.positive("scheduler.queue", 4)?,
            down_after: self.positive("scheduler.down_after", 3)?,
            cool_down,
            sessions: self.positive("scheduler.sessions", 4096)? as usize,
        })
    }

    /// A name stays a name; a path is made absolute.
    fn plugin(&self) -> Result<String, SettingsError> {
        let key = "router.plugin";
        match self.text(key) {
            None | Some("") => Err(self.wrong(key, "is empty, and has to name a plugin")),
            Some(text) if text.contains('/') => {
                Ok(self.absolute(text, &self.origin(key)).into_string())
            }
            Some(name) => Ok(name.to_owned()),
        }
    }

    fn plugin_paths(&self) -> Vec<Utf8PathBuf> {
        let origin = self.origin("router.paths");
        let named = self.texts("router.paths");
        named
            .iter()
            .map(|text| self.absolute(text, &origin))
            .chain(self.paths.plugin_folders())
            .collect()
    }

    fn router_config(&self) -> Result<String, SettingsError> {
        let mut table = serde_json::Map::new();
        for (key, (value, _)) in &self.merged.values {
            let Some(name) = key.strip_prefix(ROUTER_CONFIG) else {
                continue;
            };
            let json = serde_json::to_value(value).map_err(|error| {
                self.wrong(key, format!("cannot be given to a plugin: {error}"))
            })?;
            table.insert(name.to_owned(), json);
        }
        Ok(serde_json::Value::Object(table).to_string())
    }

    fn plugins(&self) -> Result<PluginSettings, SettingsError> {
        let isolation = match self.text("plugins.isolation") {
            Some("actor") | None => Isolation::Actor,
            Some("process") => Isolation::Process,
            Some("inline") => Isolation::Inline,
            Some(other) => {
                let problem = format!("is `{other}`, and has to be actor, process or inline");
                return Err(self.wrong("plugins.isolation", problem));
            }
        };
        Ok(PluginSettings {
            isolation,
            pin: self.switch("plugins.pin"),
            watch: self.switch("plugins.watch"),
            scorers: self.scorers(),
        })
    }

    /// A name stays a name; a path is made absolute.
    fn scorers(&self) -> Vec<String> {
        let origin = self.origin("plugins.scorers");
        let named = self.texts("plugins.scorers").into_iter();
        named
            .map(|text| {
                let plugin = text.split(',').next().unwrap_or_default();
                match plugin.contains('/') {
                    true => self.absolute(&text, &origin).into_string(),
                    false => text,
                }
            })
            .collect()
    }

    fn budget(&self) -> Result<BudgetSettings, SettingsError> {
        let limit =
            match self.number("budget.limit_usd") {
                None => None,
                Some(usd) => Some(NanoDollars::from_usd(usd).map_err(|error| {
                    self.wrong("budget.limit_usd", format!("is wrong: {error}"))
                })?),
            };
        let per_request_usd = match self.number("budget.per_request_usd") {
            None => None,
            Some(_) => Some(self.ranged("budget.per_request_usd", 0.0, 1e6, 0.0)?),
        };
        let window = match self.text("budget.window") {
            None => None,
            Some(text) => Some(parse_duration(text).ok_or_else(|| {
                self.wrong(
                    "budget.window",
                    "takes a length of time such as \"1h\" or \"30days\"",
                )
            })?),
        };
        if window.is_some() && limit.is_none() {
            return Err(self.wrong("budget.window", "says nothing without budget.limit_usd"));
        }
        Ok(BudgetSettings {
            per_request_usd,
            limit,
            window,
        })
    }

    fn compute(&self) -> Result<ComputeSettings, SettingsError> {
        Ok(ComputeSettings {
            usd_per_hour: self.ranged("compute.usd_per_hour", 0.0, 1e6, 0.1)?,
            threads: self
                .optional_positive("compute.threads")?
                .map(|n| n as usize),
            max_context: self.optional_positive("compute.max_context")?,
            memory_limit: self.bytes("compute.memory_limit")?,
            kv_cache: self.kv_cache()?,
            activations: self.activations()?,
            device: self.device()?,
        })
    }

    fn activations(&self) -> Result<Rounding, SettingsError> {
        let key = "compute.activations";
        match self.text(key) {
            None | Some("int16") => Ok(Rounding::Int16),
            Some("int8") => Ok(Rounding::Int8),
            Some(other) => {
                Err(self.wrong(key, format!("is `{other}`, and has to be int8 or int16")))
            }
        }
    }

    fn kv_cache(&self) -> Result<KvType, SettingsError> {
        let key = "compute.kv_cache";
        match self.text(key) {
            None | Some("f32") => Ok(KvType::F32),
            Some("f16") => Ok(KvType::F16),
            Some("int8") => Ok(KvType::Int8),
            Some(other) => {
                Err(self.wrong(key, format!("is `{other}`, and has to be f32, f16 or int8")))
            }
        }
    }

    fn device(&self) -> Result<DeviceChoice, SettingsError> {
        let key = "compute.device";
        let text = self.text(key).unwrap_or("auto");
        text.parse().map_err(|_| {
            self.wrong(
                key,
                format!("is `{text}`, and has to be auto, cpu or cuda:N"),
            )
        })
    }

    fn bytes(&self, key: &str) -> Result<Option<u64>, SettingsError> {
        let Some(text) = self.text(key) else {
            return Ok(None);
        };
        let bytes = parse_bytes(text).filter(|bytes| *bytes > 0);
        bytes
            .map(Some)
            .ok_or_else(|| self.wrong(key, "takes a size such as \"8GiB\" or \"900MB\""))
    }

    fn store(&self) -> Result<StoreSettings, SettingsError> {
        let endpoint = self
            .text("store.hub_endpoint")
            .filter(|text| !text.is_empty());
        if let Some(url) = endpoint
            && !is_http(url)
        {
            return Err(self.wrong(
                "store.hub_endpoint",
                "has to begin with http:// or https://",
            ));
        }
        Ok(StoreSettings {
            models_dir: self
                .path("store.models_dir")
                .unwrap_or_else(|| self.paths.models()),
            offline: self.switch("store.offline"),
            python: self.text("store.python").map(str::to_owned),
            hub_endpoint: endpoint.map(str::to_owned),
        })
    }

    fn server(&self) -> Result<ServerSettings, SettingsError> {
        let tcp = match self.text("server.tcp") {
            None | Some("") => None,
            Some(text) => Some(parse_address(text).ok_or_else(|| {
                self.wrong(
                    "server.tcp",
                    "takes an address and a port such as \"127.0.0.1:11435\"",
                )
            })?),
        };
        let body_limit = self.bytes("server.body_limit")?.unwrap_or(8 << 20);
        Ok(ServerSettings {
            socket: self
                .path("server.socket")
                .unwrap_or_else(|| self.paths.socket()),
            tcp,
            api_key_file: self.path("server.api_key_file"),
            body_limit: usize::try_from(body_limit).unwrap_or(usize::MAX),
            max_requests: self.positive("server.max_requests", 64)? as usize,
        })
    }

    fn chat(&self) -> Result<ChatSettings, SettingsError> {
        let plain = Sampling::default();
        let sampling = Sampling {
            temperature: self.ranged("chat.temperature", 0.0, 2.0, 0.7)? as f32,
            top_k: self.count("chat.top_k").unwrap_or(plain.top_k),
            top_p: self.ranged("chat.top_p", 0.0, 1.0, 0.95)? as f32,
            min_p: self.ranged("chat.min_p", 0.0, 1.0, 0.05)? as f32,
            repetition_penalty: self.ranged("chat.repetition_penalty", 0.1, 10.0, 1.0)? as f32,
            ..plain
        };
        let system = self.text("chat.system").filter(|text| !text.is_empty());
        Ok(ChatSettings {
            system: system.map(str::to_owned),
            max_tokens: self.positive("chat.max_tokens", 512)?,
            sampling,
        })
    }

    fn remotes(&self) -> Result<Vec<RemoteSettings>, SettingsError> {
        let names = self.merged.remotes.iter();
        names.map(|name| self.remote(name)).collect()
    }

    fn remote(&self, name: &str) -> Result<RemoteSettings, SettingsError> {
        let key = |field: &str| format!("remote.{name}.{field}");
        let required = |field: &str| {
            self.text(&key(field))
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .ok_or_else(|| SettingsError::Value {
                    key: key(field),
                    origin: self.origin(&key("name")),
                    problem: "is missing".to_owned(),
                })
        };
        let id = ArmId::new(name)
            .map_err(|error| self.wrong(&key("name"), format!("is wrong: {error}")))?;
        if self.texts("pool.arms").iter().any(|arm| arm == name) {
            return Err(self.wrong(
                &key("name"),
                "is the name of a local model in pool.arms too",
            ));
        }
        let base_url = required("base_url")?;
        if !is_http(&base_url) && !base_url.starts_with("unix:/") {
            let problem = "has to begin with http://, https:// or unix:/";
            return Err(self.wrong(&key("base_url"), problem));
        }
        let model = required("model")?;
        let (api_key, key_missing) = self.remote_key(name)?;
        Ok(RemoteSettings {
            name: id,
            base_url,
            model,
            api_key,
            key_missing,
            context_tokens: self.positive(&key("context_tokens"), 8192)?,
            input_usd_per_mtok: self.ranged(&key("input_usd_per_mtok"), 0.0, 1e6, 0.0)?,
            output_usd_per_mtok: self.ranged(&key("output_usd_per_mtok"), 0.0, 1e6, 0.0)?,
            timeout: Duration::from_secs(self.positive(&key("timeout_s"), 60)?.into()),
            extended_sampling: self.switch(&key("extended_sampling")),
        })
    }

    /// The key of a remote, or why it is not there. A missing key makes one arm
    /// unavailable; it does not stop the others.
    fn remote_key(&self, name: &str) -> Result<(Option<Secret>, Option<String>), SettingsError> {
        let by_env = format!("remote.{name}.api_key_env");
        let by_file = format!("remote.{name}.api_key_file");
        if self.text(&by_env).is_some() && self.text(&by_file).is_some() {
            return Err(self.wrong(&by_env, "and api_key_file exclude each other"));
        }
        if let Some(variable) = self.text(&by_env) {
            let environment = &self.sources.environment;
            let found = environment.iter().find(|(name, _)| name == variable);
            return Ok(match found.map(|(_, value)| value.trim()) {
                Some(value) if !value.is_empty() => (Some(Secret::new(value)), None),
                _ => (
                    None,
                    Some(format!("the variable {variable} with its key is not set")),
                ),
            });
        }
        if let Some(path) = self.path(&by_file) {
            return Ok(match read_secret(&path) {
                Ok(secret) => (Some(secret), None),
                Err(reason) => (None, Some(format!("its key file cannot be used: {reason}"))),
            });
        }
        Ok((None, None))
    }
}

/// Reads a key from a file: its content without surrounding space. The error never
/// contains any of it.
pub(crate) fn read_secret(path: &Utf8Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("`{path}`: {error}"))?;
    match text.trim() {
        "" => Err(format!("`{path}` is empty")),
        key if key.chars().any(char::is_control) => Err(format!("`{path}` has more than one line")),
        key => Ok(Secret::new(key)),
    }
}

fn is_http(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

/// `127.0.0.1:11435`, `localhost:11435`, `[::1]:11435`. No name is looked up.
fn parse_address(text: &str) -> Option<std::net::SocketAddr> {
    let text = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    text.parse().ok()
}

/// `900MB`, `8GiB`, `1048576`.
fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    let bytes = number * scale as f64;
    (0.0..9e18).contains(&bytes).then_some(bytes as u64)
}

/// `90s`, `15min`, `1h`, `1day`, `30days`.
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let scale = match unit.to_ascii_lowercase().as_str() {
        "s" | "sec" | "second" | "seconds" => 1.0,
        "m" | "min" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3_600.0,
        "d" | "day" | "days" => 86_400.0,
        "w" | "week" | "weeks" => 604_800.0,
        _ => return None,
    };
    let seconds = number * scale;
    (1.0..1e10)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

fn split_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_lengths_read_with_their_units() {
        assert_eq!(parse_bytes("8GiB"), Some(8 << 30));
        assert_eq!(parse_bytes("900 MB"), Some(900_000_000));
        assert_eq!(parse_bytes("4096"), Some(4096));
        assert_eq!(parse_bytes("8 furlongs"), None);
        assert_eq!(
            parse_duration("30days"),
            Some(Duration::from_secs(2_592_000))
        );
        assert_eq!(parse_duration("1.5h"), Some(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("soon"), None);
        assert_eq!(parse_duration("-1h"), None);
    }
}
