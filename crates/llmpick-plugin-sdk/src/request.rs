//! What the host asks, in Rust: copied out of the C structs, strides and sizes honoured.

use std::time::Duration;

use llmpick_plugin_abi as abi;

use crate::{Error, Result};

/// How the chosen arms work together.
///
/// ```
/// use llmpick_plugin_sdk::Mode;
///
/// assert_eq!(Mode::ALL[0], Mode::Single);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Run the first choice; the others only if it fails.
    Single,
    /// In order, stop at the first good answer (AWC).
    AnyWin,
    /// All at once, each does a part, parts add (SUC).
    SumUp,
    /// All at once, every part must succeed (AIC).
    AllIn,
}

impl Mode {
    /// All modes, simplest first.
    pub const ALL: [Mode; 4] = [Mode::Single, Mode::AnyWin, Mode::SumUp, Mode::AllIn];

    pub(crate) const fn bit(self) -> u32 {
        match self {
            Mode::Single => abi::MODE_SINGLE,
            Mode::AnyWin => abi::MODE_ANY_WIN,
            Mode::SumUp => abi::MODE_SUM_UP,
            Mode::AllIn => abi::MODE_ALL_IN,
        }
    }
}

/// A set of modes.
///
/// ```
/// use llmpick_plugin_sdk::{Mode, Modes};
///
/// let modes: Modes = [Mode::AnyWin, Mode::Single].into_iter().collect();
/// assert!(modes.contains(Mode::AnyWin) && !modes.contains(Mode::AllIn));
/// assert_eq!(modes.iter().next(), Some(Mode::Single));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes(pub(crate) u32);

impl Modes {
    /// Every mode this SDK knows.
    pub const ALL: Modes =
        Modes(abi::MODE_SINGLE | abi::MODE_ANY_WIN | abi::MODE_SUM_UP | abi::MODE_ALL_IN);

    /// True when `mode` is in the set.
    pub fn contains(self, mode: Mode) -> bool {
        self.0 & mode.bit() != 0
    }

    /// The modes in it, simplest first.
    pub fn iter(self) -> impl Iterator<Item = Mode> {
        Mode::ALL.into_iter().filter(move |&m| self.contains(m))
    }
}

impl FromIterator<Mode> for Modes {
    fn from_iter<I: IntoIterator<Item = Mode>>(modes: I) -> Self {
        Self(modes.into_iter().fold(0, |bits, mode| bits | mode.bit()))
    }
}

/// One arm, for one request. Money is in dollars; `None` means unknown.
///
/// ```
/// use llmpick_plugin_sdk::Candidate;
///
/// let arm = Candidate { id: "small", est_cost: None, ..Default::default() };
/// let cost = arm.est_cost.unwrap_or(f64::INFINITY); // Unknown comes last.
/// assert!(cost > 1.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate<'a> {
    /// Its place in the request, which [`Choice`](crate::Choice) wants.
    pub index: usize,
    /// Stable across restarts: key learnt state by it.
    pub id: &'a str,
    /// Computes on this machine.
    pub local: bool,
    /// Loaded: no cold start to pay.
    pub warm: bool,
    /// Healthy, fits the context, permitted. Only eligible arms may be chosen.
    pub eligible: bool,
    /// Tokens of its context.
    pub context_tokens: u32,
    /// Dollars per 10⁶ prompt tokens.
    pub price_in: Option<f64>,
    /// Dollars per 10⁶ completion tokens.
    pub price_out: Option<f64>,
    /// Expected dollars of this request.
    pub est_cost: Option<f64>,
    /// Upper bound of this request in dollars: scales cost radii.
    pub cost_max: Option<f64>,
    /// Measured, whole response, smoothed, in ms.
    pub latency_ms: Option<f64>,
    /// Measured, first token, smoothed, in ms.
    pub ttft_ms: Option<f64>,
    /// Measured, smoothed, 0..=1.
    pub score: Option<f64>,
    /// Calls that succeeded.
    pub n_ok: u64,
    /// Calls that failed.
    pub n_err: u64,
    /// Calls running or queued now.
    pub inflight: u32,
}

/// One question to a router. Build one in a unit test with `..Default::default()`.
///
/// ```
/// use llmpick_plugin_sdk::{Candidate, SelectRequest};
///
/// let request = SelectRequest {
///     candidates: vec![Candidate { id: "small", eligible: true, ..Default::default() }],
///     seed: 7,
///     ..Default::default()
/// };
/// assert_eq!(request.max_arms, 1);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SelectRequest<'a> {
    /// Number of the request; feedback carries it.
    pub request_id: u64,
    /// The only source of chance: same state, same request, same seed, same choice.
    pub seed: u64,
    /// Changes when the set or the order of ids changes.
    pub arms_epoch: u64,
    /// Time allowed for the answer; a late one is discarded.
    pub budget: Duration,
    /// The arms, `candidates[i].index == i`.
    pub candidates: Vec<Candidate<'a>>,
    /// Modes the host will execute.
    pub allowed_modes: Modes,
    /// Context tag, may be empty.
    pub task: &'a str,
    /// Opaque, may be empty.
    pub session: &'a str,
    /// The prompt; empty unless the plugin declared `NEEDS_PROMPT`.
    pub prompt: &'a str,
    /// Features; empty unless the plugin declared `NEEDS_FEATURES`.
    pub features: &'a [f32],
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens that may be generated.
    pub max_new_tokens: u32,
    /// The user's limit for this request in dollars.
    pub max_cost: Option<f64>,
    /// The user's limit in ms.
    pub max_latency_ms: Option<f64>,
    /// The least score the user accepts.
    pub min_score: Option<f64>,
    /// Long-term budget per request in dollars (the paper's ρ).
    pub cost_budget: Option<f64>,
    /// Most arms that may run for this request (the paper's N).
    pub max_arms: usize,
}

impl Default for SelectRequest<'_> {
    fn default() -> Self {
        Self {
            request_id: 0,
            seed: 0,
            arms_epoch: 0,
            budget: Duration::from_millis(100),
            candidates: Vec::new(),
            allowed_modes: Modes::ALL,
            task: "",
            session: "",
            prompt: "",
            features: &[],
            prompt_tokens: 0,
            max_new_tokens: 0,
            max_cost: None,
            max_latency_ms: None,
            min_score: None,
            cost_budget: None,
            max_arms: 1,
        }
    }
}

impl<'a> SelectRequest<'a> {
    /// The arms that may be chosen.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Candidate, SelectRequest};
    /// let arm = |id, eligible| Candidate { id, eligible, ..Default::default() };
    /// let candidates = vec![arm("down", false), arm("up", true)];
    /// let request = SelectRequest { candidates, ..Default::default() };
    /// let ids: Vec<&str> = request.eligible().map(|arm| arm.id).collect();
    /// assert_eq!(ids, ["up"]);
    /// ```
    pub fn eligible(&self) -> impl Iterator<Item = &Candidate<'a>> {
        self.candidates
            .iter()
            .filter(|candidate| candidate.eligible)
    }

    /// True when the host will execute `mode`.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Mode, SelectRequest};
    /// let allowed_modes = [Mode::Single].into_iter().collect();
    /// let request = SelectRequest { allowed_modes, ..Default::default() };
    /// assert!(!request.allows(Mode::AnyWin));
    /// ```
    pub fn allows(&self, mode: Mode) -> bool {
        self.allowed_modes.contains(mode)
    }

    /// A number from 0 up to 1, drawn from the request's seed; each `draw` is a number of its
    /// own. (The finaliser of splitmix64, Steele, Lea and Flood 2014.)
    ///
    /// ```
    /// # use llmpick_plugin_sdk::SelectRequest;
    /// let request = SelectRequest { seed: 7, ..Default::default() };
    /// let tails = request.chance(0) < 0.5;
    /// assert_eq!(tails, request.chance(0) < 0.5, "the same seed, the same chance");
    /// assert_ne!(request.chance(0), request.chance(1));
    /// ```
    pub fn chance(&self, draw: u64) -> f64 {
        let step = draw.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed.wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Reads a request, its candidates into the memory of an empty list.
    ///
    /// # Safety
    /// `raw` is NULL or a request of the host, valid for `'a` (rule R1: until the call returns).
    pub(crate) unsafe fn from_raw(
        raw: *const abi::SelectReq,
        room: Vec<Candidate<'a>>,
    ) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid("the host passed no request"));
        }
        // SAFETY: not NULL, and a struct that says its own size.
        let raw = unsafe { abi::read_sized(raw) };
        // SAFETY: the host's strings and arrays live for `'a`, by the caller's promise.
        unsafe {
            Ok(Self {
                request_id: raw.request_id,
                seed: raw.seed,
                arms_epoch: raw.arms_epoch,
                budget: Duration::from_nanos(raw.budget_ns),
                candidates: candidates(&raw, room)?,
                allowed_modes: Modes(raw.allowed_modes),
                task: text(raw.task)?,
                session: text(raw.session)?,
                prompt: text(raw.prompt)?,
                features: floats(raw.features, raw.n_features),
                prompt_tokens: raw.prompt_tokens,
                max_new_tokens: raw.max_new_tokens,
                max_cost: known(raw.max_cost),
                max_latency_ms: known(raw.max_latency_ms),
                min_score: known(raw.min_score),
                cost_budget: known(raw.cost_budget),
                max_arms: raw.max_arms as usize,
            })
        }
    }
}

/// How an arm's call ended.
///
/// ```
/// use llmpick_plugin_sdk::Outcome;
///
/// let is_the_arms_fault = |outcome| matches!(outcome, Outcome::Error | Outcome::Timeout);
/// assert!(is_the_arms_fault(Outcome::Timeout) && !is_the_arms_fault(Outcome::Cancelled));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It answered.
    Ok,
    /// It failed.
    Error,
    /// It took too long.
    Timeout,
    /// The client went away.
    Cancelled,
    /// Something a newer host says.
    Other(u32),
}

impl Outcome {
    fn from_raw(raw: u32) -> Self {
        match raw {
            abi::OUTCOME_OK => Outcome::Ok,
            abi::OUTCOME_ERROR => Outcome::Error,
            abi::OUTCOME_TIMEOUT => Outcome::Timeout,
            abi::OUTCOME_CANCELLED => Outcome::Cancelled,
            other => Outcome::Other(other),
        }
    }
}

/// What came back from one arm that ran. May be late, out of order, or from before a reload.
///
/// ```
/// use llmpick_plugin_sdk::Feedback;
///
/// let feedback = Feedback { candidate_id: "small", score: Some(0.5), ..Default::default() };
/// assert_eq!(feedback.cost, None, "unknown, or told before");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feedback<'a> {
    /// Number of the request.
    pub request_id: u64,
    /// Who ran.
    pub candidate_id: &'a str,
    /// Context tag, may be empty.
    pub task: &'a str,
    /// Features of the request, may be empty.
    pub features: &'a [f32],
    /// How it ended.
    pub outcome: Outcome,
    /// The host or the user chose, not this plugin.
    pub fallback: bool,
    /// Latency includes loading the model.
    pub cold: bool,
    /// Its place in the plan.
    pub position: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Whole response in ms; `None` when this is a later score for a call already reported.
    pub latency_ms: Option<f64>,
    /// First token in ms.
    pub ttft_ms: Option<f64>,
    /// Dollars; `None` when this is a later score for a call already reported.
    pub cost: Option<f64>,
    /// 0..=1; `None` when nothing scored it.
    pub score: Option<f64>,
}

impl Default for Feedback<'_> {
    fn default() -> Self {
        Self {
            request_id: 0,
            candidate_id: "",
            task: "",
            features: &[],
            outcome: Outcome::Ok,
            fallback: false,
            cold: false,
            position: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            latency_ms: None,
            ttft_ms: None,
            cost: None,
            score: None,
        }
    }
}

impl<'a> Feedback<'a> {
    /// # Safety
    /// `raw` is NULL or a feedback of the host, valid for `'a`.
    pub(crate) unsafe fn from_raw(raw: *const abi::Feedback) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid("the host passed no feedback"));
        }
        // SAFETY: not NULL, and a struct that says its own size.
        let raw = unsafe { abi::read_sized(raw) };
        // SAFETY: the host's strings and arrays live for `'a`, by the caller's promise.
        unsafe {
            Ok(Self {
                request_id: raw.request_id,
                candidate_id: text(raw.candidate_id)?,
                task: text(raw.task)?,
                features: floats(raw.features, raw.n_features),
                outcome: Outcome::from_raw(raw.outcome),
                fallback: raw.flags & abi::FB_FALLBACK != 0,
                cold: raw.flags & abi::FB_COLD != 0,
                position: raw.position,
                prompt_tokens: raw.prompt_tokens,
                completion_tokens: raw.completion_tokens,
                latency_ms: known(raw.latency_ms),
                ttft_ms: known(raw.ttft_ms),
                cost: known(raw.cost),
                score: known(raw.score),
            })
        }
    }
}

/// One question to a scorer.
///
/// ```
/// use llmpick_plugin_sdk::ScoreRequest;
///
/// let request = ScoreRequest { response: "42", reference: "42", ..Default::default() };
/// assert!(request.prompt.is_empty());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreRequest<'a> {
    /// Number of the request, 0 where there is none.
    pub request_id: u64,
    /// The only source of chance.
    pub seed: u64,
    /// Time allowed for the answer.
    pub budget: Duration,
    /// How the arm's call ended.
    pub outcome: Outcome,
    /// Who answered, may be empty.
    pub candidate_id: &'a str,
    /// Context tag, may be empty.
    pub task: &'a str,
    /// What was asked.
    pub prompt: &'a str,
    /// What was answered.
    pub response: &'a str,
    /// The expected answer, may be empty.
    pub reference: &'a str,
}

impl Default for ScoreRequest<'_> {
    fn default() -> Self {
        Self {
            request_id: 0,
            seed: 0,
            budget: Duration::from_secs(1),
            outcome: Outcome::Ok,
            candidate_id: "",
            task: "",
            prompt: "",
            response: "",
            reference: "",
        }
    }
}

impl<'a> ScoreRequest<'a> {
    /// # Safety
    /// `raw` is NULL or a request of the host, valid for `'a`.
    pub(crate) unsafe fn from_raw(raw: *const abi::ScoreReq) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid("the host passed no request"));
        }
        // SAFETY: not NULL, and a struct that says its own size.
        let raw = unsafe { abi::read_sized(raw) };
        // SAFETY: the host's strings live for `'a`, by the caller's promise.
        unsafe {
            Ok(Self {
                request_id: raw.request_id,
                seed: raw.seed,
                budget: Duration::from_nanos(raw.budget_ns),
                outcome: Outcome::from_raw(raw.outcome),
                candidate_id: text(raw.candidate_id)?,
                task: text(raw.task)?,
                prompt: text(raw.prompt)?,
                response: text(raw.response)?,
                reference: text(raw.reference)?,
            })
        }
    }
}

/// # Safety
/// The request's array is readable as its counts and stride say, for `'a`.
unsafe fn candidates<'a>(
    raw: &abi::SelectReq,
    mut candidates: Vec<Candidate<'a>>,
) -> Result<Vec<Candidate<'a>>> {
    let count = raw.n_candidates as usize;
    let stride = raw.candidate_size as usize;
    if count == 0 {
        return Ok(candidates);
    }
    if raw.candidates.is_null() || stride == 0 {
        return Err(Error::invalid("the host passed no candidates"));
    }
    let one = |index: usize| {
        // SAFETY: `index < count`, so the element lies inside the host's array; no more
        // than `stride` bytes of it are read.
        unsafe {
            let at = raw.candidates.byte_add(index * stride);
            Candidate::from_raw(index, &abi::read_prefix(at, stride))
        }
    };
    // Collecting results would grow the list step by step: it knows no length beforehand.
    candidates.reserve(count);
    for index in 0..count {
        candidates.push(one(index)?);
    }
    Ok(candidates)
}

/// An empty list in the memory of this one, for candidates of any request.
pub(crate) fn emptied(candidates: Vec<Candidate<'_>>) -> Vec<Candidate<'static>> {
    // The standard library collects into the memory that it empties.
    candidates.into_iter().map_while(|_| None).collect()
}

impl<'a> Candidate<'a> {
    /// # Safety
    /// The id is readable for `'a`.
    unsafe fn from_raw(index: usize, raw: &abi::Candidate) -> Result<Self> {
        Ok(Self {
            index,
            // SAFETY: the caller's promise is passed on.
            id: unsafe { text(raw.id) }?,
            local: raw.flags & abi::CAND_LOCAL != 0,
            warm: raw.flags & abi::CAND_WARM != 0,
            eligible: raw.flags & abi::CAND_ELIGIBLE != 0,
            context_tokens: raw.context_tokens,
            price_in: known(raw.price_in),
            price_out: known(raw.price_out),
            est_cost: known(raw.est_cost),
            cost_max: known(raw.cost_max),
            latency_ms: known(raw.latency_ms),
            ttft_ms: known(raw.ttft_ms),
            score: known(raw.score),
            n_ok: raw.n_ok,
            n_err: raw.n_err,
            inflight: raw.inflight,
        })
    }
}

/// # Safety
/// As for [`abi::Str::text`].
pub(crate) unsafe fn text<'a>(raw: abi::Str) -> Result<&'a str> {
    // SAFETY: the caller's promise is passed on.
    unsafe { raw.text() }.ok_or_else(|| Error::invalid("the host passed text that is not UTF-8"))
}

/// # Safety
/// `ptr` is NULL or points to `len` floats that are readable for `'a`.
unsafe fn floats<'a>(ptr: *const f32, len: usize) -> &'a [f32] {
    if ptr.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: not NULL, and readable by the caller's promise.
    unsafe { std::slice::from_raw_parts(ptr, len) }
}

fn known(number: f64) -> Option<f64> {
    (!number.is_nan()).then_some(number)
}
