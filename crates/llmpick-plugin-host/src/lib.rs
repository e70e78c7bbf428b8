//! Finds, checks, loads and supervises plugins.
//!
//! A loaded plugin is an ordinary [`llmpick_core::Router`] or [`llmpick_core::Scorer`]. What
//! it does wrong costs one decision's quality and never an answer: outputs are checked, a
//! late or wrong one is replaced by the [`FallbackRouter`]'s, an instance that panicked is
//! rebuilt from its last good state, and one that keeps failing is quarantined.
//!
//! What a plugin can still do, since it shares our memory: crash the process. A call that
//! never returns keeps its thread for as long as the process lives; a thread cannot be
//! taken away from code that does not give it back. At most `quarantine_after` threads are
//! lost that way, and they do not keep the process from exiting.
#![allow(unsafe_code)]

mod call;
mod context;
mod error;
mod fallback;
mod find;
mod instance;
mod lane;
mod library;
mod router;
mod schedule;
mod scorer;
mod trust;
mod verdict;
mod worker;

pub use error::{CreateError, FindError, LoadError, LoadErrorKind};
pub use fallback::FallbackRouter;
pub use find::{find, list};
pub use library::{Library, LoadOptions, PluginInfo, PluginKind};
pub use router::{Isolation, Rounding, RouterOptions, router};
pub use schedule::{LocalScheduler, draw, redeal};
pub use scorer::{ScorerOptions, scorer};
