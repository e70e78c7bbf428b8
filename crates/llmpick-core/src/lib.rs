//! The words everybody shares, and the contracts: [`Backend`], [`Router`], [`Scorer`], and
//! [`Scheduler`] for routers that leave the draw of the set to somebody else.
//!
//! A *router* chooses a *plan* of *arms*; *dispatch* runs it; a *backend* runs each
//! arm; a *scorer* grades the *outcome*; the *ledger* remembers. This crate holds only
//! those words. It does no I/O, reads no clock, and knows neither candle nor HTTP:
//! time and chance arrive as arguments.

mod arm;
mod backend;
mod id;
mod money;
mod owned;
mod request;
mod router;
mod scheduler;
mod score;
mod scorer;

pub use arm::{Arm, ArmState, Locality, Price};
pub use backend::{
    Backend, BackendError, BoxFuture, ChoiceLikelihood, ChoicesRequest, Event, EventStream, Finish,
    FinishReason, TokenPiece,
};
pub use id::{ArmId, ContextKey, InvalidId, RouteId};
pub use money::{InvalidMoney, NanoDollars};
pub use owned::OwnedRequest;
pub use request::{GenerateRequest, Message, Prompt, Role, Sampling, Usage};
pub use router::{
    Candidate, Decision, DecisionSource, Feedback, Mode, OutcomeKind, Router, RouterError,
    RouterNeeds, SelectRequest, Snapshot,
};
pub use scheduler::{Schedule, ScheduleRequest, ScheduledArm, Scheduler, SchedulerError};
pub use score::{InvalidScore, Score};
pub use scorer::{Outcome, Scorer, ScorerError};
