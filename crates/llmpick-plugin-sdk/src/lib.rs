//! What a plugin author imports.
//!
#![doc = include_str!("../README.md")]
#![allow(unsafe_code)]

#[cfg(panic = "abort")]
compile_error!(
    "a plugin must be able to catch its own panics: remove `panic = \"abort\"` from the profile"
);

mod choice;
mod error;
mod export;
mod host;
mod request;
mod router;
mod scorer;

pub use choice::{Choice, Plan};
pub use error::{Error, Result};
pub use host::{Host, Level};
pub use request::{Candidate, Feedback, Mode, Modes, Outcome, ScoreRequest, SelectRequest};
pub use router::RouterPlugin;
pub use scorer::{Score, ScorerPlugin};

/// Capability bits for [`RouterPlugin::CAPS`] and [`ScorerPlugin::CAPS`].
///
/// ```
/// use llmpick_plugin_sdk::caps;
///
/// const CAPS: u64 = caps::NEEDS_PROMPT | caps::MULTI_SELECT;
/// assert_ne!(CAPS & caps::MULTI_SELECT, 0);
/// ```
pub mod caps {
    pub use llmpick_plugin_abi::{
        CAP_MULTI_SELECT as MULTI_SELECT, CAP_NEEDS_FEATURES as NEEDS_FEATURES,
        CAP_NEEDS_PROMPT as NEEDS_PROMPT,
    };
}

/// Learnt state as JSON, for [`RouterPlugin::snapshot`].
///
/// ```
/// use llmpick_plugin_sdk::to_json;
///
/// assert_eq!(to_json(&[1, 2])?, b"[1,2]");
/// # llmpick_plugin_sdk::Result::Ok(())
/// ```
pub fn to_json<T: serde::Serialize>(state: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(state).map_err(|error| Error::internal(format!("write state: {error}")))
}

/// Learnt state from JSON, for [`RouterPlugin::restore`]; a bad one is an [`Error::state`].
///
/// ```
/// use llmpick_plugin_sdk::from_json;
///
/// assert_eq!(from_json::<Vec<u32>>(b"[1,2]")?, [1, 2]);
/// assert!(from_json::<Vec<u32>>(b"[1,").is_err());
/// # llmpick_plugin_sdk::Result::Ok(())
/// ```
pub fn from_json<T: serde::de::DeserializeOwned>(state: &[u8]) -> Result<T> {
    serde_json::from_slice(state).map_err(|error| Error::state(error.to_string()))
}

/// What [`export_plugins!`] expands to; not for direct use.
#[doc(hidden)]
pub mod private {
    pub use crate::export::{BUILT_WITH, entry};
    pub use crate::router::router_plugin;
    pub use crate::scorer::scorer_plugin;
    pub use llmpick_plugin_abi as abi;
}
