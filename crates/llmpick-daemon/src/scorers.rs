//! The scorers of this program: those built in, and the plugins that the settings name.

use std::sync::Arc;

use llmpick_core::Scorer;
use llmpick_plugin_host::{PluginKind, ScorerOptions};
use serde_json::{Map, Value};
use tracing::error;

use crate::Settings;
use crate::app::sentence;
use crate::plugins::{self, PluginError};

/// All scorers, in the order in which they are asked. Plugins come before `exact`, which
/// grades any text that has a reference, and after those that a special reference is for.
///
/// # Errors
/// A plugin that cannot be used, unless `tolerate`: then it is left out, and the log says so.
pub(crate) fn all(
    settings: &Settings,
    tolerate: bool,
) -> Result<Vec<Arc<dyn Scorer>>, PluginError> {
    let mut scorers = llmpick_score::all();
    let mut place = scorers
        .iter()
        .position(|scorer| scorer.name() == "exact")
        .unwrap_or(scorers.len());
    for named in &settings.plugins.scorers {
        match load(settings, named, &scorers) {
            Ok(scorer) => {
                scorers.insert(place, scorer);
                place += 1;
            }
            Err(fault) if tolerate => {
                let fault = sentence(&fault);
                error!(scorer = named, %fault, "scorer cannot be used, the others grade");
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(scorers)
}

/// The scorer that `named` means: `LIBRARY[:SCORER][,KEY=VALUE]...`.
fn load(
    settings: &Settings,
    named: &str,
    others: &[Arc<dyn Scorer>],
) -> Result<Arc<dyn Scorer>, PluginError> {
    let (plugin, config) = parse(named)?;
    let library = plugins::open(settings, plugin)?;
    let name = plugins::name_in(&library, plugin, PluginKind::Scorer)?;
    let options = ScorerOptions {
        isolation: settings.plugins.isolation,
        ..ScorerOptions::default()
    };
    let config = Value::Object(config).to_string();
    let scorer = llmpick_plugin_host::scorer(&library, &name, &config, &options)?;
    if others.iter().any(|other| other.name() == scorer.name()) {
        return Err(PluginError::Scorer {
            named: named.to_owned(),
            problem: format!("there is a scorer `{name}` already"),
        });
    }
    Ok(scorer)
}

/// The plugin, and its settings; a value is JSON, or else a text.
fn parse(named: &str) -> Result<(&str, Map<String, Value>), PluginError> {
    let mut parts = named.split(',');
    let plugin = parts.next().unwrap_or_default().trim();
    let config = parts.map(|pair| {
        let (key, value) = pair.split_once('=').ok_or_else(|| PluginError::Scorer {
            named: named.to_owned(),
            problem: format!("`{pair}` is no setting: write KEY=VALUE"),
        })?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()));
        Ok::<_, PluginError>((key.trim().to_owned(), value))
    });
    Ok((plugin, config.collect::<Result<_, PluginError>>()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says where it failed")]
    use super::*;

    #[test]
    fn settings_of_a_scorer_follow_its_name() {
        let (plugin, config) = parse("rouge,variant=rouge2,limit=0.5").unwrap();
        assert_eq!(plugin, "rouge");
        let expected = serde_json::json!({"variant": "rouge2", "limit": 0.5});
        assert_eq!(Value::Object(config), expected);
        assert!(parse("rouge").unwrap().1.is_empty());
        let error = parse("rouge,rouge2").unwrap_err().to_string();
        assert_eq!(
            error,
            "use scorer `rouge,rouge2`: `rouge2` is no setting: write KEY=VALUE"
        );
    }
}
