//! Fakes, a manual clock, and the suites that every backend and every router must pass.
//!
//! A new backend joins with one line, `backend_suite(|| make()).await`, and a new router
//! with one, `router_suite(make)`; native and loaded routers pass the same one.

mod backend_suite;
mod clock;
mod fake_backend;
mod router_suite;

pub use backend_suite::backend_suite;
pub use clock::ManualClock;
pub use fake_backend::{Answer, FakeBackend};
pub use router_suite::{Check, candidate, router_checks, router_suite, select_request};
