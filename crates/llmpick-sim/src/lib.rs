//! What a router is worth, before it meets a request: simulation and replay.
//!
//! [`simulate`] plays a router against an [`Environment`] whose arms have known means, by the
//! protocol of C2MAB-V's simulations; [`replay`](replay()) plays it against a [`Table`] of what
//! many models really answered and cost; a [`Log`] judges it by what a ledger holds
//! ([`offpolicy`]). All drive an ordinary [`llmpick_core::Router`], by the calls that dispatch
//! would make, so what is measured is what will run. No clock is read: time is the number of
//! the round, and one seed gives one result on any machine.

mod bench;
mod chance;
mod converge;
mod csv;
mod drive;
mod environment;
mod estimate;
mod logged;
pub mod offpolicy;
mod plot;
mod references;
mod replay;
mod simulate;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod watch;

pub use bench::{BenchError, BenchSettings, RoutingBench, Timing, bench};
pub use converge::{ConvergeReport, ConvergeSettings, converge};
pub use csv::CsvError;
pub use drive::PlayError;
pub use environment::{Environment, EnvironmentError, EnvironmentErrorKind, Shock, SimArm};
pub use estimate::Estimate;
pub use logged::{LeftOut, Log, LogReport, LogSettings};
pub use plot::{replay_svg, svg};
pub use references::{ArmFigure, Figure, Mix, References, Share, references};
pub use replay::{ReplayPoint, ReplayReport, ReplaySettings, replay};
pub use simulate::{
    Checkpoint, ShockReport, SimReport, SimSettings, checkpoints, optimum, simulate,
};
pub use source::{RouterSource, SourceError};
pub use table::{Costs, Table, TableError, TableErrorKind, TableFiles, TokenPrice};
pub use watch::Watch;
