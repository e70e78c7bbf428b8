//! Finds, checks, loads and supervises plugins.
//!
//! A loaded plugin is an ordinary [`llmpick_core::Router`] or [`llmpick_core::Scorer`]. What
//! it does wrong costs one decision's quality and never an answer: outputs are checked, a
//! late or wrong one is replaced by the [`FallbackRouter`]'s, an instance that panicked is
//! rebuilt from its last good state, and one that keeps failing is quarantined.
//!
//! Where a plugin runs is its [`Isolation`]. On a thread of its own it shares our memory: it can
//! still crash the process, and a call that never returns keeps its thread for as long as the
//! process lives. At most `quarantine_after` threads are lost that way, and they do not keep the
//! process from exiting. In a process of its own, neither a crash nor an endless loop costs more
//! than one decision.
//!
//! What may be loaded at all is held in a [`PluginLock`]: content that is new is tried out in a
//! process of its own, changed content is refused until somebody trusts it, and content that a
//! process died of is not loaded again.
#![allow(unsafe_code)]

mod call;
mod child;
mod context;
mod error;
mod fallback;
mod find;
mod instance;
pub mod kit;
mod lane;
mod library;
mod lock;
mod router;
mod schedule;
mod scorer;
mod sentinel;
mod trust;
mod verdict;
mod worker;

pub use child::{can_start_processes, run_if_child, use_child_program};
pub use error::{CreateError, FindError, LoadError, LoadErrorKind};
pub use fallback::FallbackRouter;
pub use find::{find, list};
pub use library::{Library, LoadOptions, PluginInfo, PluginKind, ProbeReport, digest_file};
pub use llmpick_plugin_abi::is_plugin_name;
pub use lock::{LockError, Pin, PluginLock, Suspect, TrustedBy};
pub use router::{Isolation, Rounding, RouterOptions, router};
pub use schedule::{LocalScheduler, draw, nth_seed, redeal};
pub use scorer::{ScorerOptions, scorer};
