//! What a plugin author imports.
//!
//! A plugin is a shared library (`crate-type = ["cdylib"]`) that exports routers, scorers,
//! or both. The author writes a struct and one trait; [`export_plugins!`] makes the C
//! symbol. Nothing Rust-shaped crosses the boundary, every entry catches panics, and an
//! instance that panicked is never called again: the host builds a new one from its last
//! snapshot.
//!
//! ```
//! use llmpick_plugin_sdk::{export_plugins, Choice, Host, Result, RouterPlugin, SelectRequest};
//!
//! struct CheapestFirst;
//!
//! impl RouterPlugin for CheapestFirst {
//!     type Config = ();
//!     const NAME: &'static str = "cheapest-first";
//!
//!     fn create((): (), _host: Host) -> Result<Self> {
//!         Ok(Self)
//!     }
//!
//!     fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()> {
//!         let cost = |c: &llmpick_plugin_sdk::Candidate<'_>| c.est_cost.unwrap_or(f64::INFINITY);
//!         match request.eligible().min_by(|a, b| cost(a).total_cmp(&cost(b))) {
//!             Some(cheapest) => choice.choose(cheapest.index).reason("the cheapest"),
//!             None => choice.abstain(),
//!         };
//!         Ok(())
//!     }
//! }
//!
//! export_plugins!(router CheapestFirst);
//! ```
//!
//! Unknown numbers are `None` on this side and NaN on the wire. Every chance a router takes
//! must come from [`SelectRequest::seed`], so that decisions replay; and
//! [`RouterPlugin::select`] must not change what [`RouterPlugin::snapshot`] writes.
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
pub mod caps {
    pub use llmpick_plugin_abi::{
        CAP_MULTI_SELECT as MULTI_SELECT, CAP_NEEDS_FEATURES as NEEDS_FEATURES,
        CAP_NEEDS_PROMPT as NEEDS_PROMPT,
    };
}

/// Learnt state as JSON, for [`RouterPlugin::snapshot`].
pub fn to_json<T: serde::Serialize>(state: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(state).map_err(|error| Error::internal(format!("write state: {error}")))
}

/// Learnt state from JSON, for [`RouterPlugin::restore`]; a bad one is an [`Error::state`].
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
