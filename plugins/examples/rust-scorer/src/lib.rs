//! A scorer plugin: 1 for the reference itself, the setting `partial` for an answer that
//! holds it, 0 for anything else.

use llmpick_plugin_sdk::{Error, Host, Result, Score, ScoreRequest, ScorerPlugin, export_plugins};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    partial: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { partial: 0.5 }
    }
}

struct Holds(Config);

impl ScorerPlugin for Holds {
    type Config = Config;
    const NAME: &'static str = "example";
    const DESCRIPTION: &'static str = "1 for the reference, less for an answer that only holds it";
    const CONFIG_SCHEMA: &'static str = r#"{
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "partial": {
                "type": "number", "minimum": 0, "maximum": 1, "default": 0.5,
                "description": "The grade of an answer that holds the reference and more."
            }
        }
    }"#;

    fn create(config: Config, _host: Host) -> Result<Self> {
        if !(0.0..=1.0).contains(&config.partial) {
            return Err(Error::config("`partial` must be a number from 0 to 1"));
        }
        Ok(Self(config))
    }

    fn score(&mut self, request: &ScoreRequest<'_>) -> Result<Score> {
        if request.reference.is_empty() {
            return Err(Error::abstain()); // Nothing to go by.
        }
        Score::new(if request.response == request.reference {
            1.0
        } else if request.response.contains(request.reference) {
            self.0.partial
        } else {
            0.0
        })
    }
}

export_plugins!(scorer Holds);
