//! The mathematics of routing: statistics, bounds, relaxations, rounding, automata,
//! Q-learning, baselines.
//!
//! Pure: no I/O, no clock, no threads, and chance arrives as a generator. A learner's
//! [`select`](Learner::select) takes `&self`, so it cannot learn; everything is learnt in
//! [`observe`](Learner::observe), so replaying the same observations rebuilds the same
//! state, bit for bit. Arithmetic is plain IEEE 754 with `libm`'s logarithm, so one seed
//! and one state give one decision on any machine.
//!
//! Equations are cited from two papers: *C2MAB-V* (Dai, Li, Liu, Yu, Lui, arXiv 2405.16587)
//! and *PickLLM* (Sikeridis, Ramdass, Pareek, arXiv 2412.12170). From the bottom up:
//! [`stats`] estimates, [`lp`], [`awc`], [`suc`], [`aic`] and [`direct`] solve one round,
//! [`rounding`] draws a set, [`cascade`] orders it; [`c2mabv`], [`pickllm`] and
//! [`baselines`] are whole learners on top.

pub mod aic;
pub mod awc;
pub mod baselines;
pub mod budget;
pub mod c2mabv;
pub mod cascade;
pub mod chance;
pub mod cluster;
pub mod direct;
pub mod drift;
mod exact;
mod learner;
pub mod lp;
mod names;
pub mod pickllm;
pub mod rounding;
pub mod stats;
pub mod suc;
#[cfg(test)]
mod tests;
mod ties;

pub use learner::{
    ArmView, Choice, ConfigError, Ending, Learner, Mode, NoArm, Observation, Question, UnsoundState,
};
