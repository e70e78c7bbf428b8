//! PickLLM: one model per request, learnt from a weighted reward of accuracy, cost and
//! latency, until it settles on one model (paper, section 3).
//!
//! Three learners share the reward. The *learning automaton* (linear reward-inaction) is
//! gradient ascent on the expected reward; the *pursuit automaton* moves towards the best
//! estimate and settles about seven times faster; *stateless Q-learning* keeps exploring with
//! a decaying ε. What they know changes with feedback alone: an arm becomes known with its
//! first feedback, and until then it gets an equal share of the draws.
//!
//! A learner that has converged locks: its arm answers every request of its context, and one or
//! two graded answers in a hundred are enough to watch it. When their rewards fall
//! ([`drift`](crate::drift)), or an arm joins, it unlocks and learns again.

use std::collections::BTreeMap;

use rand::RngCore;
use serde::{Deserialize, Serialize};

use crate::chance::{below, pick};
use crate::drift::{DriftConfig, Watch};
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
    /// Q_i += α(R − Q_i), ε-greedy with ε_t = max(ε_min, ε_0·dᵗ).
    QLearning {
        /// Q of an arm nobody has tried, in [0, 1], in units of R_max; 1 is optimistic and makes
        /// sure that every arm is tried.
        start: f64,
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
            start: 1.0,
            alpha: 0.1,
            epsilon: 0.25,
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
                start,
                alpha,
                epsilon,
                decay,
                epsilon_min,
            } => {
                ConfigError::check("q_start", start, 0.0..=1.0, "between 0 and 1")?;
                share("alpha", alpha)?;
                share("epsilon_decay", decay)?;
                ConfigError::check("epsilon", epsilon, 0.0..=1.0, "between 0 and 1")?;
                ConfigError::check("epsilon_min", epsilon_min, 0.0..=1.0, "between 0 and 1")
            }
        }
    }
}

/// How one learner learns, settles and wakes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manner {
    /// Who learns.
    pub method: Method,
    /// Stays with the arm it converged to.
    pub lock: bool,
    /// What unlocks it; `None` locks for good.
    pub drift: Option<DriftConfig>,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            method: Method::default(),
            lock: true,
            drift: Some(DriftConfig::default()),
        }
    }
}

/// Settings of the learner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PickLlmConfig {
    /// What is rewarded.
    pub reward: RewardConfig,
    /// How it is learnt.
    pub manner: Manner,
    /// One learner per context, which begins with half of what the pool believes.
    pub contexts: bool,
}

impl Default for PickLlmConfig {
    fn default() -> Self {
        Self {
            reward: RewardConfig::default(),
            manner: Manner::default(),
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
    /// The arm it stays with. Absent in states from before it was kept: found again with the
    /// next reward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    locked: Option<String>,
    /// Watches the rewards of the locked arm.
    #[serde(default, skip_serializing_if = "Watch::is_new")]
    watch: Watch,
    /// How often drift has unlocked it.
    #[serde(default)]
    woken: u64,
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
        config.manner.method.check()?;
        if let Some(drift) = &config.manner.drift {
            drift.check()?;
        }
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

    /// The arm that answers every request of this context until further notice. Its answers need
    /// hardly any scoring then: one or two in a hundred show whether it still deserves it.
    pub fn settled(&self, context: &str) -> Option<&str> {
        self.knowledge(context).locked.as_deref()
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
        let policy = knowledge.policy(&ids, &self.config.manner);
        let i = pick(&policy.p, rng).unwrap_or_else(|| below(arms.len(), rng));
        let mut marginals = vec![0.0; question.arms.len()];
        for (&k, &p) in arms.iter().zip(&policy.p) {
            marginals[k] = p;
        }
        let arm = knowledge.arms.get(ids[i]);
        let reason = match arm.and_then(|arm| Some((arm, arm.reward.mean()?))) {
            None => format!("not yet known, tried with probability {:.2}", policy.p[i]),
            Some((arm, mean)) if policy.settled => format!(
                "settled, so 1 or 2 scores in 100 are enough; mean reward {mean:.2} of {:.0} scores",
                arm.reward.count
            ),
            Some((arm, mean)) => format!(
                "learning, probability {:.2}, mean reward {mean:.2} of {:.0} scores",
                policy.p[i], arm.reward.count
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
        let manner = self.config.manner;
        let State {
            pool,
            contexts,
            calls,
            ..
        } = &mut self.state;
        // Names are copied for strangers only: an update of what is known allocates nothing.
        if !calls.contains_key(observation.arm) {
            calls.insert(observation.arm.to_owned(), Calls::default());
        }
        if let Some(calls) = calls.get_mut(observation.arm) {
            if let Some(cost) = observation.paid() {
                calls.cost.push(cost);
            }
            if let Some(latency) = measured(observation.latency_ms) {
                calls.latency.push(latency);
            }
        }
        if self.config.contexts && !observation.context.is_empty() {
            let room = contexts.len() < MAX_CONTEXTS;
            if room && !contexts.contains_key(observation.context) {
                contexts.insert(observation.context.to_owned(), pool.softened(manner.method));
            }
            if let Some(own) = contexts.get_mut(observation.context) {
                own.learn(observation.arm, reward, &manner);
            }
        }
        pool.learn(observation.arm, reward, &manner);
    }
}

/// How the eligible arms are drawn now.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// P(arm) for each arm asked about; sums to 1.
    pub p: Vec<f64>,
    /// True once it has converged to one arm: scoring need not be paid for any longer.
    pub settled: bool,
}

impl Knowledge {
    fn is_sound(&self) -> bool {
        let share = |x: f64| (0.0..=1.0 + 1e-6).contains(&x);
        let sound = |arm: &Arm| share(arm.p) && share(arm.q) && arm.reward.is_sound(1.0);
        self.watch.is_sound() && self.arms.values().all(sound)
    }

    /// The probabilities of these arms; does not change what is known.
    pub fn policy(&self, ids: &[&str], manner: &Manner) -> Policy {
        let method = manner.method;
        let known: Vec<Option<&Arm>> = ids.iter().map(|id| self.arms.get(*id)).collect();
        let strangers = known.iter().filter(|arm| arm.is_none()).count();
        let locked = self.locked.as_deref().filter(|_| manner.lock);
        if let Some(i) = locked.and_then(|id| ids.iter().position(|i| *i == id))
            && strangers == 0
            && ids.len() > 1
        {
            return Policy::certain(ids.len(), i);
        }
        let (p, learnt) = match method {
            Method::Automaton { .. } => (self.automaton(&known, strangers), strangers == 0),
            Method::Pursuit { warm_up, .. } => self.pursuit(&known, strangers, warm_up),
            Method::QLearning { .. } => (self.q_policy(&known, method), false),
        };
        // Converged among the arms that are here, although one that is away is as good. An arm
        // that is alone, or the last one to warm up, is certain but proves nothing.
        let sure = p.iter().position(|p| *p >= CONVERGED);
        match sure.filter(|_| manner.lock && learnt && ids.len() > 1) {
            // The crumbs of the others go to the one.
            Some(i) => Policy::certain(ids.len(), i),
            None => Policy { p, settled: false },
        }
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

    fn q_policy(&self, known: &[Option<&Arm>], method: Method) -> Vec<f64> {
        let epsilon = method.epsilon(self.steps);
        let q = |arm: &Option<&Arm>| arm.map_or(method.start(), |arm| arm.q);
        let best = known.iter().map(q).fold(f64::NEG_INFINITY, f64::max);
        let ties = known.iter().filter(|arm| q(arm) == best).count() as f64;
        let explore = epsilon / known.len() as f64;
        let greedy = (1.0 - epsilon) / ties;
        let share = |arm| explore + if q(arm) == best { greedy } else { 0.0 };
        known.iter().map(share).collect()
    }

    /// Learns r of one arm; an arm becomes known even where nothing was graded.
    pub fn learn(&mut self, id: &str, reward: Option<f64>, manner: &Manner) {
        let method = manner.method;
        self.meet(id, method);
        let Some(r) = reward else { return };
        self.steps = self.steps.saturating_add(1);
        if let Some(arm) = self.arms.get_mut(id) {
            arm.reward.push(r);
        }
        match method {
            Method::Automaton { step } => self.shift(|key| key == id, step * r),
            Method::Pursuit { step, warm_up } => {
                let warm = |arm: &Arm| arm.reward.count >= f64::from(warm_up);
                if self.arms.values().all(warm)
                    && let Some(best) = self.best(|arm| arm.reward.mean().unwrap_or(0.0))
                {
                    let mut place = 0;
                    self.shift(
                        |_| {
                            place += 1;
                            place == best + 1
                        },
                        step,
                    );
                }
            }
            Method::QLearning { alpha, .. } => {
                if let Some(arm) = self.arms.get_mut(id) {
                    arm.q += alpha * (r - arm.q);
                }
                self.follow();
            }
        }
        self.settle(id, r, manner);
    }

    /// Locks when it has converged; once locked, watches the rewards of that arm. Where these
    /// rewards themselves make it converge to another arm, it moves there.
    fn settle(&mut self, id: &str, r: f64, manner: &Manner) {
        if !manner.lock {
            return;
        }
        let mut locked = self.locked.take();
        let now = self.converged(manner.method);
        if now.is_some() && now != locked.as_ref() {
            match (&mut locked, now) {
                // Into the room of the old name.
                (Some(locked), Some(now)) => locked.clone_from(now),
                (locked, now) => *locked = now.cloned(),
            }
            self.watch = Watch::default();
        }
        self.locked = locked;
        let Some(drift) = &manner.drift else { return };
        if self.locked.as_deref() == Some(id) && self.watch.push(r, drift) {
            self.wake(manner.method);
        }
    }

    /// The one arm it has converged to, if it has.
    fn converged(&self, method: Method) -> Option<&String> {
        if self.arms.len() < 2 {
            return None;
        }
        match method {
            Method::QLearning { .. } => {
                let steady = self.steady >= STEADY_ROUNDS && method.exhausted(self.steps);
                self.greedy.as_ref().filter(|_| steady)
            }
            Method::Automaton { .. } | Method::Pursuit { .. } => {
                let sure = self.arms.iter().find(|(_, arm)| arm.p >= CONVERGED);
                sure.map(|(id, _)| id)
            }
        }
    }

    /// What was learnt no longer holds: all arms are equal again, and P, Q and ε start afresh.
    fn wake(&mut self, method: Method) {
        let n = self.arms.len() as f64;
        for arm in self.arms.values_mut() {
            *arm = Arm {
                p: 1.0 / n,
                q: method.start(),
                reward: Tally::default(),
            };
        }
        self.unlock();
        (self.steps, self.steady, self.greedy) = (0, 0, None);
        self.woken += 1;
    }

    fn unlock(&mut self) {
        (self.locked, self.watch) = (None, Watch::default());
    }

    /// Notes for how long the greedy arm has been the same.
    fn follow(&mut self) {
        let best = self.best(|arm| arm.q);
        let best = best.and_then(|place| self.arms.keys().nth(place));
        if best == self.greedy.as_ref() {
            self.steady = self.steady.saturating_add(1);
            return;
        }
        self.steady = 0;
        match (&mut self.greedy, best) {
            // Into the room of the old name.
            (Some(greedy), Some(best)) => greedy.clone_from(best),
            (greedy, best) => *greedy = best.cloned(),
        }
    }

    /// A new arm joins with the share of one of many; the others keep their proportions, and
    /// what was settled is open again.
    fn meet(&mut self, id: &str, method: Method) {
        if self.arms.contains_key(id) {
            return;
        }
        let n = self.arms.len() as f64;
        for arm in self.arms.values_mut() {
            arm.p *= n / (n + 1.0);
        }
        let newcomer = Arm {
            p: 1.0 / (n + 1.0),
            q: method.start(),
            reward: Tally::default(),
        };
        self.arms.insert(id.to_owned(), newcomer);
        self.unlock();
    }

    /// P ← P + s(e_i − P): reward-inaction with s = b·r, pursuit with s = b.
    fn shift(&mut self, mut is_goal: impl FnMut(&str) -> bool, s: f64) {
        for (key, arm) in &mut self.arms {
            let goal = if is_goal(key) { 1.0 } else { 0.0 };
            arm.p += s * (goal - arm.p);
        }
    }

    /// The place of the first arm, by name, of the largest value.
    fn best(&self, value: impl Fn(&Arm) -> f64) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for (place, arm) in self.arms.values().enumerate() {
            let x = value(arm);
            if best.is_none_or(|(_, most)| x > most) {
                best = Some((place, x));
            }
        }
        best.map(|(place, _)| place)
    }

    /// Where a context begins: half of what the pool believes, half ignorance.
    fn softened(&self, method: Method) -> Knowledge {
        let mut own = self.clone();
        let n = own.arms.len() as f64;
        for arm in own.arms.values_mut() {
            arm.p = 0.5 * (arm.p + 1.0 / n);
            arm.q = 0.5 * (arm.q + method.start());
            arm.reward = Tally::default();
        }
        own.unlock();
        (own.steps, own.steady, own.woken) = (0, 0, 0);
        own
    }
}

impl Policy {
    fn certain(arms: usize, i: usize) -> Self {
        let mut p = vec![0.0; arms];
        p[i] = 1.0;
        Self { p, settled: true }
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

    /// Q of an arm nobody has tried.
    fn start(self) -> f64 {
        match self {
            Method::QLearning { start, .. } => start,
            _ => 1.0,
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
