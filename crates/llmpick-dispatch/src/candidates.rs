//! What is known of each arm for one request, and which arms may take it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use llmpick_core::{
    Arm, ArmId, Backend, Candidate, GenerateRequest, NanoDollars, Price, Prompt, Usage,
};
use llmpick_ledger::{CandidateRecord, Measured};

use crate::DispatchSettings;

/// A local call may run so much longer than measured: other programs use the machine too.
const SLOWER: f64 = 2.0;

/// One arm with everything that bears on a decision about it.
#[derive(Clone)]
pub(crate) struct Candidature {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) candidate: Candidate,
    pub(crate) unfit: Option<Unfit>,
    pub(crate) resident_bytes: u64,
    /// The most this request can cost there: what is reserved.
    pub(crate) bound: NanoDollars,
}

/// Why an arm may not take a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Unfit {
    /// It says so itself.
    Unavailable(String),
    /// The prompt seems too long for it.
    Context { needed: u32, holds: u32 },
    /// It may cost more than the request allows.
    MaxCost {
        bound: NanoDollars,
        limit: NanoDollars,
    },
    /// It may cost more than a budget has left.
    Budget {
        bound: NanoDollars,
        key: String,
        left: NanoDollars,
    },
}

/// Tokens of a request, from its bytes: no tokenizer is asked, since each arm has its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// Prompt tokens as they usually come out: four bytes each.
    pub(crate) prompt: u32,
    /// Prompt tokens at the very most: a byte each, and a template around every message.
    pub(crate) prompt_max: u32,
    /// Most tokens to generate; `None` lets the context decide.
    pub(crate) new_max: Option<u32>,
}

impl Estimate {
    pub(crate) fn of(generate: &GenerateRequest) -> Self {
        let bytes = u32::try_from(generate.prompt.len()).unwrap_or(u32::MAX);
        let messages = match &generate.prompt {
            Prompt::Chat(messages) => u32::try_from(messages.len()).unwrap_or(u32::MAX),
            Prompt::Text(_) => 1,
        };
        Self {
            prompt: bytes.div_ceil(4).saturating_add(messages.saturating_mul(4)),
            prompt_max: bytes.saturating_add(messages.saturating_mul(16).saturating_add(64)),
            new_max: generate.max_tokens,
        }
    }

    /// The longest of several.
    pub(crate) fn longest(estimates: impl Iterator<Item = Self>) -> Option<Self> {
        estimates.reduce(|a, b| Self {
            prompt: a.prompt.max(b.prompt),
            prompt_max: a.prompt_max.max(b.prompt_max),
            new_max: a.new_max.max(b.new_max),
        })
    }

    /// Most tokens that this arm may generate.
    fn new_max_on(&self, arm: &Arm) -> u32 {
        let room = arm.context_tokens.saturating_sub(self.prompt).max(1);
        self.new_max.unwrap_or(room).min(room)
    }

    /// Most tokens that any of the arms may generate.
    pub(crate) fn new_max_over(&self, pool: &[Candidature]) -> u32 {
        let most = pool.iter().map(|c| self.new_max_on(c.backend.arm())).max();
        most.or(self.new_max).unwrap_or(0)
    }
}

/// What there is to spend on one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Purse {
    /// The request's own limit.
    pub(crate) max_cost: Option<NanoDollars>,
    /// The tightest budget and what it has left.
    pub(crate) budget: Option<(String, NanoDollars)>,
}

/// Describes each arm for this request.
pub(crate) fn candidatures(
    arms: &[Arc<dyn Backend>],
    measured: &HashMap<ArmId, Measured>,
    estimate: Estimate,
    purse: &Purse,
    settings: &DispatchSettings,
) -> Vec<Candidature> {
    // An arm never tried is expected to write as much as the others do.
    let lengths = || measured.values().map(|m| m.completion_tokens);
    let known = lengths().filter(|n| n.is_finite()).count();
    let usual = lengths().filter(|n| n.is_finite()).sum::<f64>() / known as f64;
    let mut pool: Vec<Candidature> = arms
        .iter()
        .map(|backend| {
            let known = measured.get(&backend.arm().id).copied().unwrap_or_default();
            candidature(backend, &known, usual, estimate, purse, settings)
        })
        .collect();
    admit_largest_context(&mut pool);
    pool
}

/// Describes each arm for a request whose parts are dealt over up to `arms` of them: `parts` holds
/// each arm as it is for each part. An arm has to be able to take any of the parts, and is
/// expected to get its share of them.
pub(crate) fn for_share(parts: &[Vec<Candidature>], arms: u32) -> Vec<Candidature> {
    let Some((first, rest)) = parts.split_first() else {
        return Vec::new();
    };
    let mut pool = first.clone();
    let arms = pool.len().min(arms as usize).max(1);
    let share = parts.len().div_ceil(arms);
    for (place, arm) in pool.iter_mut().enumerate() {
        for other in rest.iter().filter_map(|part| part.get(place)) {
            let (sum, one) = (&mut arm.candidate, &other.candidate);
            sum.est_cost += one.est_cost;
            // Unknown stays unknown.
            sum.cost_max = match sum.cost_max.is_nan() || one.cost_max.is_nan() {
                true => f64::NAN,
                false => sum.cost_max.max(one.cost_max),
            };
            arm.bound = arm.bound.max(other.bound);
            if arm.unfit.is_none() {
                arm.unfit.clone_from(&other.unfit);
            }
        }
        arm.candidate.est_cost *= share as f64 / parts.len() as f64;
        arm.candidate.cost_max *= share as f64;
        arm.bound = (0..share).map(|_| arm.bound).sum();
        arm.candidate.eligible = arm.unfit.is_none();
    }
    pool
}

/// The estimate of the prompt's length is rough. Where it rules out everybody, the largest
/// context gets the request after all, and counts exactly.
fn admit_largest_context(pool: &mut [Candidature]) {
    if pool.iter().any(|c| c.unfit.is_none()) {
        return;
    }
    let largest = pool
        .iter_mut()
        .filter(|c| matches!(c.unfit, Some(Unfit::Context { .. })))
        .max_by_key(|c| c.candidate.context_tokens);
    if let Some(largest) = largest {
        largest.unfit = None;
        largest.candidate.eligible = true;
    }
}

fn candidature(
    backend: &Arc<dyn Backend>,
    known: &Measured,
    usual: f64,
    estimate: Estimate,
    purse: &Purse,
    settings: &DispatchSettings,
) -> Candidature {
    let arm = backend.arm();
    let state = backend.state();
    let new_max = estimate.new_max_on(arm);
    let prompt_max = estimate.prompt_max.min(arm.context_tokens);
    let (price_in, price_out) = per_token(&arm.price, known);
    let cost = |prompt: f64, new: f64| (prompt * price_in + new * price_out) / 1e6;
    let slower = match arm.price {
        Price::PerToken { .. } => 1.0,
        Price::PerHour { .. } => SLOWER,
    };
    let expected = match known.completion_tokens.is_nan() {
        true => usual,
        false => known.completion_tokens,
    };
    // `min` would take the limit for an unknown length.
    let expected = match expected.is_nan() {
        true => expected,
        false => expected.min(f64::from(new_max)),
    };
    let cost_max = slower * cost(f64::from(prompt_max), f64::from(new_max));
    let bound = match NanoDollars::from_usd(cost_max) {
        Ok(bound) => bound,
        Err(_) => assumed_bound(&arm.price, prompt_max, new_max, settings),
    };
    let unfit = match state.unavailable {
        Some(reason) => Some(Unfit::Unavailable(reason)),
        None => unfit(arm, estimate, cost_max, bound, purse),
    };
    Candidature {
        candidate: Candidate {
            id: arm.id.clone(),
            locality: arm.locality,
            warm: state.warm,
            eligible: unfit.is_none(),
            context_tokens: arm.context_tokens,
            price_in,
            price_out,
            est_cost: cost(f64::from(estimate.prompt), expected),
            cost_max,
            latency_ms: known.latency_ms,
            ttft_ms: known.ttft_ms,
            score: known.score,
            n_ok: known.n_ok,
            n_err: known.n_err,
            inflight: state.inflight,
        },
        backend: Arc::clone(backend),
        unfit,
        resident_bytes: state.resident_bytes,
        bound,
    }
}

fn unfit(
    arm: &Arm,
    estimate: Estimate,
    cost_max: f64,
    bound: NanoDollars,
    purse: &Purse,
) -> Option<Unfit> {
    if estimate.prompt >= arm.context_tokens {
        return Some(Unfit::Context {
            needed: estimate.prompt,
            holds: arm.context_tokens,
        });
    }
    // A local arm that was never measured has only an assumed bound, which is far too high for
    // most: it holds money back in budgets, and does not shut the arm out of a request.
    if let Some(limit) = purse.max_cost.filter(|limit| *limit < bound)
        && !cost_max.is_nan()
    {
        return Some(Unfit::MaxCost { bound, limit });
    }
    match &purse.budget {
        Some((key, left)) if *left < bound => Some(Unfit::Budget {
            bound,
            key: key.clone(),
            left: *left,
        }),
        _ => None,
    }
}

/// Dollars per 10⁶ tokens read and written; for a local arm from its measured speed.
fn per_token(price: &Price, known: &Measured) -> (f64, f64) {
    match *price {
        Price::PerToken {
            input_usd,
            output_usd,
        } => (input_usd, output_usd),
        Price::PerHour { usd: 0.0 } => (0.0, 0.0),
        // ms per token × dollars per hour / (3.6 × 10⁶ ms per hour) × 10⁶ tokens.
        Price::PerHour { usd } => (known.prefill_ms * usd / 3.6, known.decode_ms * usd / 3.6),
    }
}

/// What a local arm that was never measured may cost.
fn assumed_bound(price: &Price, prompt: u32, new: u32, settings: &DispatchSettings) -> NanoDollars {
    let seconds = f64::from(prompt) / settings.assumed_prefill_tps
        + f64::from(new) / settings.assumed_decode_tps;
    let busy = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO);
    price.cost(Usage::default(), busy)
}

impl Candidature {
    /// As the ledger keeps it.
    pub(crate) fn record(&self, marginal: Option<f64>) -> CandidateRecord {
        CandidateRecord {
            candidate: self.candidate.clone(),
            unfit: self.unfit.as_ref().map(Unfit::to_string),
            resident_bytes: self.resident_bytes,
            marginal: marginal.filter(|m| m.is_finite()),
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Unavailable(reason) => f.write_str(reason),
            Unfit::Context { needed, holds } => write!(
                f,
                "the prompt has about {needed} tokens, and its context holds {holds}"
            ),
            Unfit::MaxCost { bound, limit } => {
                write!(f, "it may cost {bound}, and the request allows {limit}")
            }
            Unfit::Budget { bound, key, left } => {
                write!(
                    f,
                    "it may cost {bound}, and the budget `{key}` has {left} left"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llmpick_core::Locality;
    use llmpick_testkit::{Answer, FakeBackend};

    fn describe(backend: FakeBackend, known: Measured) -> Candidature {
        let mut generate = GenerateRequest::new(Prompt::Text("x".repeat(400)));
        generate.max_tokens = Some(50);
        let id = backend.arm().id.clone();
        let pool = candidatures(
            &[Arc::new(backend)],
            &HashMap::from([(id, known)]),
            Estimate::of(&generate),
            &Purse::default(),
            &DispatchSettings::default(),
        );
        pool[0].clone()
    }

    #[test]
    fn a_local_arms_price_per_token_comes_from_its_speed() {
        let backend = FakeBackend::new("a", Answer::text("x")).price(Price::PerHour { usd: 3.6 });
        let known = Measured {
            prefill_ms: 1.0,
            decode_ms: 10.0,
            completion_tokens: 20.0,
            ..Measured::default()
        };
        let c = describe(backend, known).candidate;
        // A dollar for 10⁶ ms of device time.
        assert_eq!((c.price_in, c.price_out), (1.0, 10.0));
        let expected = (104.0 * 1.0 + 20.0 * 10.0) / 1e6;
        assert!((c.est_cost - expected).abs() < 1e-12, "{}", c.est_cost);
        let bound = 2.0 * (480.0 * 1.0 + 50.0 * 10.0) / 1e6;
        assert!((c.cost_max - bound).abs() < 1e-12, "{}", c.cost_max);
    }

    #[test]
    fn before_it_was_measured_a_local_arm_has_a_bound_and_no_price() {
        let backend = FakeBackend::new("a", Answer::text("x")).price(Price::PerHour { usd: 3.6 });
        let c = describe(backend, Measured::default());
        assert!(c.candidate.price_in.is_nan() && c.candidate.cost_max.is_nan());
        // 480 tokens at 20 a second and 50 at 2 a second, at a dollar for 1000 s.
        assert_eq!(c.bound, NanoDollars(49_000_000));
    }

    #[test]
    fn a_remote_arms_bound_is_its_price_for_the_most_tokens() {
        let price = Price::PerToken {
            input_usd: 1.0,
            output_usd: 2.0,
        };
        let backend = FakeBackend::new("a", Answer::text("x"))
            .remote()
            .price(price);
        let c = describe(backend, Measured::default());
        assert_eq!(c.candidate.locality, Locality::Remote);
        assert_eq!(c.bound, NanoDollars((480 + 2 * 50) * 1_000));
        assert!(
            c.candidate.est_cost.is_nan(),
            "nobody knows how long answers are yet"
        );
    }
}
