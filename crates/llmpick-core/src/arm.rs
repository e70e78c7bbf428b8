//! What is known of an arm before it runs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ArmId, NanoDollars, Usage};

/// Where an arm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Locality {
    /// On this machine.
    Local,
    /// Behind somebody's API.
    Remote,
}

/// What an arm's work costs, local and remote in one currency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Price {
    /// Dollars per 10⁶ tokens, as providers quote it.
    PerToken {
        /// Dollars per 10⁶ prompt tokens.
        input_usd: f64,
        /// Dollars per 10⁶ completion tokens.
        output_usd: f64,
    },
    /// Dollars per hour of the device that computes.
    PerHour {
        /// Dollars per hour.
        usd: f64,
    },
}

impl Price {
    /// What a call cost: tokens × price, or seconds × rate. Rounded up to whole nano-dollars.
    pub fn cost(&self, usage: Usage, busy: Duration) -> NanoDollars {
        let usd = match *self {
            Price::PerToken {
                input_usd,
                output_usd,
            } => {
                (f64::from(usage.prompt_tokens) * input_usd
                    + f64::from(usage.completion_tokens) * output_usd)
                    / 1e6
            }
            Price::PerHour { usd } => busy.as_secs_f64() / 3600.0 * usd,
        };
        // Prices are checked when settings are read; a cost beyond ten billion dollars
        // is clamped rather than lost.
        NanoDollars::from_usd(usd.clamp(0.0, 1e10)).unwrap_or_default()
    }
}

/// The fixed description of an arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Its stable name.
    pub id: ArmId,
    /// Where it computes.
    pub locality: Locality,
    /// Tokens of prompt and completion together.
    pub context_tokens: u32,
    /// What its work costs.
    pub price: Price,
}

/// What changes about an arm while the program runs. A cheap reading, no I/O.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ArmState {
    /// Loaded, or a remote one: a call pays no cold start.
    pub warm: bool,
    /// Why it cannot take requests now, if so; a sentence for people.
    pub unavailable: Option<String>,
    /// Calls running or queued.
    pub inflight: u32,
    /// Resident bytes of weights and cache, 0 when not loaded or remote.
    pub resident_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_seconds_end_in_one_currency() {
        let usage = Usage {
            prompt_tokens: 1_000,
            completion_tokens: 500,
            cached_tokens: 0,
        };
        let per_token = Price::PerToken {
            input_usd: 1.0,
            output_usd: 4.0,
        };
        assert_eq!(
            per_token.cost(usage, Duration::from_secs(9)),
            NanoDollars(3_000_000)
        );
        let per_hour = Price::PerHour { usd: 0.36 };
        assert_eq!(
            per_hour.cost(usage, Duration::from_secs(2)),
            NanoDollars(200_000)
        );
    }
}
