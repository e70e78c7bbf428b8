//! Chooses by what it has seen so far, and panics where its configuration says.

use llmpick_plugin_sdk::{
    Choice, Error, Feedback, Host, Result, RouterPlugin, Score, ScoreRequest, ScorerPlugin,
    SelectRequest, export_plugins, from_json, to_json,
};
use serde::Deserialize;

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// `create`, `select`, `feedback` or `snapshot`.
    panic_in: String,
    /// Only in the call for this request; 0 for always.
    at: u64,
    /// Only in calls for requests that are a multiple of this, other than 0; 0 for all.
    every: u64,
}

/// A panic payload whose own drop panics.
struct Nasty;

impl Drop for Nasty {
    fn drop(&mut self) {
        panic!("and again");
    }
}

struct Panics {
    config: Config,
    seen: u64,
}

impl Panics {
    fn maybe_panic(&self, place: &str, request: u64) {
        let here = self.config.panic_in == place;
        // In `create` without a number the payload is a plain message.
        let due = self.config.every == 0
            || request != 0 && request.is_multiple_of(self.config.every);
        if here && due && (self.config.at == request || self.config.at == 0 && place != "create") {
            std::panic::panic_any(Nasty);
        }
    }
}

impl RouterPlugin for Panics {
    type Config = Config;
    const NAME: &'static str = "panics";
    const STATE_VERSION: u32 = 1;

    fn create(config: Config, host: Host) -> Result<Self> {
        host.info("an instance was made");
        let made = Self { config, seen: 0 };
        made.maybe_panic("create", 1);
        assert!(made.config.panic_in != "create", "asked to panic in create");
        Ok(made)
    }

    fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()> {
        self.maybe_panic("select", request.request_id);
        let eligible: Vec<usize> = request.eligible().map(|c| c.index).collect();
        let count = eligible.len() as u64;
        if count == 0 {
            return Err(Error::abstain());
        }
        let pick = (self.seen.wrapping_add(request.seed) % count) as usize;
        choice.choose(eligible[pick]).reason(format_args!("saw {}", self.seen));
        Ok(())
    }

    fn feedback(&mut self, feedback: &Feedback<'_>) -> Result<()> {
        self.seen += 1;
        self.maybe_panic("feedback", feedback.request_id);
        Ok(())
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        self.maybe_panic("snapshot", 0);
        // Brackets, so that a state cut short is no state.
        to_json(&[self.seen])
    }

    fn restore(&mut self, _version: u32, state: &[u8]) -> Result<()> {
        [self.seen] = from_json(state)?;
        Ok(())
    }
}

struct Grader;

impl ScorerPlugin for Grader {
    type Config = ();
    const NAME: &'static str = "grader";

    fn create((): (), _host: Host) -> Result<Self> {
        Ok(Self)
    }

    fn score(&mut self, request: &ScoreRequest<'_>) -> Result<Score> {
        assert!(request.response != "boom", "asked to panic in score");
        if request.reference.is_empty() {
            return Err(Error::abstain());
        }
        Score::new(f64::from(u8::from(request.response == request.reference)))
    }
}

export_plugins!(router Panics, scorer Grader);
