//! SQLite: decisions, costs, scores, budgets; and beside it the routers' snapshots.
//!
//! One file remembers everything that was decided, paid and learnt. Several programs may have
//! it open at once: each write is one transaction that takes SQLite's write lock at its start,
//! so row ids rise in the order in which things became true, and a router that reads feedback in
//! id order learns the same in every program.
//!
//! The ledger reads no clock; times are handed in as milliseconds since 1970.

mod budget;
mod call;
mod error;
mod feedback;
mod ledger;
mod measured;
mod owner;
mod part;
mod recover;
mod route;
mod schema;
mod shadow;
mod snapshot;
mod stats;
mod value;

pub use budget::{Budget, BudgetState, Reservation, Reserved, Window};
pub use call::{CallEnd, CallId, CallRecord, PartCall};
pub use error::{LedgerError, LedgerErrorKind};
pub use feedback::{Cursor, FeedbackRecord, LateScore};
pub use ledger::{Ledger, LedgerId, OpenOptions};
pub use measured::Measured;
pub use part::{NewPart, PartEnd, PartRecord};
pub use route::{
    CandidateRecord, NewRoute, RouteEnd, RouteFilter, RouteLimits, RouteRecord, RouteStatus,
    RouteSummaryRecord, ScoredCall, prompt_hash,
};
pub use schema::{APPLICATION_ID, CURRENT, LedgerVersion};
pub use shadow::{ShadowRecord, ShadowStats};
pub use snapshot::{LoadedSnapshot, SnapshotError, SnapshotStore, SnapshotVersion};
pub use stats::{ArmStats, StatsFilter};
