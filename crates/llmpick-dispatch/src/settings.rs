//! What the user may set about routing. Checked by whoever builds it.

use std::time::Duration;

use llmpick_core::{Mode, Score};

/// What of a request is the context under which statistics are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContextFrom {
    /// Its context tag: what kind of task it is.
    #[default]
    Task,
    /// Its session (a conversation, a user, a tenant); the tag where it names none.
    Session,
}

/// How dispatch behaves where a request says nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct DispatchSettings {
    /// Start of every seed; `None` takes the ledger's own random one.
    pub base_seed: Option<u64>,
    /// Modes the router may choose from when a request names none; never empty.
    pub modes: Vec<Mode>,
    /// Most arms of a plan, at least 1.
    pub max_arms: u32,
    /// Most arms tried for one answer when arms fail, the plan's own included; at least 1.
    pub max_attempts: u32,
    /// An answer with at least this score ends a cascade.
    pub accept_threshold: Option<Score>,
    /// What is the context of a request.
    pub context: ContextFrom,
    /// The scorer of requests that name none; `None` takes the first that has something to go by.
    pub scorer: Option<String>,
    /// Long-term budget per request in dollars (the paper's ρ).
    pub cost_budget: Option<f64>,
    /// Keys of the ledger's budgets that every request is charged to.
    pub budgets: Vec<String>,
    /// Keep the prompt's text in the ledger, not only its hash.
    pub keep_prompts: bool,
    /// Decide and record, but learn nothing.
    pub frozen: bool,
    /// Time a router has for a decision.
    pub select_budget: Duration,
    /// How long the end of an answer waits for its score; a later one is learnt all the same.
    pub score_wait: Duration,
    /// Feedbacks between two snapshots of the router, at least 1.
    pub snapshot_every: u32,
    /// Tokens per second a local arm is assumed to read before it was measured: the bound of
    /// its first reservation.
    pub assumed_prefill_tps: f64,
    /// Tokens per second a local arm is assumed to write before it was measured.
    pub assumed_decode_tps: f64,
}

impl Default for DispatchSettings {
    fn default() -> Self {
        Self {
            base_seed: None,
            modes: vec![Mode::Single],
            max_arms: 3,
            max_attempts: 3,
            accept_threshold: None,
            context: ContextFrom::Task,
            scorer: None,
            cost_budget: None,
            budgets: Vec::new(),
            keep_prompts: false,
            frozen: false,
            select_budget: Duration::from_millis(50),
            score_wait: Duration::from_millis(200),
            snapshot_every: 16,
            assumed_prefill_tps: 20.0,
            assumed_decode_tps: 2.0,
        }
    }
}
