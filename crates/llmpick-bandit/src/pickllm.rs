//! PickLLM: one model per request, learnt from a weighted reward of accuracy, cost and
//! latency, until it settles on one model (paper, section 3).
//!
//! Three learners share the reward. The *learning automaton* (linear reward-inaction) is
//! gradient ascent on the expected reward; the *pursuit automaton* moves towards the best
//! estimate and settles about seven times faster; *stateless Q-learning* keeps exploring with
//! a decaying ε. What they know changes with feedback alone: an arm becomes known with its
//! first feedback, and until then it gets an equal share of the draws.

use std::collections::BTreeMap;

use rand::RngCore;
use serde::{Deserialize, Serialize};

use crate::chance::{below, pick};
use crate::stats::Tally;
use crate::{Choice, ConfigError, Learner, NoArm, Observation, Question, UnsoundState, exact};

/// Contexts that get a learner of their own; later ones share the pooled one.
const MAX_CONTEXTS: usize = 256;

/// An automaton has converged once one arm has this probability.
const CONVERGED: f64 = 0.99;

/// Q-learning has converged once its greedy arm has stayed for so many rounds.
const STEADY_ROUNDS: u32 = 20;

/// R = (w_a·a − w_c·c) / (w_l·log₁₀(l) / t_scaling), with the guards of ALGORITHMS 2.1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RewardConfig {
    /// w_a ≥ 0, of the accuracy a in [0, 1].
    pub accuracy: f64,
    /// w_c ≥ 0, of the cost c relative to the reference cost, in [0, 1].
    pub cost: f64,
    /// w_l ≥ 0, of the latency; 0 leaves latency out.
    pub latency: f64,
    /// t_scaling > 0; 3 makes one second neutral.
    pub time_scaling: f64,
    /// The cost that counts as 1; `None` takes the largest seen so far.
    pub reference_cost: Option<f64>,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            accuracy: 1.0,
            cost: 0.3,
            latency: 1.0,
            time_scaling: 3.0,
            reference_cost: None,
        }
    }
}

impl RewardConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let weight = "a number from 0 to 1000";
        ConfigError::check(
            "weight_accuracy",
            self.accuracy,
            1e-9..=1000.0,
            "a number above 0, to 1000",
        )?;
        ConfigError::check("weight_cost", self.cost, 0.0..=1000.0, weight)?;
        ConfigError::check("weight_latency", self.latency, 0.0..=1000.0, weight)?;
        let above = "a number above 0, to 1000";
        ConfigError::check("time_scaling", self.time_scaling, 1e-9..=1000.0, above)?;
        self.reference_cost.map_or(Ok(()), |cost| {
            ConfigError::check("reference_cost", cost, 1e-12..=1e9, "an amount above 0")
        })
    }

    /// R for accuracy `a`, relative cost `c` (both clamped to [0, 1]) and a latency in ms
    /// (at least 10). The numerator stops at 0: a negative one would reward slowness.
    pub fn raw(&self, a: f64, c: f64, latency_ms: f64) -> f64 {
        let gain = (self.accuracy * unit(a) - self.cost * unit(c)).max(0.0);
        if self.latency == 0.0 {
            return gain;
        }
        // NaN counts as the fastest; `max` returns the number of the two.
        let log = libm::log10(latency_ms.max(10.0));
        gain / (self.latency * log / self.time_scaling)
    }

    /// The largest R there is: a perfect, free answer within 10 ms.
    pub fn most(&self) -> f64 {
        self.raw(1.0, 0.0, 10.0)
    }

    /// R / R_max in [0, 1], as an automaton needs it.
    pub fn scaled(&self, a: f64, c: f64, latency_ms: f64) -> f64 {
        (self.raw(a, c, latency_ms) / self.most()).clamp(0.0, 1.0)
    }
}

fn unit(x: f64) -> f64 {
    if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) }
}

/// Which learner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Linear reward-inaction: P_i += b·r·(1−P_i), P_j −= b·r·P_j.
    Automaton {
        /// b in (0, 1]; 0.05 finds the best of four arms in 98 of 100 sessions.
        step: f64,
    },
    /// P moves by b towards the arm with the best estimate, after a warm-up.
    Pursuit {
        /// b in (0, 1].
        step: f64,
        /// Scored pulls of each arm before anything moves.
        warm_up: u32,
    },
    /// Q_i += α(R − Q_i), ε-greedy with ε_t = max(ε_min, ε_0·dᵗ), Q optimistic at first.
    QLearning {
        /// α in (0, 1].
        alpha: f64,
        /// ε_0 in [0, 1].
        epsilon: f64,
        /// d in (0, 1].
        decay: f64,
        /// ε_min in [0, 1].
        epsilon_min: f64,
    },
}

impl Default for Method {
    fn default() -> Self {
        Method::Automaton { step: 0.05 }
    }
}

impl Method {
    /// Q-learning with the reference settings.
    pub fn q_learning() -> Self {
        Method::QLearning {
            alpha: 0.1,
            epsilon: 0.2,
            decay: 0.99,
            epsilon_min: 0.01,
        }
    }

    fn check(self) -> Result<(), ConfigError> {
        let share = |key, value| {
            ConfigError::check(key, value, f64::MIN_POSITIVE..=1.0, "above 0 and at most 1")
        };
        match self {
            Method::Automaton { step } | Method::Pursuit { step, .. } => share("b", step),
            Method::QLearning {
                alpha,
                epsilon,
                decay,
                epsilon_min,
            } => {
                share("alpha", alpha)?;
                share("epsilon_decay", decay)?;
                ConfigError::check("epsilon", epsilon, 0.0..=1.0, "between 0 and 1")?;
                ConfigError::check("epsilon_min", epsilon_min, 0.0..=1.0, "between 0 and 1")
            }
        }
    }
}

/// Settings of the learner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PickLlmConfig {
    /// What is rewarded.
    pub reward: RewardConfig,
    /// Who learns.
    pub method: Method,
    /// One learner per context, which begins with half of what the pool believes.
    pub contexts: bool,
}

impl Default for PickLlmConfig {
    fn default() -> Self {
        Self {
            reward: RewardConfig::default(),
            method: Method::default(),
            contexts: true,
        }
    }
}

/// What one learner knows of one arm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Arm {
    /// P among the known arms.
    #[serde(with = "exact")]
    p: f64,
    /// Q, in units of R_max.
    #[serde(with = "exact")]
    q: f64,
    /// Scaled rewards.
    reward: Tally,
}

/// What one learner knows: the pooled one, or that of one context.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Knowledge {
    arms: BTreeMap<String, Arm>,
    /// Rewards learnt from, t of ε_t.
    steps: u64,
    /// For how many steps the greedy arm has not changed.
    steady: u32,
    greedy: Option<String>,
}

/// What the calls of one arm were like, for a score that comes later than its call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Calls {
    cost: Tally,
    latency: Tally,
}

/// What has been learnt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pool: Knowledge,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    contexts: BTreeMap<String, Knowledge>,
    calls: BTreeMap<String, Calls>,
    #[serde(with = "exact")]
    largest_cost: f64,
}

impl State {
    fn is_sound(&self) -> bool {
        let calls = |calls: &Calls| {
            let latency = calls.latency.is_sound(f64::MAX);
            latency && calls.cost.is_sound(self.largest_cost)
        };
        let largest = self.largest_cost.is_finite() && self.largest_cost >= 0.0;
        largest
            && self.calls.values().all(calls)
            && self.pool.is_sound()
            && self.contexts.values().all(Knowledge::is_sound)
    }
}

/// The learner.
#[derive(Clone, Debug, PartialEq)]
pub struct PickLlm {
    config: PickLlmConfig,
    state: State,
}

impl PickLlm {
    /// A learner that knows nothing yet.
    pub fn new(config: PickLlmConfig) -> Result<Self, ConfigError> {
        config.reward.check()?;
        config.method.check()?;
        Ok(Self {
            config,
            state: State::default(),
        })
    }

    /// All that was learnt.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Goes on from what was learnt before; on an error nothing has changed.
    pub fn restore(&mut self, state: State) -> Result<(), UnsoundState> {
        if !state.is_sound() {
            return Err(UnsoundState);
        }
        self.state = state;
        Ok(())
    }

    fn knowledge(&self, context: &str) -> &Knowledge {
        let own = self.state.contexts.get(context);
        own.filter(|_| self.config.contexts)
            .unwrap_or(&self.state.pool)
    }

    /// r of an observation in [0, 1]; `None` where nothing was graded. What a late score does
    /// not know, the means of the arm's calls stand in for.
    fn reward(&self, observation: &Observation<'_>) -> Option<f64> {
        let accuracy = observation.reward()?;
        let calls = self.state.calls.get(observation.arm);
        let mean = |tally: fn(&Calls) -> &Tally| calls.and_then(|calls| tally(calls).mean());
        let cost = observation.paid().or_else(|| mean(|calls| &calls.cost));
        let latency = measured(observation.latency_ms).or_else(|| mean(|calls| &calls.latency));
        let reference = self
            .config
            .reward
            .reference_cost
            .unwrap_or(self.state.largest_cost);
        let relative = match cost {
            Some(cost) if reference > 0.0 => cost / reference,
            _ => 0.0,
        };
        let latency = latency.unwrap_or(f64::NAN);
        Some(self.config.reward.scaled(accuracy, relative, latency))
    }
}

fn measured(x: f64) -> Option<f64> {
    (x.is_finite() && x >= 0.0).then_some(x)
}

impl Learner for PickLlm {
    /// Chooses one arm, whatever N is.
    fn select(
        &self,
        question: &Question<'_>,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Choice, NoArm> {
        let arms = question.eligible()?;
        let ids: Vec<&str> = arms.iter().map(|&k| question.arms[k].id).collect();
        let knowledge = self.knowledge(question.context);
        let policy = knowledge.policy(&ids, self.config.method);
        let i = pick(&policy.p, rng).unwrap_or_else(|| below(arms.len(), rng));
        let mut marginals = vec![0.0; question.arms.len()];
        for (&k, &p) in arms.iter().zip(&policy.p) {
            marginals[k] = p;
        }
        let arm = knowledge.arms.get(ids[i]);
        let reason = match arm.and_then(|arm| Some((arm, arm.reward.mean()?))) {
            None => format!("not yet known, tried with probability {:.2}", policy.p[i]),
            Some((arm, mean)) => format!(
                "{}, probability {:.2}, mean reward {mean:.2} of {:.0} scores",
                policy.state, policy.p[i], arm.reward.count
            ),
        };
        Ok(Choice {
            order: vec![arms[i]],
            marginals,
            propensity: policy.p[i],
            reason,
        })
    }

    fn observe(&mut self, observation: &Observation<'_>) {
        if observation.ending == crate::Ending::Cancelled {
            return;
        }
        if let Some(cost) = observation.paid() {
            self.state.largest_cost = self.state.largest_cost.max(cost);
        }
        let reward = self.reward(observation);
        let calls = self
            .state
            .calls
            .entry(observation.arm.to_owned())
            .or_default();
        if let Some(cost) = observation.paid() {
            calls.cost.push(cost);
        }
        if let Some(latency) = measured(observation.latency_ms) {
            calls.latency.push(latency);
        }
        let method = self.config.method;
        let State { pool, contexts, .. } = &mut self.state;
        if self.config.contexts && !observation.context.is_empty() {
            let room = contexts.len() < MAX_CONTEXTS;
            if room && !contexts.contains_key(observation.context) {
                contexts.insert(observation.context.to_owned(), pool.softened());
            }
            if let Some(own) = contexts.get_mut(observation.context) {
                own.learn(observation.arm, reward, method);
            }
        }
        pool.learn(observation.arm, reward, method);
    }
}

/// How the eligible arms are drawn now.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// P(arm) for each arm asked about; sums to 1.
    pub p: Vec<f64>,
    /// True once it has converged to one arm: scoring need not be paid for any longer.
    pub settled: bool,
    /// The same in a word, for people.
    pub state: &'static str,
}

impl Knowledge {
    fn is_sound(&self) -> bool {
        let share = |x: f64| (0.0..=1.0 + 1e-6).contains(&x);
        let sound = |arm: &Arm| share(arm.p) && share(arm.q) && arm.reward.is_sound(1.0);
        self.arms.values().all(sound)
    }

    /// The probabilities of these arms; does not change what is known.
    pub fn policy(&self, ids: &[&str], method: Method) -> Policy {
        let known: Vec<Option<&Arm>> = ids.iter().map(|id| self.arms.get(*id)).collect();
        let strangers = known.iter().filter(|arm| arm.is_none()).count();
        let (p, learnt) = match method {
            Method::Automaton { .. } => (self.automaton(&known, strangers), strangers == 0),
            Method::Pursuit { warm_up, .. } => self.pursuit(&known, strangers, warm_up),
            Method::QLearning { .. } => {
                let (p, settled) = self.q_policy(ids, &known, strangers, method);
                return Policy::new(p, settled);
            }
        };
        // An arm that is alone, or the last one to warm up, is certain but proves nothing.
        let settled = learnt && ids.len() > 1 && p.iter().any(|p| *p >= CONVERGED);
        // Locked for the rest of the session: the crumbs of the others go to the one.
        let p = if settled { vertex(&p) } else { p };
        Policy::new(p, settled)
    }

    /// P conditioned on the arms at hand; a stranger gets an equal share of the draws.
    fn automaton(&self, known: &[Option<&Arm>], strangers: usize) -> Vec<f64> {
        let share = 1.0 / known.len() as f64;
        let mass: f64 = known.iter().flatten().map(|arm| arm.p).sum();
        let left = 1.0 - share * strangers as f64;
        let acquainted = (known.len() - strangers).max(1) as f64;
        known
            .iter()
            .map(|arm| match arm {
                None => share,
                // All of the mass lies on arms that are away: no preference is left.
                Some(_) if mass <= 0.0 => left / acquainted,
                Some(arm) => left * (arm.p / mass),
            })
            .collect()
    }

    /// Equal shares among those that still warm up, afterwards P; true once all are warm.
    fn pursuit(&self, known: &[Option<&Arm>], strangers: usize, warm_up: u32) -> (Vec<f64>, bool) {
        let cold = |arm: &Option<&Arm>| arm.is_none_or(|a| a.reward.count < f64::from(warm_up));
        let count = known.iter().filter(|arm| cold(arm)).count();
        if count == 0 {
            return (self.automaton(known, strangers), true);
        }
        let share = 1.0 / count as f64;
        let shares = known.iter().map(|arm| if cold(arm) { share } else { 0.0 });
        (shares.collect(), false)
    }

    fn q_policy(
        &self,
        ids: &[&str],
        known: &[Option<&Arm>],
        strangers: usize,
        method: Method,
    ) -> (Vec<f64>, bool) {
        let epsilon = method.epsilon(self.steps);
        // A stranger is as good as can be: the optimistic start.
        let q: Vec<f64> = known
            .iter()
            .map(|arm| arm.map_or(1.0, |arm| arm.q))
            .collect();
        let best = q.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let ties = q.iter().filter(|q| **q == best).count() as f64;
        let explore = epsilon / q.len() as f64;
        let greedy = (1.0 - epsilon) / ties;
        let p: Vec<f64> = q
            .iter()
            .map(|&q| explore + if q == best { greedy } else { 0.0 })
            .collect();
        let here = self
            .greedy
            .as_deref()
            .and_then(|id| ids.iter().position(|i| *i == id));
        match here {
            Some(i)
                if strangers == 0
                    && self.steady >= STEADY_ROUNDS
                    && method.exhausted(self.steps) =>
            {
                let mut locked = vec![0.0; p.len()];
                locked[i] = 1.0;
                (locked, true)
            }
            _ => (p, false),
        }
    }

    /// Learns r of one arm; an arm becomes known even where nothing was graded.
    pub fn learn(&mut self, id: &str, reward: Option<f64>, method: Method) {
        self.meet(id);
        let Some(r) = reward else { return };
        self.steps = self.steps.saturating_add(1);
        if let Some(arm) = self.arms.get_mut(id) {
            arm.reward.push(r);
        }
        match method {
            Method::Automaton { step } => self.shift(id, step * r),
            Method::Pursuit { step, warm_up } => {
                let warm = |arm: &Arm| arm.reward.count >= f64::from(warm_up);
                if self.arms.values().all(warm)
                    && let Some(best) = self.best(|arm| arm.reward.mean().unwrap_or(0.0))
                {
                    self.shift(&best, step);
                }
            }
            Method::QLearning { alpha, .. } => {
                if let Some(arm) = self.arms.get_mut(id) {
                    arm.q += alpha * (r - arm.q);
                }
                let best = self.best(|arm| arm.q);
                self.steady = if best == self.greedy {
                    self.steady.saturating_add(1)
                } else {
                    0
                };
                self.greedy = best;
            }
        }
    }

    /// A new arm joins with the share of one of many; the others keep their proportions.
    fn meet(&mut self, id: &str) {
        if self.arms.contains_key(id) {
            return;
        }
        let n = self.arms.len() as f64;
        for arm in self.arms.values_mut() {
            arm.p *= n / (n + 1.0);
        }
        let newcomer = Arm {
            p: 1.0 / (n + 1.0),
            q: 1.0,
            reward: Tally::default(),
        };
        self.arms.insert(id.to_owned(), newcomer);
    }

    /// P ← P + s(e_i − P): reward-inaction with s = b·r, pursuit with s = b.
    fn shift(&mut self, id: &str, s: f64) {
        for (key, arm) in &mut self.arms {
            let goal = if key == id { 1.0 } else { 0.0 };
            arm.p += s * (goal - arm.p);
        }
    }

    /// The first arm, by name, of the largest value.
    fn best(&self, value: impl Fn(&Arm) -> f64) -> Option<String> {
        let mut best: Option<(&String, f64)> = None;
        for (id, arm) in &self.arms {
            let x = value(arm);
            if best.is_none_or(|(_, most)| x > most) {
                best = Some((id, x));
            }
        }
        best.map(|(id, _)| id.clone())
    }

    /// Where a context begins: half of what the pool believes, half ignorance.
    fn softened(&self) -> Knowledge {
        let mut own = self.clone();
        let n = own.arms.len() as f64;
        for arm in own.arms.values_mut() {
            arm.p = 0.5 * (arm.p + 1.0 / n);
            arm.q = 0.5 * (arm.q + 1.0);
            arm.reward = Tally::default();
        }
        own.steps = 0;
        own.steady = 0;
        own
    }
}

impl Policy {
    fn new(p: Vec<f64>, settled: bool) -> Self {
        let state = if settled { "settled" } else { "learning" };
        Self { p, settled, state }
    }
}

impl Method {
    /// ε_t = max(ε_min, ε_0·dᵗ).
    fn epsilon(self, steps: u64) -> f64 {
        match self {
            Method::QLearning {
                epsilon,
                decay,
                epsilon_min,
                ..
            } => (epsilon * power(decay, steps)).max(epsilon_min),
            _ => 0.0,
        }
    }

    /// ε_t has come down to ε_min.
    fn exhausted(self, steps: u64) -> bool {
        matches!(self, Method::QLearning { epsilon_min, .. } if self.epsilon(steps) <= epsilon_min)
    }
}

/// xⁿ by squaring: multiplications only, so the same on any machine.
fn power(mut x: f64, mut n: u64) -> f64 {
    let mut product = 1.0;
    while n > 0 {
        if n & 1 == 1 {
            product *= x;
        }
        x *= x;
        n >>= 1;
    }
    product
}

fn vertex(p: &[f64]) -> Vec<f64> {
    p.iter()
        .map(|p| f64::from(u8::from(*p >= CONVERGED)))
        .collect()
}
