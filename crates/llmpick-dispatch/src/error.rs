//! Why a request got no answer.

use llmpick_core::{ArmId, BackendError, NanoDollars, RouteId};
use llmpick_ledger::LedgerError;

/// Why dispatch could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The request asks for what makes no sense, or a value is out of range.
    #[error("{0}")]
    InvalidRequest(String),
    /// The named model is not in the pool.
    #[error("there is no arm `{name}`; the pool holds {known}")]
    UnknownArm {
        /// What was asked for.
        name: ArmId,
        /// What there is, for people.
        known: String,
    },
    /// The pool is empty.
    #[error("no model is in the pool; pull one, for example with `llmpick pull default`")]
    NoArms,
    /// There are arms, and none may take this request.
    #[error("no arm can take this request: {reasons}")]
    NoEligibleArm {
        /// The request's number in the ledger, which shows each arm's reason.
        route_id: RouteId,
        /// Each arm with its reason, for people.
        reasons: String,
    },
    /// A budget would be passed.
    #[error("the budget `{key}` has {left} left, and this request may cost {needed}")]
    Budget {
        /// Which budget.
        key: String,
        /// The upper bound of the request.
        needed: NanoDollars,
        /// What is neither spent nor reserved.
        left: NanoDollars,
    },
    /// A new router broke over the state of the old one, which goes on serving.
    #[error("hand over to the new router: {0}; the old one goes on")]
    Handover(String),
    /// One arm was tried, and failed.
    #[error("`{arm}` failed")]
    Arm {
        /// The request's number in the ledger.
        route_id: RouteId,
        /// Who failed.
        arm: ArmId,
        /// Why.
        #[source]
        source: BackendError,
    },
    /// Several arms were tried, and all failed.
    #[error("all arms failed: {failures}")]
    AllArmsFailed {
        /// The request's number in the ledger.
        route_id: RouteId,
        /// Each arm with its error, for people.
        failures: String,
        /// The error of the last one.
        #[source]
        last: BackendError,
    },
    /// The stream of an arm broke after its first content.
    #[error("the answer of `{arm}` was cut short")]
    Cut {
        /// The request's number in the ledger.
        route_id: RouteId,
        /// Who failed.
        arm: ArmId,
        /// Why.
        #[source]
        source: BackendError,
    },
    /// There is no such request in the ledger.
    #[error("the ledger has no route {0}")]
    UnknownRoute(RouteId),
    /// The request has no answer that a score could be about.
    #[error("route {0} has no answer to score")]
    NothingToScore(RouteId),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Dispatch is shutting down.
    #[error("the request was stopped because the program ends")]
    Stopped,
}

impl DispatchError {
    /// The failure of a backend behind this error, if that is what it is.
    pub fn backend(&self) -> Option<&BackendError> {
        match self {
            Self::Arm { source, .. } | Self::Cut { source, .. } => Some(source),
            Self::AllArmsFailed { last, .. } => Some(last),
            _ => None,
        }
    }
}
