//! What plugins are asked and told, and how it is laid out in memory.

use llmpick_plugin_abi as abi;

use super::memory::{Access, Memory, Thing};
use super::subject::{put_bytes, put_struct, put_text};

/// One arm of a request.
#[derive(Clone, Debug)]
pub(super) struct Arm {
    pub id: String,
    /// The id in it is set when the request is laid out.
    pub raw: abi::Candidate,
}

/// One question to a router.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub arms: Vec<Arm>,
    pub task: String,
    pub session: String,
    pub prompt: String,
    pub features: Vec<f32>,
    /// Pointers in it are set when the request is laid out.
    pub raw: abi::SelectReq,
}

/// An eligible, measured arm; those with a higher number cost and take more.
pub(super) fn arm(number: u32) -> Arm {
    let cost = 1e-4 * f64::from(number + 1);
    Arm {
        id: format!("arm-{number}"),
        raw: abi::Candidate {
            flags: abi::CAND_LOCAL | abi::CAND_WARM | abi::CAND_ELIGIBLE,
            context_tokens: 4096,
            price_in: cost * 1e3,
            price_out: cost * 2e3,
            est_cost: cost,
            cost_max: cost * 2.0,
            latency_ms: 100.0 * f64::from(number + 1),
            ttft_ms: 10.0 * f64::from(number + 1),
            score: 0.5,
            n_ok: 10,
            ..abi::zeroed()
        },
    }
}

impl Arm {
    pub(super) fn eligible(&self) -> bool {
        self.raw.flags & abi::CAND_ELIGIBLE != 0
    }

    pub(super) fn set_eligible(&mut self, eligible: bool) {
        self.raw.flags &= !abi::CAND_ELIGIBLE;
        self.raw.flags |= if eligible { abi::CAND_ELIGIBLE } else { 0 };
    }

    /// Every number unknown, nothing ever measured.
    pub(super) fn forget(&mut self) {
        let unknown = f64::NAN;
        self.raw = abi::Candidate {
            price_in: unknown,
            price_out: unknown,
            est_cost: unknown,
            cost_max: unknown,
            latency_ms: unknown,
            ttft_ms: unknown,
            score: unknown,
            n_ok: 0,
            ..self.raw
        };
    }
}

impl Ask {
    /// Round `round` over `count` arms: single or any-win, two arms, no limits.
    pub(super) fn new(count: u32, round: u64) -> Self {
        Self::over((0..count).map(arm).collect(), round)
    }

    /// The same over these arms.
    pub(super) fn over(arms: Vec<Arm>, round: u64) -> Self {
        let budget = crate::RouterOptions::default().deadline;
        Self {
            arms,
            task: String::new(),
            session: String::new(),
            prompt: "Why is the sky blue?".to_owned(),
            features: (0..8).map(|at| at as f32 / 8.0 - 0.5).collect(),
            raw: abi::SelectReq {
                allowed_modes: abi::MODE_SINGLE | abi::MODE_ANY_WIN,
                request_id: round,
                // Spread over all bits, as the host's seeds are.
                seed: mix(round),
                arms_epoch: 1,
                budget_ns: budget.as_nanos() as u64,
                prompt_tokens: 100,
                max_new_tokens: 100,
                max_cost: f64::NAN,
                max_latency_ms: f64::NAN,
                min_score: f64::NAN,
                cost_budget: f64::NAN,
                max_arms: 2,
                ..abi::zeroed()
            },
        }
    }

    /// Puts the request into memory. Prompt and features go only to a plugin that declares
    /// that it needs them, as the header says.
    pub(super) fn lay_out(
        &self,
        memory: &mut Memory,
        caps: u64,
        extra: usize,
    ) -> *const abi::SelectReq {
        let stride = size_of::<abi::Candidate>() + extra;
        let ids: Vec<abi::Str> = self
            .arms
            .iter()
            .map(|arm| put_text(memory, Thing::Id, &arm.id))
            .collect();
        let first = memory.room(Thing::Candidates, Access::Read, self.arms.len() * stride);
        for (place, (arm, &id)) in self.arms.iter().zip(&ids).enumerate() {
            // SAFETY: `place` is below the count that the room was made for; the stride is
            // a multiple of eight, as is the room's start.
            unsafe {
                let at = first.add(place * stride);
                at.add(size_of::<abi::Candidate>()).write_bytes(0xa5, extra);
                at.cast::<abi::Candidate>()
                    .write(abi::Candidate { id, ..arm.raw });
            }
        }
        let wants = |cap: u64| caps & cap != 0;
        let features = match wants(abi::CAP_NEEDS_FEATURES) {
            true => &self.features[..],
            false => &[],
        };
        let prompt = match wants(abi::CAP_NEEDS_PROMPT) {
            true => self.prompt.as_str(),
            false => "",
        };
        let raw = abi::SelectReq {
            candidates: first.cast_const().cast(),
            n_candidates: self.arms.len() as u32,
            candidate_size: stride as u32,
            task: put_text(memory, Thing::Text, &self.task),
            session: put_text(memory, Thing::Text, &self.session),
            prompt: put_text(memory, Thing::Text, prompt),
            features: floats(memory, features),
            n_features: features.len(),
            ..self.raw
        };
        put_struct(memory, Thing::Request, raw, extra)
    }
}

/// What came back from one arm that ran.
#[derive(Clone, Debug)]
pub(super) struct Feedback {
    pub arm: String,
    pub task: String,
    pub features: Vec<f32>,
    /// Pointers in it are set when the feedback is laid out.
    pub raw: abi::Feedback,
}

impl Feedback {
    /// The arm answered the request; the score depends on the arm and the round only.
    pub(super) fn new(ask: &Ask, arm: &Arm, position: u32) -> Self {
        let round = ask.raw.request_id;
        let number = arm.id.bytes().fold(0, |sum, byte| sum + u64::from(byte));
        let score = ((round * 7 + number) % 5) as f64 / 4.0;
        let known = |number: f64, or: f64| if number.is_nan() { or } else { number };
        Self {
            arm: arm.id.clone(),
            task: ask.task.clone(),
            features: ask.features.clone(),
            raw: abi::Feedback {
                outcome: abi::OUTCOME_OK,
                request_id: round,
                position,
                prompt_tokens: 100,
                completion_tokens: 50,
                latency_ms: known(arm.raw.latency_ms, 100.0),
                ttft_ms: known(arm.raw.ttft_ms, 10.0),
                cost: known(arm.raw.est_cost, 1e-4),
                score,
                ..abi::zeroed()
            },
        }
    }

    pub(super) fn lay_out(
        &self,
        memory: &mut Memory,
        caps: u64,
        extra: usize,
    ) -> *const abi::Feedback {
        let features = match caps & abi::CAP_NEEDS_FEATURES != 0 {
            true => &self.features[..],
            false => &[],
        };
        let raw = abi::Feedback {
            candidate_id: put_text(memory, Thing::Id, &self.arm),
            task: put_text(memory, Thing::Text, &self.task),
            features: floats(memory, features),
            n_features: features.len(),
            ..self.raw
        };
        put_struct(memory, Thing::Feedback, raw, extra)
    }
}

/// One question to a scorer; bytes, since one test passes what is no text.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScoreAsk<'a> {
    pub outcome: u32,
    pub seed: u64,
    pub task: &'a [u8],
    pub prompt: &'a [u8],
    pub response: &'a [u8],
    pub reference: &'a [u8],
}

impl<'a> ScoreAsk<'a> {
    pub(super) fn new(prompt: &'a str, response: &'a str, reference: &'a str) -> Self {
        Self {
            outcome: abi::OUTCOME_OK,
            seed: 1,
            task: b"",
            prompt: prompt.as_bytes(),
            response: response.as_bytes(),
            reference: reference.as_bytes(),
        }
    }

    pub(super) fn lay_out(&self, memory: &mut Memory, extra: usize) -> *const abi::ScoreReq {
        let budget = crate::ScorerOptions::default().deadline;
        let mut text = |bytes| put_bytes(memory, Thing::Text, bytes);
        let raw = abi::ScoreReq {
            size: 0,
            outcome: self.outcome,
            request_id: self.seed,
            seed: self.seed,
            budget_ns: budget.as_nanos() as u64,
            candidate_id: text(b"arm-0"),
            task: text(self.task),
            prompt: text(self.prompt),
            response: text(self.response),
            reference: text(self.reference),
        };
        put_struct(memory, Thing::Request, raw, extra)
    }
}

fn floats(memory: &mut Memory, values: &[f32]) -> *const f32 {
    if values.is_empty() {
        return std::ptr::null();
    }
    memory.put(Thing::Features, Access::Read, values)
}

/// A number that looks like chance but is none (the finaliser of splitmix64).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The same in 0..1.
pub(super) fn share(number: u64) -> f64 {
    (mix(number) >> 11) as f64 / (1u64 << 53) as f64
}
