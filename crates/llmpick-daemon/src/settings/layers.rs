//! Read each layer, remember where every value came from, and put them on one another.

use std::collections::BTreeMap;
use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::keys::{self, KEYS, Kind, REMOTE_KEYS, ROUTER_CONFIG, kind_of, parse_value, suggestion};
use super::{DEFAULT_CONFIG, SettingsError, SettingsSources};
use crate::Paths;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A settings file.
    File {
        /// Its path.
        path: Utf8PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A flag of the command.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("built-in default"),
            Origin::File { path, line } => write!(f, "{path}, line {line}"),
            Origin::Env(name) => write!(f, "environment variable {name}"),
            Origin::Flag => f.write_str("flag"),
        }
    }
}

/// All layers as one: dotted key to value and origin. Remotes are `remote.NAME.key`.
#[derive(Clone, Debug, Default)]
pub(super) struct Merged {
    pub(super) values: BTreeMap<String, (Value, Origin)>,
    /// Names of the remotes, in the order of their first mention.
    pub(super) remotes: Vec<String>,
}

/// A settings file that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsFile {
    /// Its path.
    pub path: Utf8PathBuf,
    /// It is there and was read.
    pub read: bool,
}

/// Variables under our prefix that are no settings: switches of the command and the tests.
const RESERVED: &[&str] = &["CONFIG", "LOG", "ALL_MODELS"];
const RESERVED_PREFIXES: &[&str] = &["TEST_", "REQUIRE", "BENCH_", "CI_"];

/// Reads every layer in order.
pub(super) fn merge(
    sources: &SettingsSources,
    paths: &Paths,
) -> Result<(Merged, Vec<SettingsFile>), SettingsError> {
    let mut merged = Merged::default();
    merged.add_file(DEFAULT_CONFIG, None, false)?;
    let mut files = Vec::new();
    for (path, project, required) in candidates(sources, paths) {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                merged.add_file(&text, Some(&path), project)?;
                files.push(SettingsFile { path, read: true });
            }
            Err(error) if !required && is_absent(&error) => {
                files.push(SettingsFile { path, read: false });
            }
            Err(source) => return Err(SettingsError::Read { path, source }),
        }
    }
    for (name, value) in &sources.environment {
        merged.add_variable(name, value)?;
    }
    for (key, value) in &sources.overrides {
        merged.add_text(key, value, Origin::Flag)?;
    }
    Ok((merged, files))
}

/// The files to read: path, whether it belongs to a project, whether it must be there.
fn candidates(sources: &SettingsSources, paths: &Paths) -> Vec<(Utf8PathBuf, bool, bool)> {
    let user = paths.config_file();
    let project = sources.directory.join("llmpick.toml");
    let mut files = vec![
        (sources.system_file.clone(), false, false),
        (user.clone(), false, false),
    ];
    if project != user {
        files.push((project, true, false));
    }
    files.extend(sources.file.iter().map(|file| (file.clone(), false, true)));
    files
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

impl Merged {
    /// Adds the values of a file; `None` for the built-in one.
    fn add_file(
        &mut self,
        text: &str,
        path: Option<&Utf8Path>,
        project: bool,
    ) -> Result<(), SettingsError> {
        let file = File {
            text,
            path,
            project,
        };
        let table = DeTable::parse(text).map_err(|error| SettingsError::Syntax {
            origin: file.origin(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        let mut entries = Vec::new();
        for (section, value) in table.get_ref() {
            let at = section.span().start;
            match (section.get_ref().as_ref(), value.get_ref()) {
                ("remote", DeValue::Array(remotes)) => {
                    for remote in remotes.iter() {
                        self.add_remote(&file, remote.get_ref(), remote.span().start)?;
                    }
                }
                ("remote", _) => {
                    return Err(SettingsError::Value {
                        key: "remote".to_owned(),
                        origin: file.origin(at),
                        problem: "is a list of tables: write [[remote]]".to_owned(),
                    });
                }
                (name, value) => file.flatten(name, value, at, &mut entries)?,
            }
        }
        // A plugin named here is not handed the table of the plugin named below.
        if let Some((_, value, _)) = entries.iter().find(|(key, ..)| key == "router.plugin") {
            self.drop_other_plugins_config(value);
        }
        for (key, value, origin) in entries {
            if project && keys::refused_in_project(&key, &value) {
                return Err(SettingsError::NotInProject { key, origin });
            }
            self.values.insert(key, (value, origin));
        }
        Ok(())
    }

    /// Adds one `[[remote]]`; one of the same name in a lower layer is changed, not doubled.
    fn add_remote(
        &mut self,
        file: &File<'_>,
        remote: &DeValue<'_>,
        at: usize,
    ) -> Result<(), SettingsError> {
        let origin = file.origin(at);
        if file.project {
            let key = "remote".to_owned();
            return Err(SettingsError::NotInProject { key, origin });
        }
        let DeValue::Table(table) = remote else {
            return Err(SettingsError::Value {
                key: "remote".to_owned(),
                origin,
                problem: "is a list of tables: write [[remote]]".to_owned(),
            });
        };
        let name = table.get("name").and_then(|name| name.get_ref().as_str());
        let Some(name) = name.map(str::to_owned) else {
            return Err(SettingsError::Value {
                key: "remote.name".to_owned(),
                origin,
                problem: "is missing: every [[remote]] needs a name".to_owned(),
            });
        };
        for (key, value) in table {
            let origin = file.origin(key.span().start);
            let key = key.get_ref().as_ref();
            let kind = remote_kind(key, &origin)?;
            let full = format!("remote.{name}.{key}");
            let value = admit(kind, &full, to_value(value.get_ref()), &origin)?;
            self.values.insert(full, (value, origin));
        }
        if !self.remotes.contains(&name) {
            self.remotes.push(name);
        }
        Ok(())
    }

    fn drop_other_plugins_config(&mut self, plugin: &Value) {
        let same = self
            .values
            .get("router.plugin")
            .is_some_and(|(current, _)| current == plugin);
        if !same {
            self.values.retain(|key, _| !key.starts_with(ROUTER_CONFIG));
        }
    }

    /// Adds one variable of the environment, if it is meant for us.
    fn add_variable(&mut self, name: &str, value: &str) -> Result<(), SettingsError> {
        let Some(rest) = name.strip_prefix("LLMPICK_") else {
            return Ok(());
        };
        let reserved = RESERVED.contains(&rest)
            || RESERVED_PREFIXES
                .iter()
                .any(|prefix| rest.starts_with(prefix));
        if reserved {
            return Ok(());
        }
        let origin = Origin::Env(name.to_owned());
        let key = rest.to_ascii_lowercase().replace("__", ".");
        if !key.contains('.') {
            // A single underscore for the dot is the usual slip.
            let near = KEYS
                .iter()
                .find(|(known, _)| known.replace('.', "_") == key);
            return Err(SettingsError::UnknownKey {
                key: name.to_owned(),
                origin,
                suggestion: near.map(|(known, _)| variable_name(known)),
            });
        }
        self.add_text(&key, value, origin)
    }

    /// Adds a value given as text.
    fn add_text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), SettingsError> {
        let value = if key.starts_with(ROUTER_CONFIG) {
            parse_value(text).unwrap_or_else(|| Value::String(text.to_owned()))
        } else {
            let kind = self.kind_of_key(key, &origin)?;
            kind.parse(text)
                .ok_or_else(|| wrong_kind(kind, key, &origin))?
        };
        if key == "router.plugin" {
            self.drop_other_plugins_config(&value);
        }
        self.values.insert(key.to_owned(), (value, origin));
        Ok(())
    }

    /// The kind of any setting, those of remotes that exist included.
    fn kind_of_key(&self, key: &str, origin: &Origin) -> Result<Kind, SettingsError> {
        let remote = key.strip_prefix("remote.").and_then(|rest| {
            let (name, field) = rest.rsplit_once('.')?;
            self.remotes
                .iter()
                .any(|known| known == name)
                .then_some(field)
        });
        if let Some(field) = remote {
            return remote_kind(field, origin);
        }
        kind_of(KEYS, key).ok_or_else(|| unknown(key, origin))
    }
}

/// `router.plugin` as `LLMPICK_ROUTER__PLUGIN`.
pub(super) fn variable_name(key: &str) -> String {
    format!("LLMPICK_{}", key.to_ascii_uppercase().replace('.', "__"))
}

/// The text of a file, for turning offsets into lines.
struct File<'a> {
    text: &'a str,
    path: Option<&'a Utf8Path>,
    project: bool,
}

impl File<'_> {
    fn origin(&self, offset: usize) -> Origin {
        match self.path {
            None => Origin::Default,
            Some(path) => {
                let before = self.text.as_bytes().iter().take(offset);
                let line = before.filter(|byte| **byte == b'\n').count() + 1;
                Origin::File {
                    path: path.to_owned(),
                    line,
                }
            }
        }
    }

    /// Turns a section into dotted keys, each known and of the right kind.
    fn flatten(
        &self,
        name: &str,
        value: &DeValue<'_>,
        at: usize,
        entries: &mut Vec<(String, Value, Origin)>,
    ) -> Result<(), SettingsError> {
        let origin = self.origin(at);
        if name.starts_with(ROUTER_CONFIG) {
            entries.push((name.to_owned(), to_value(value), origin));
            return Ok(());
        }
        if let DeValue::Table(table) = value {
            let is_section = KEYS.iter().any(|(known, _)| {
                known
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('.'))
            });
            let is_config = format!("{name}.") == ROUTER_CONFIG;
            if !is_section && !is_config {
                return Err(unknown_section(name, &origin));
            }
            for (key, value) in table {
                let full = format!("{name}.{}", key.get_ref());
                self.flatten(&full, value.get_ref(), key.span().start, entries)?;
            }
            return Ok(());
        }
        let kind = kind_of(KEYS, name).ok_or_else(|| unknown(name, &origin))?;
        let value = admit(kind, name, to_value(value), &origin)?;
        entries.push((name.to_owned(), value, origin));
        Ok(())
    }
}

fn remote_kind(field: &str, origin: &Origin) -> Result<Kind, SettingsError> {
    if matches!(field, "api_key" | "key" | "token" | "password") {
        return Err(SettingsError::Value {
            key: format!("remote.{field}"),
            origin: origin.clone(),
            problem: "would keep a key in the settings; name the variable or the file that \
                      holds it, with api_key_env or api_key_file"
                .to_owned(),
        });
    }
    kind_of(REMOTE_KEYS, field).ok_or_else(|| SettingsError::UnknownKey {
        key: format!("remote.{field}"),
        origin: origin.clone(),
        suggestion: suggestion(REMOTE_KEYS, field),
    })
}

fn admit(kind: Kind, key: &str, value: Value, origin: &Origin) -> Result<Value, SettingsError> {
    kind.admit(value)
        .ok_or_else(|| wrong_kind(kind, key, origin))
}

fn wrong_kind(kind: Kind, key: &str, origin: &Origin) -> SettingsError {
    SettingsError::Value {
        key: key.to_owned(),
        origin: origin.clone(),
        problem: format!("takes {}", kind.describe()),
    }
}

fn unknown(key: &str, origin: &Origin) -> SettingsError {
    SettingsError::UnknownKey {
        key: key.to_owned(),
        origin: origin.clone(),
        suggestion: suggestion(KEYS, key),
    }
}

fn unknown_section(name: &str, origin: &Origin) -> SettingsError {
    let sections = KEYS.iter().filter_map(|(key, _)| key.split('.').next());
    let near = sections
        .chain(["remote"])
        .map(|section| (strsim::jaro_winkler(section, name), section))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    SettingsError::UnknownKey {
        key: name.to_owned(),
        origin: origin.clone(),
        suggestion: near.map(|(_, section)| section.to_owned()),
    }
}

/// A parsed value without its places in the file.
fn to_value(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(Value::Integer)
            // Beyond what any setting takes; kept as a text so that the kind check says so.
            .unwrap_or_else(|_| Value::String(number.to_string())),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map(Value::Float)
            .unwrap_or_else(|_| Value::String(number.to_string())),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| to_value(item.get_ref())).collect())
        }
        DeValue::Table(table) => Value::Table(
            table
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), to_value(value.get_ref())))
                .collect(),
        ),
    }
}
