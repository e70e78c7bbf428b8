//! What goes over the wire to a scheduler on another machine, and what comes back.
//!
//! `POST /llmpick/v1/schedule`, JSON. A call brings marginals, or, with session and sequence
//! alone, asks for another set from those that the scheduler holds. These structs are the
//! whole vocabulary: unknown fields are refused on both sides, so neither a prompt nor a score
//! nor a cost has a place to stand in. What the scheduler does learn: the names of the arms
//! that may run, how likely each is to, and how often this machine asks.

use llmpick_core::{ArmId, Mode};
use serde::{Deserialize, Serialize};

/// Version of these structs. Raise it when the other side would misread them.
pub const VERSION: u32 = 1;

/// Where a scheduler listens, below its address.
pub const PATH: [&str; 3] = ["llmpick", "v1", "schedule"];

/// The error code of a scheduler that does not hold the session's marginals (any more).
pub const UNKNOWN_SESSION: &str = "unknown_session";

/// The error code of a scheduler all of whose arms are full or down.
pub const NO_ARM_FREE: &str = "no_arm_free";

/// One question. `seed`, `arms`, `z`, `max_arms` and `mode` are all there or all absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleCall {
    /// [`VERSION`].
    pub version: u32,
    /// Whose marginals: random, drawn by the client, 1 to 100 characters.
    pub session: String,
    /// Rises with each question of a session.
    pub sequence: u64,
    /// Seed of the draw, and of the draws from these marginals that follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The arms that may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arms: Option<Vec<ArmId>>,
    /// P(arm is in the set), one per arm, in 0..=1: the paper's Z̃. Decimal texts, the shortest
    /// that read back the same: readers of JSON numbers may be off by a bit, and then the set
    /// drawn there would not be the one drawn here.
    #[serde(
        default,
        with = "texts_if_any",
        skip_serializing_if = "Option::is_none"
    )]
    pub z: Option<Vec<f64>>,
    /// Most arms in the set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_arms: Option<u32>,
    /// How the set will work together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// Marginals that a scheduler may hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Marginals {
    /// Seed of the first draw.
    pub seed: u64,
    /// The arms that may run.
    pub arms: Vec<ArmId>,
    /// P(arm is in the set), one per arm.
    pub z: Vec<f64>,
    /// Most arms in the set.
    pub max_arms: u32,
    /// How the set will work together.
    pub mode: Mode,
}

impl ScheduleCall {
    /// A question that asks for another set.
    pub fn again(session: &str, sequence: u64) -> Self {
        Self {
            version: VERSION,
            session: session.to_owned(),
            sequence,
            seed: None,
            arms: None,
            z: None,
            max_arms: None,
            mode: None,
        }
    }

    /// A question that brings marginals.
    pub fn with(session: &str, sequence: u64, marginals: &Marginals) -> Self {
        Self {
            seed: Some(marginals.seed),
            arms: Some(marginals.arms.clone()),
            z: Some(marginals.z.clone()),
            max_arms: Some(marginals.max_arms),
            mode: Some(marginals.mode),
            ..Self::again(session, sequence)
        }
    }

    /// The marginals it brings, if it brings any; `Err` where only some of the fields are there.
    pub fn marginals(&self) -> Result<Option<Marginals>, &'static str> {
        match (self.seed, &self.arms, &self.z, self.max_arms, self.mode) {
            (None, None, None, None, None) => Ok(None),
            (Some(seed), Some(arms), Some(z), Some(max_arms), Some(mode)) => Ok(Some(Marginals {
                seed,
                arms: arms.clone(),
                z: z.clone(),
                max_arms,
                mode,
            })),
            _ => Err("seed, arms, z, max_arms and mode come together or not at all"),
        }
    }
}

/// The set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleReply {
    /// [`VERSION`].
    pub version: u32,
    /// The arms that are to run, the likeliest first.
    pub choices: Vec<ArmId>,
    /// P(arm is in the set) as it really was, one for each arm of the marginals held: another
    /// than was asked for where an arm was full or down. Decimal texts.
    #[serde(with = "texts")]
    pub z: Vec<f64>,
    /// Arms that could not be drawn.
    pub away: Vec<Away>,
}

/// Why an arm cannot run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// As much waits for it as may.
    Full,
    /// It cannot take requests, or failed too often lately.
    Down,
}

/// An arm that could not be drawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Away {
    /// Which.
    pub arm: ArmId,
    /// Why.
    pub reason: Reason,
}

/// Numbers as decimal texts.
mod texts {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(numbers: &[f64], out: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<String> = numbers.iter().map(f64::to_string).collect();
        texts.serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
        let read = |text: &String| {
            text.parse()
                .map_err(|_| Error::custom(format!("`{text}` is no number")))
        };
        Vec::<String>::deserialize(from)?.iter().map(read).collect()
    }
}

/// The same where there may be none.
mod texts_if_any {
    use serde::{Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        numbers: &Option<Vec<f64>>,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        match numbers {
            Some(numbers) => super::texts::serialize(numbers, out),
            None => None::<()>.serialize(out),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Vec<f64>>, D::Error> {
        super::texts::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_words_on_the_wire_are_these_and_no_others() {
        let marginals = Marginals {
            seed: u64::MAX,
            arms: vec![ArmId::new("a").unwrap(), ArmId::new("b").unwrap()],
            z: vec![0.1, 1.0 / 3.0],
            max_arms: 2,
            mode: Mode::AnyWin,
        };
        let call = ScheduleCall::with("s", 7, &marginals);
        let text = serde_json::to_string(&call).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"session":"s","sequence":7,"seed":18446744073709551615,"arms":["a","b"],"z":["0.1","0.3333333333333333"],"max_arms":2,"mode":"any_win"}"#
        );
        let read: ScheduleCall = serde_json::from_str(&text).unwrap();
        assert_eq!(read.marginals(), Ok(Some(marginals)));
        let again = serde_json::to_string(&ScheduleCall::again("s", 8)).unwrap();
        assert_eq!(again, r#"{"version":1,"session":"s","sequence":8}"#);
        for bad in [
            r#"{"version":1,"session":"s","sequence":8,"prompt":"x"}"#,
            r#"{"version":1,"session":"s","sequence":8,"cost":1}"#,
        ] {
            assert!(serde_json::from_str::<ScheduleCall>(bad).is_err(), "{bad}");
        }
        let half: ScheduleCall =
            serde_json::from_str(r#"{"version":1,"session":"s","sequence":8,"z":["1"]}"#).unwrap();
        assert!(half.marginals().is_err());
        // Every bit comes back, which JSON numbers do not promise.
        for n in 1..2_000_u32 {
            let z = vec![f64::from(n) / 1_999.7, 1.0 / f64::from(n * n)];
            let reply = ScheduleReply {
                version: VERSION,
                choices: Vec::new(),
                z,
                away: Vec::new(),
            };
            let text = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<ScheduleReply>(&text).unwrap(), reply);
        }
    }
}
