//! One instance of a plugin: the only place that calls into it.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::time::Duration;

use llmpick_core::{
    Candidate, Feedback, Locality, Mode, Outcome, OutcomeKind, SelectRequest, Snapshot,
};
use llmpick_plugin_abi as abi;
use serde_json::Value;

use crate::PluginInfo;
use crate::call::{self, CallError};
use crate::context::{Context, clean};
use crate::library::{RouterTable, ScorerTable};

/// Bytes of the note that a plugin may give.
pub(crate) const REASON: usize = 256;

/// A live `self` with everything it may point to.
struct Object {
    this: *mut c_void,
    destroy: abi::DestroyFn,
    /// Given to `create`; must stay where it is until `destroy` returned.
    host: ManuallyDrop<Box<abi::Host>>,
    context: ManuallyDrop<Box<Context>>,
    poisoned: bool,
}

// SAFETY: rule R3 of the header: calls may come from different threads as long as they do
// not overlap, which `&mut self` on everything below sees to.
unsafe impl Send for Object {}

impl Object {
    fn create(
        info: &PluginInfo,
        create: abi::CreateFn,
        destroy: abi::DestroyFn,
        config: &Value,
    ) -> Result<Self, CallError> {
        let context = Box::new(Context::new(&info.name, config.clone()));
        let host = Box::new(context.host());
        let json = config.to_string();
        let (mut this, mut error) = (std::ptr::null_mut(), call::error());
        // SAFETY: the function is the plugin's own; all pointers live through the call, and
        // `host` until `destroy`.
        let status = unsafe {
            create(
                &raw const *host,
                abi::Str::new(&json),
                &mut this,
                &mut error,
            )
        };
        context.created();
        call::result(status, &error)?;
        Ok(Self {
            this,
            destroy,
            host: ManuallyDrop::new(host),
            context: ManuallyDrop::new(context),
            poisoned: false,
        })
    }

    /// Reads what a call left, and remembers a panic.
    fn result(&mut self, status: abi::Status, error: &abi::Error) -> Result<(), CallError> {
        self.poisoned |= status == abi::E_PANIC;
        call::result(status, error)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: `this` came from `create` of the same table, and this is its last call.
        unsafe { (self.destroy)(self.this) };
        if self.poisoned {
            // A poisoned instance may have left something behind that still knows `ctx`.
            return;
        }
        // SAFETY: not used after this.
        unsafe {
            ManuallyDrop::drop(&mut self.host);
            ManuallyDrop::drop(&mut self.context);
        }
    }
}

/// What a router wrote, not yet believed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RawDecision {
    pub mode: u32,
    /// What the plugin says the length is.
    pub choices_len: u32,
    /// The room it had.
    pub choices_cap: u32,
    pub choices: Vec<u32>,
    pub propensity: f64,
    pub marginals: Vec<f64>,
    pub reason: String,
}

/// A live router.
pub(crate) struct RouterInstance {
    object: Object,
    table: RouterTable,
    caps: u64,
    state_version: u32,
    state_version_min: u32,
    /// Reused from call to call.
    candidates: Vec<abi::Candidate>,
}

// SAFETY: `Object` is `Send`, function pointers are, and `candidates` holds pointers only
// while `select` runs.
unsafe impl Send for RouterInstance {}

impl RouterInstance {
    pub(crate) fn create(
        info: &PluginInfo,
        table: RouterTable,
        config: &Value,
    ) -> Result<Self, CallError> {
        Ok(Self {
            object: Object::create(info, table.create, table.destroy, config)?,
            table,
            caps: info.caps,
            state_version: info.state_version,
            state_version_min: info.state_version_min,
            candidates: Vec::new(),
        })
    }

    /// Asks for a choice; `budget` is what the plugin is told.
    pub(crate) fn select(
        &mut self,
        request: &SelectRequest<'_>,
        budget: Duration,
    ) -> Result<RawDecision, CallError> {
        self.candidates.clear();
        self.candidates.extend(request.candidates.iter().map(wire));
        let count = self.candidates.len();
        let raw = self.request(request, budget);
        // One place per candidate even where fewer may run: a plugin that ignores the
        // capacity by a little writes into memory that is its to spoil.
        let mut choices = vec![u32::MAX; count];
        let mut marginals = vec![f64::NAN; count];
        let mut reason = [0u8; REASON];
        let cap = count.min(request.max_arms as usize) as u32;
        let mut out = abi::Decision {
            size: size_of::<abi::Decision>() as u32,
            mode: 0,
            choices: choices.as_mut_ptr(),
            choices_cap: cap,
            choices_len: 0,
            propensity: f64::NAN,
            marginals: marginals.as_mut_ptr(),
            reason: reason.as_mut_ptr().cast(),
            reason_cap: REASON as u32,
            reason_len: 0,
        };
        let mut error = call::error();
        // SAFETY: `this` is live, and every buffer lives through the call with the room it says.
        let status = unsafe { (self.table.select)(self.object.this, &raw, &mut out, &mut error) };
        self.candidates.clear(); // They point into the request.
        self.object.result(status, &error)?;
        choices.truncate(out.choices_len.min(cap) as usize);
        Ok(RawDecision {
            mode: out.mode,
            choices_len: out.choices_len,
            choices_cap: cap,
            choices,
            propensity: out.propensity,
            marginals,
            reason: clean(&reason[..(out.reason_len as usize).min(REASON)]),
        })
    }

    fn request(&self, request: &SelectRequest<'_>, budget: Duration) -> abi::SelectReq {
        let wants = |cap: u64| self.caps & cap != 0;
        let prompt = request.prompt.filter(|_| wants(abi::CAP_NEEDS_PROMPT));
        let features = request.features.filter(|_| wants(abi::CAP_NEEDS_FEATURES));
        abi::SelectReq {
            size: size_of::<abi::SelectReq>() as u32,
            allowed_modes: request
                .allowed_modes
                .iter()
                .map(|&m| mode_bit(m))
                .fold(0, |a, b| a | b),
            request_id: request.route_id.0,
            seed: request.seed,
            arms_epoch: request.arms_epoch,
            budget_ns: u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX),
            candidates: self.candidates.as_ptr(),
            n_candidates: self.candidates.len() as u32,
            candidate_size: size_of::<abi::Candidate>() as u32,
            task: abi::Str::new(request.task),
            session: abi::Str::new(request.session),
            prompt: prompt.map_or(abi::Str::EMPTY, abi::Str::new),
            features: features.map_or(std::ptr::null(), <[f32]>::as_ptr),
            n_features: features.map_or(0, <[f32]>::len),
            prompt_tokens: request.prompt_tokens,
            max_new_tokens: request.max_new_tokens,
            max_cost: request.max_cost,
            max_latency_ms: request.max_latency_ms,
            min_score: request.min_score,
            cost_budget: request.cost_budget,
            max_arms: request.max_arms,
            reserved: 0,
        }
    }

    /// Tells what came back. A router without the function learns nothing, and that is fine.
    pub(crate) fn feedback(&mut self, feedback: &Feedback) -> Result<(), CallError> {
        let Some(function) = self.table.feedback else {
            return Ok(());
        };
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let wanted = self.caps & abi::CAP_NEEDS_FEATURES != 0 && !feedback.features.is_empty();
        let features = wanted.then_some(&feedback.features);
        let raw = abi::Feedback {
            size: size_of::<abi::Feedback>() as u32,
            outcome: match feedback.outcome {
                OutcomeKind::Ok => abi::OUTCOME_OK,
                OutcomeKind::Error => abi::OUTCOME_ERROR,
                OutcomeKind::Timeout => abi::OUTCOME_TIMEOUT,
                OutcomeKind::Cancelled => abi::OUTCOME_CANCELLED,
            },
            request_id: feedback.route_id.0,
            candidate_id: abi::Str::new(feedback.arm.as_str()),
            task: abi::Str::new(&feedback.task),
            features: features.map_or(std::ptr::null(), |features| features.as_ptr()),
            n_features: features.map_or(0, Vec::len),
            flags: flag(feedback.fallback, abi::FB_FALLBACK) | flag(feedback.cold, abi::FB_COLD),
            position: feedback.position,
            prompt_tokens: feedback.prompt_tokens,
            completion_tokens: feedback.completion_tokens,
            latency_ms: feedback.latency_ms,
            ttft_ms: feedback.ttft_ms,
            cost: feedback.cost,
            score: feedback.score.map_or(f64::NAN, f64::from),
        };
        let mut error = call::error();
        // SAFETY: `this` is live, and the feedback lives through the call.
        let status = unsafe { function(self.object.this, &raw, &mut error) };
        self.object.result(status, &error)
    }

    /// Whether it has snapshots at all.
    pub(crate) fn keeps_state(&self) -> bool {
        self.table.snapshot.is_some()
    }

    /// All that it learnt, at most `max_bytes` of it.
    pub(crate) fn snapshot(&mut self, max_bytes: usize) -> Result<Snapshot, CallError> {
        let version = self.state_version;
        let Some(function) = self.table.snapshot else {
            let state = Vec::new();
            return Ok(Snapshot { version, state });
        };
        let mut sink = Sink {
            state: Vec::new(),
            max_bytes,
            full: false,
        };
        let writer = abi::Writer {
            size: size_of::<abi::Writer>() as u32,
            reserved: 0,
            ctx: (&raw mut sink).cast(),
            write: Some(write),
        };
        let mut error = call::error();
        // SAFETY: `this` is live, and the writer and its sink live through the call.
        let status = unsafe { function(self.object.this, &writer, &mut error) };
        if sink.full && status != abi::E_PANIC {
            return Err(CallError {
                status: abi::E_IO,
                message: format!("its snapshot has more than {max_bytes} bytes"),
            });
        }
        self.object.result(status, &error)?;
        let state = sink.state;
        Ok(Snapshot { version, state })
    }

    /// Gives it learnt state; versions that it does not read never reach it.
    pub(crate) fn restore(&mut self, snapshot: &Snapshot) -> Result<(), CallError> {
        let (oldest, newest) = (self.state_version_min, self.state_version);
        let refuse = |message| {
            let status = abi::E_STATE;
            Err(CallError { status, message })
        };
        if !(oldest..=newest).contains(&snapshot.version) {
            let version = snapshot.version;
            return refuse(format!(
                "it has version {version}, and the router reads {oldest} to {newest}"
            ));
        }
        let Some(function) = self.table.restore else {
            return match snapshot.state.is_empty() {
                true => Ok(()),
                false => refuse("the router keeps no state".to_owned()),
            };
        };
        let state = abi::Bytes {
            ptr: snapshot.state.as_ptr(),
            len: snapshot.state.len(),
        };
        let mut error = call::error();
        // SAFETY: `this` is live, and the state lives through the call.
        let status = unsafe { function(self.object.this, snapshot.version, state, &mut error) };
        self.object.result(status, &error)
    }
}

struct Sink {
    state: Vec<u8>,
    max_bytes: usize,
    full: bool,
}

unsafe extern "C" fn write(ctx: *mut c_void, ptr: *const u8, len: usize) -> abi::Status {
    // SAFETY: `ctx` is the sink of the `snapshot` call that is running.
    let Some(sink) = (unsafe { ctx.cast::<Sink>().as_mut() }) else {
        return abi::E_INVALID;
    };
    if len == 0 {
        return abi::OK;
    }
    if ptr.is_null() {
        return abi::E_INVALID;
    }
    if sink.full || len > sink.max_bytes - sink.state.len() {
        sink.full = true;
        return abi::E_IO;
    }
    // SAFETY: the plugin passes `len` readable bytes.
    sink.state
        .extend_from_slice(unsafe { std::slice::from_raw_parts(ptr, len) });
    abi::OK
}

/// A live scorer.
pub(crate) struct ScorerInstance {
    object: Object,
    table: ScorerTable,
}

impl ScorerInstance {
    pub(crate) fn create(
        info: &PluginInfo,
        table: ScorerTable,
        config: &Value,
    ) -> Result<Self, CallError> {
        let object = Object::create(info, table.create, table.destroy, config)?;
        Ok(Self { object, table })
    }

    /// Grades: whatever number the plugin wrote.
    pub(crate) fn score(&mut self, outcome: &Outcome, budget: Duration) -> Result<f64, CallError> {
        let arm = outcome.arm.as_ref().map_or("", |arm| arm.as_str());
        let request = abi::ScoreReq {
            size: size_of::<abi::ScoreReq>() as u32,
            outcome: abi::OUTCOME_OK,
            request_id: outcome.route_id.map_or(0, |id| id.0),
            seed: outcome.seed,
            budget_ns: u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX),
            candidate_id: abi::Str::new(arm),
            task: abi::Str::new(&outcome.task),
            prompt: abi::Str::new(&outcome.prompt),
            response: abi::Str::new(&outcome.response),
            reference: abi::Str::new(outcome.reference.as_deref().unwrap_or_default()),
        };
        let mut out = abi::Score {
            size: size_of::<abi::Score>() as u32,
            reserved: 0,
            value: f64::NAN,
            confidence: f64::NAN,
        };
        let mut error = call::error();
        // SAFETY: `this` is live, and request and score live through the call.
        let status =
            unsafe { (self.table.score)(self.object.this, &request, &mut out, &mut error) };
        self.object.result(status, &error)?;
        Ok(out.value)
    }
}

pub(crate) const fn mode_bit(mode: Mode) -> u32 {
    match mode {
        Mode::Single => abi::MODE_SINGLE,
        Mode::AnyWin => abi::MODE_ANY_WIN,
        Mode::SumUp => abi::MODE_SUM_UP,
        Mode::AllIn => abi::MODE_ALL_IN,
    }
}

/// A candidate as the header has it; points into `candidate`.
fn wire(candidate: &Candidate) -> abi::Candidate {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    abi::Candidate {
        id: abi::Str::new(candidate.id.as_str()),
        flags: flag(candidate.locality == Locality::Local, abi::CAND_LOCAL)
            | flag(candidate.warm, abi::CAND_WARM)
            | flag(candidate.eligible, abi::CAND_ELIGIBLE),
        context_tokens: candidate.context_tokens,
        price_in: candidate.price_in,
        price_out: candidate.price_out,
        est_cost: candidate.est_cost,
        cost_max: candidate.cost_max,
        latency_ms: candidate.latency_ms,
        ttft_ms: candidate.ttft_ms,
        score: candidate.score,
        n_ok: candidate.n_ok,
        n_err: candidate.n_err,
        inflight: candidate.inflight,
        reserved: 0,
    }
}
