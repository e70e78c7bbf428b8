//! The runtime of a request: choose, reserve, run, settle, score, record, learn, fall back.
//!
//! [`Dispatch`] knows no backend, scorer or router by name; whoever builds it hands them in as
//! [`Parts`]. A request goes in as a [`RouteRequest`] and comes back as a stream of
//! [`RouteEvent`]s. What was decided, paid and learnt is in the ledger before the last event.

mod candidates;
mod clock;
mod dispatch;
mod drive;
mod error;
mod event;
mod fallback;
mod grade;
mod learner;
mod open;
mod plan;
mod request;
mod settings;
mod shadow;
mod task;
mod work;

pub use clock::{Clock, SystemClock};
pub use dispatch::{Dispatch, Parts, Planned};
pub use error::DispatchError;
pub use event::{
    Attempt, PartSummary, RouteEvent, RouteStream, RouteSummary, TaskEvent, TaskStream, TaskSummary,
};
pub use learner::Handover;
pub use llmpick_ledger::{ArmStats, RouteRecord, StatsFilter};
pub use request::{MOST_FEATURES, Measured, Part, RouteRequest, Target};
pub use settings::{ContextFrom, DispatchSettings};
