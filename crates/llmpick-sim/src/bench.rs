//! What a decision costs: through the plugin's own thread, on the caller's, and as a plain
//! function call of the same learner with no plugin around it.
//!
//! Every way plays the same rounds: a timed decision, then (not timed) one feedback for each arm
//! that it chose, so that the learner is in the state it has when it serves, and its memory has
//! been used for something else between two decisions.

use std::hint::black_box;
use std::time::{Duration, Instant};

use llmpick_bandit::baselines::{Baseline, BaselineLearner};
use llmpick_bandit::c2mabv::{C2mabv, C2mabvConfig};
use llmpick_bandit::chance::{coin, seeded, unit};
use llmpick_bandit::pickllm::{PickLlm, PickLlmConfig};
use llmpick_bandit::stats::TableConfig;
use llmpick_bandit::{ArmView, Ending, Learner, Mode as Model, Observation, Question};
use llmpick_core::{
    ArmId, Candidate, Feedback, InvalidId, InvalidScore, Locality, Mode, OutcomeKind, RouteId,
    Router, Score, SelectRequest,
};
use llmpick_plugin_host::{CreateError, Isolation};
use serde::Serialize;

use crate::chance::derive;
use crate::{PlayError, RouterSource};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BenchSettings {
    /// Arms of the pool.
    pub arms: usize,
    /// Timed decisions.
    pub calls: usize,
    /// Rounds before the first that is timed.
    pub warm_up: usize,
    /// How the chosen arms work together.
    pub mode: Mode,
    /// Most arms of a plan.
    pub max_arms: u32,
    /// ρ in dollars; NaN for none.
    pub budget: f64,
    /// One seed, one sequence of decisions.
    pub seed: u64,
}

impl Default for BenchSettings {
    fn default() -> Self {
        Self {
            arms: 32,
            calls: 20_000,
            warm_up: 2_000,
            mode: Mode::Single,
            max_arms: 1,
            budget: f64::NAN,
            seed: 1,
        }
    }
}

/// Times of one way, in µs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// `plain`, `inline`, `actor` or `process`.
    pub way: String,
    /// Timed decisions.
    pub calls: usize,
    /// Arms of the pool.
    pub arms: usize,
    /// Median.
    pub p50_us: f64,
    /// 90 of 100 were not slower.
    pub p90_us: f64,
    /// 99 of 100 were not slower.
    pub p99_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// Its median over that of the plain call; `None` where there is no plain call.
    pub ratio: Option<f64>,
    /// Decisions that were not the router's own (a deadline missed, for example).
    pub fallbacks: usize,
}

/// What a router's decisions cost in every way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoutingBench {
    /// The router and its settings.
    pub router: String,
    /// One line for each way.
    pub timings: Vec<Timing>,
    /// Whether every way made the same decisions. Only then are the times of one thing.
    pub same_decisions: bool,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The router did not start.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// It did not answer.
    #[error(transparent)]
    Play(#[from] PlayError),
    /// Never: the names are ours.
    #[error(transparent)]
    Name(#[from] InvalidId),
    /// Never: the scores are 0 and 1.
    #[error(transparent)]
    Score(#[from] InvalidScore),
}

/// Measures one router in every way there is.
///
/// # Errors
/// When the router does not start or breaks its contract.
pub fn bench(source: &RouterSource, settings: &BenchSettings) -> Result<RoutingBench, BenchError> {
    let world = World::new(settings)?;
    let mut runs = Vec::new();
    if let Some(run) = plain(source, &world) {
        runs.push(("plain", run));
    }
    let mut ways = vec![("inline", Isolation::Inline), ("actor", Isolation::Actor)];
    if llmpick_plugin_host::can_start_processes() {
        ways.push(("process", Isolation::Process));
    }
    for (way, isolation) in ways {
        let mut router = source.create_as(isolation)?;
        runs.push((way, world.play(router.as_mut())?));
    }
    let base = runs.first().filter(|(way, _)| *way == "plain");
    let base = base.map(|(_, run)| percentile(&run.times, 0.5));
    let same = runs.windows(2).all(|pair| match pair {
        [(_, a), (_, b)] => a.digest == b.digest,
        _ => true,
    });
    Ok(RoutingBench {
        router: source.label().to_owned(),
        timings: runs
            .into_iter()
            .map(|(way, run)| timing(way, settings.arms, &run, base))
            .collect(),
        same_decisions: same,
    })
}

/// The times of one way, sorted, and what was decided.
struct Run {
    times: Vec<f64>,
    digest: u64,
    fallbacks: usize,
}

/// The arms, the same for every way.
struct World {
    settings: BenchSettings,
    candidates: Vec<Candidate>,
    /// Each arm's chance to be right.
    means: Vec<f64>,
    costs: Vec<f64>,
}

impl World {
    fn new(settings: &BenchSettings) -> Result<Self, BenchError> {
        let mut rng = seeded(settings.seed);
        let means: Vec<f64> = (0..settings.arms).map(|_| unit(&mut rng)).collect();
        let costs: Vec<f64> = (0..settings.arms).map(|_| unit(&mut rng) * 1e-3).collect();
        let candidate = |(place, cost): (usize, &f64)| {
            Ok(Candidate {
                id: ArmId::new(format!("arm-{place:02}"))?,
                locality: Locality::Remote,
                warm: true,
                eligible: true,
                context_tokens: 8192,
                price_in: 1.0,
                price_out: 2.0,
                est_cost: *cost,
                cost_max: 1e-3,
                latency_ms: 500.0,
                ttft_ms: 100.0,
                score: 0.5,
                n_ok: 1,
                n_err: 0,
                inflight: 0,
            })
        };
        let candidates: Result<Vec<_>, InvalidId> =
            costs.iter().enumerate().map(candidate).collect();
        Ok(Self {
            settings: *settings,
            candidates: candidates?,
            means,
            costs,
        })
    }

    /// Plays all rounds through a router.
    fn play(&self, router: &mut dyn Router) -> Result<Run, BenchError> {
        let mut run = Run::new(self.settings.calls);
        for round in 0..self.rounds() {
            let request = self.request(round);
            let began = Instant::now();
            let decision = black_box(router.select(black_box(&request)));
            let took = began.elapsed();
            let number = round + 1;
            let decision = decision.map_err(|source| PlayError::Select {
                round: number,
                source,
            })?;
            let own = matches!(decision.source, llmpick_core::DecisionSource::Router);
            run.note(self.is_timed(round), took, &decision.choices, own);
            for (position, choice) in (0..).zip(&decision.choices) {
                let Some(feedback) = self.feedback(round, position, *choice, !own)? else {
                    continue;
                };
                router
                    .feedback(&feedback)
                    .map_err(|source| PlayError::Feedback {
                        round: number,
                        source,
                    })?;
            }
        }
        Ok(run.sorted())
    }

    /// Plays all rounds on a learner itself.
    fn call<L: Learner>(&self, mut learner: L) -> Run {
        let arms: Vec<ArmView<'_>> = self.candidates.iter().map(view).collect();
        let question = Question {
            arms: &arms,
            mode: model(self.settings.mode),
            max_arms: self.settings.max_arms as usize,
            budget: self.settings.budget,
            context: TASK,
            features: &[],
        };
        let mut run = Run::new(self.settings.calls);
        for round in 0..self.rounds() {
            let seed = self.seed(round);
            let began = Instant::now();
            let choice = black_box(learner.select(black_box(&question), &mut seeded(seed)));
            let took = began.elapsed();
            // Every arm is eligible: there is always a choice.
            let order = choice.map_or_else(|_| Vec::new(), |choice| choice.order);
            let order: Vec<u32> = order.iter().map(|index| *index as u32).collect();
            run.note(self.is_timed(round), took, &order, true);
            for (position, choice) in (0..).zip(&order) {
                let index = *choice as usize;
                let (Some(arm), Some((score, cost))) =
                    (arms.get(index), self.outcome(round, index))
                else {
                    continue;
                };
                learner.observe(&Observation {
                    arm: arm.id,
                    position,
                    ending: Ending::Answered,
                    cost,
                    latency_ms: LATENCY_MS,
                    score: Some(score),
                    context: TASK,
                    features: &[],
                    prompt_tokens: 100,
                    completion_tokens: 100,
                });
            }
        }
        run.sorted()
    }

    fn rounds(&self) -> u64 {
        (self.settings.warm_up + self.settings.calls) as u64
    }

    fn is_timed(&self, round: u64) -> bool {
        round >= self.settings.warm_up as u64
    }

    fn seed(&self, round: u64) -> u64 {
        derive(self.settings.seed, round)
    }

    fn request(&self, round: u64) -> SelectRequest<'_> {
        SelectRequest {
            route_id: RouteId(round),
            seed: self.seed(round),
            arms_epoch: 1,
            // As long as it takes: a busy machine must not change what is decided.
            time_budget: Duration::from_secs(10),
            candidates: &self.candidates,
            allowed_modes: std::slice::from_ref(&self.settings.mode),
            task: TASK,
            session: "",
            prompt: None,
            features: None,
            prompt_tokens: 100,
            max_new_tokens: 100,
            max_cost: f64::NAN,
            max_latency_ms: f64::NAN,
            min_score: f64::NAN,
            cost_budget: self.settings.budget,
            max_arms: self.settings.max_arms,
        }
    }

    /// Score and cost of an arm in a round.
    fn outcome(&self, round: u64, index: usize) -> Option<(f64, f64)> {
        let mut rng = seeded(derive(self.seed(round), index as u64));
        let right = coin(*self.means.get(index)?, &mut rng);
        Some((f64::from(u8::from(right)), *self.costs.get(index)?))
    }

    fn feedback(
        &self,
        round: u64,
        position: u32,
        choice: u32,
        fallback: bool,
    ) -> Result<Option<Feedback>, InvalidScore> {
        let index = choice as usize;
        let (Some(arm), Some((score, cost))) =
            (self.candidates.get(index), self.outcome(round, index))
        else {
            return Ok(None);
        };
        Ok(Some(Feedback {
            route_id: RouteId(round),
            arm: arm.id.clone(),
            position,
            outcome: OutcomeKind::Ok,
            task: TASK.to_owned(),
            features: Vec::new(),
            fallback,
            cold: false,
            prompt_tokens: 100,
            completion_tokens: 100,
            latency_ms: LATENCY_MS,
            ttft_ms: 100.0,
            cost,
            score: Some(Score::new(score)?),
        }))
    }
}

/// Statistics are kept under this tag, as they are when users tag their requests.
const TASK: &str = "bench";
const LATENCY_MS: f64 = 500.0;

impl Run {
    fn new(calls: usize) -> Self {
        Self {
            times: Vec::with_capacity(calls),
            digest: 0xcbf2_9ce4_8422_2325,
            fallbacks: 0,
        }
    }

    fn note(&mut self, timed: bool, took: Duration, choices: &[u32], own: bool) {
        if timed {
            self.times.push(took.as_secs_f64() * 1e6);
            self.fallbacks += usize::from(!own);
        }
        for choice in choices {
            self.digest = (self.digest ^ u64::from(*choice)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn sorted(mut self) -> Self {
        self.times.sort_by(f64::total_cmp);
        self
    }
}

/// The learner of a router that we ship, with its usual settings; `None` for any other.
fn plain(source: &RouterSource, world: &World) -> Option<Run> {
    if !source.has_usual_settings() {
        return None;
    }
    let baseline = |baseline| BaselineLearner::new(baseline, TableConfig::default()).ok();
    Some(match source.plugin() {
        "c2mabv" => world.call(C2mabv::new(C2mabvConfig::default()).ok()?),
        "pickllm" => world.call(PickLlm::new(PickLlmConfig::default()).ok()?),
        "round-robin" => world.call(baseline(Baseline::RoundRobin)?),
        "thompson" => world.call(baseline(Baseline::Thompson)?),
        _ => return None,
    })
}

fn view(candidate: &Candidate) -> ArmView<'_> {
    ArmView {
        eligible: candidate.eligible,
        est_cost: candidate.est_cost,
        cost_max: candidate.cost_max,
        price_in: candidate.price_in,
        price_out: candidate.price_out,
        inflight: candidate.inflight,
        ..ArmView::stranger(candidate.id.as_str())
    }
}

fn model(mode: Mode) -> Model {
    match mode {
        Mode::Single => Model::Single,
        Mode::AnyWin => Model::AnyWin,
        Mode::SumUp => Model::SumUp,
        Mode::AllIn => Model::AllIn,
    }
}

fn timing(way: &str, arms: usize, run: &Run, base: Option<f64>) -> Timing {
    let p50 = percentile(&run.times, 0.5);
    Timing {
        way: way.to_owned(),
        calls: run.times.len(),
        arms,
        p50_us: p50,
        p90_us: percentile(&run.times, 0.9),
        p99_us: percentile(&run.times, 0.99),
        max_us: run.times.last().copied().unwrap_or(f64::NAN),
        ratio: base.map(|base| p50 / base),
        fallbacks: run.fallbacks,
    }
}

/// The value that this share of the sorted values does not pass.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    let value = sorted.get(place.saturating_sub(1));
    value.copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&values[..1], 0.99), 1.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
