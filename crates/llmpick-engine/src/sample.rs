//! Draw the next token from the logits.
//!
//! The order is llama.cpp's: repetition penalty, then `top_k`, `top_p` and `min_p` on the
//! probabilities at temperature 1, then the temperature, then the draw. So the
//! temperature never changes which tokens are in question, only how they are weighed.
//!
//! One seed gives one text on any machine: the generator is fixed (PCG-64) and the
//! exponential is our own, in plain IEEE arithmetic of fixed order, since the system's may
//! differ in the last bit. A vocabulary of 262,144 is read a few times and never sorted
//! whole.

use std::cmp::Ordering;

use llmpick_core::Sampling;
use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;

/// Draws tokens for one generation.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Pcg64,
    candidates: Vec<Candidate>,
    /// Logits that the penalty changed, to be put back.
    changed: Vec<(u32, f32)>,
}

/// A drawn token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its natural log-probability by the model alone: temperature 1, no penalty, nothing
    /// left out.
    pub logprob: f32,
}

/// A setting is out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}, and must be {range}")]
pub struct InvalidSampling {
    name: &'static str,
    value: f32,
    range: &'static str,
}

/// The model gave logits from which nothing can be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit is NaN or positive infinity.
    #[error("draw a token: the model's output for token {0} is not a number")]
    NotFinite(usize),
    /// There are no logits, or all are negative infinity.
    #[error("draw a token: the model leaves no token possible")]
    NothingPossible,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    id: u32,
}

impl Candidate {
    /// Best first: the higher logit, then the lower id.
    fn order(&self, other: &Self) -> Ordering {
        other
            .logit
            .partial_cmp(&self.logit)
            .unwrap_or(Ordering::Equal)
            .then(self.id.cmp(&other.id))
    }
}

/// Checks that every setting makes sense.
///
/// # Errors
/// With a sentence that names the setting, its value and its range.
pub fn validate(sampling: &Sampling) -> Result<(), InvalidSampling> {
    let check = |name, value: f32, good: bool, range| {
        if good {
            Ok(())
        } else {
            Err(InvalidSampling { name, value, range })
        }
    };
    let Sampling {
        temperature,
        top_p,
        min_p,
        repetition_penalty,
        ..
    } = *sampling;
    check(
        "temperature",
        temperature,
        (0.0..=2.0).contains(&temperature),
        "between 0 and 2",
    )?;
    check(
        "top_p",
        top_p,
        (0.0..=1.0).contains(&top_p),
        "between 0 and 1",
    )?;
    check(
        "min_p",
        min_p,
        (0.0..=1.0).contains(&min_p),
        "between 0 and 1",
    )?;
    check(
        "repetition_penalty",
        repetition_penalty,
        repetition_penalty > 0.0 && repetition_penalty <= 10.0,
        "more than 0 and at most 10",
    )
}

impl Sampler {
    /// A sampler at the beginning of its seed's sequence.
    ///
    /// # Errors
    /// As [`validate`].
    pub fn new(sampling: &Sampling) -> Result<Self, InvalidSampling> {
        validate(sampling)?;
        Ok(Self {
            sampling: sampling.clone(),
            random: Pcg64::seed_from_u64(sampling.seed),
            candidates: Vec::new(),
            changed: Vec::new(),
        })
    }

    /// Draws one token. `logits` has one value for each token of the vocabulary and is as
    /// before when this returns; `recent` are the tokens so far, prompt included, of which
    /// the penalty looks at the last `repetition_window`.
    ///
    /// # Errors
    /// When a logit is NaN or +∞, or all are −∞.
    pub fn sample(&mut self, logits: &mut [f32], recent: &[u32]) -> Result<Sampled, SampleError> {
        let highest = highest(logits)?;
        let log_sum = f64::from(highest) + sum_exp(logits, highest).ln();
        self.penalise(logits, recent);
        let chosen = if self.sampling.temperature == 0.0 {
            Ok(first_highest(logits))
        } else {
            self.draw(logits, log_sum)
        };
        for &(id, logit) in &self.changed {
            logits[id as usize] = logit;
        }
        let id = chosen?;
        Ok(Sampled {
            id,
            logprob: (f64::from(logits[id as usize]) - log_sum) as f32,
        })
    }

    /// Pushes the logits of recent tokens towards "unlikely": positive ones are divided,
    /// negative ones multiplied (Keskar et al. 2019, eq. 3, with the sign put right).
    fn penalise(&mut self, logits: &mut [f32], recent: &[u32]) {
        self.changed.clear();
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let window = (self.sampling.repetition_window as usize).min(recent.len());
        let mut ids = recent[recent.len() - window..].to_vec();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let Some(logit) = logits.get_mut(id as usize) else {
                continue;
            };
            self.changed.push((id, *logit));
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
    }

    fn draw(&mut self, logits: &[f32], log_sum: f64) -> Result<u32, SampleError> {
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.sampling;
        let all = logits.len();
        let top_k = match top_k as usize {
            0 => all,
            k => k.min(all),
        };
        if top_k == all && top_p >= 1.0 && min_p <= 0.0 {
            self.candidates.clear();
            self.candidates.extend(candidates(logits));
            let highest = highest(logits)?;
            return Ok(self.draw_weighed(highest, temperature));
        }
        // With `top_k` the probabilities are of those k alone; without, of all tokens.
        let mut log_sum = log_sum;
        if top_k == all && !self.changed.is_empty() {
            let highest = highest(logits)?;
            log_sum = f64::from(highest) + sum_exp(logits, highest).ln();
        }
        let mut wanted = if top_k < all { top_k } else { all.min(256) };
        loop {
            best(logits, wanted, &mut self.candidates);
            if top_k < all {
                let highest = self.candidates[0].logit;
                let sum: f64 = self
                    .candidates
                    .iter()
                    .map(|candidate| exp(f64::from(candidate.logit) - f64::from(highest)))
                    .sum();
                log_sum = f64::from(highest) + sum.ln();
            }
            let kept = kept(&self.candidates, log_sum, top_p, min_p);
            // If every candidate is kept, there may be more to keep behind them.
            if kept < self.candidates.len() || wanted >= top_k {
                self.candidates.truncate(kept);
                break;
            }
            wanted = (wanted * 8).min(top_k);
        }
        let highest = self.candidates[0].logit;
        Ok(self.draw_weighed(highest, temperature))
    }

    /// Draws from the candidates by exp(logit / temperature).
    fn draw_weighed(&mut self, highest: f32, temperature: f32) -> u32 {
        let weigh = |candidate: &Candidate| {
            exp((f64::from(candidate.logit) - f64::from(highest)) / f64::from(temperature))
        };
        let sum: f64 = self.candidates.iter().map(weigh).sum();
        // 53 random bits, in 0..1.
        let uniform = (self.random.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64);
        let mut left = uniform * sum;
        let mut last = 0;
        for candidate in &self.candidates {
            let weight = weigh(candidate);
            if weight > 0.0 {
                last = candidate.id;
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        // Rounding may leave a crumb: then it is the last possible one.
        last
    }
}

/// How many of the sorted candidates `top_p` and `min_p` keep; at least one.
fn kept(candidates: &[Candidate], log_sum: f64, top_p: f32, min_p: f32) -> usize {
    let mut reached = 0.0;
    let highest = exp(f64::from(candidates[0].logit) - log_sum);
    for (number, candidate) in candidates.iter().enumerate() {
        let probability = exp(f64::from(candidate.logit) - log_sum);
        if number > 0 && probability < f64::from(min_p) * highest {
            return number;
        }
        reached += probability;
        if top_p < 1.0 && reached >= f64::from(top_p) {
            return number + 1;
        }
    }
    candidates.len()
}

/// The `count` best, in order.
fn best(logits: &[f32], count: usize, into: &mut Vec<Candidate>) {
    into.clear();
    // Few are wanted: keep a small sorted list and look only at blocks that can add to it.
    if count <= 256 && logits.len() > count {
        const BLOCK: usize = 64;
        into.extend(candidates(&logits[..count]));
        into.sort_unstable_by(Candidate::order);
        let mut start = count;
        for block in logits[count..].chunks(BLOCK) {
            let lowest = into[count - 1].logit;
            // Of equals the lower id is the better, and it came first: `>` is enough.
            if block.iter().any(|&logit| logit > lowest) {
                for (offset, &logit) in block.iter().enumerate() {
                    if logit > into[count - 1].logit {
                        let candidate = Candidate {
                            logit,
                            id: (start + offset) as u32,
                        };
                        let place = into.partition_point(|c| c.order(&candidate) == Ordering::Less);
                        into.pop();
                        into.insert(place, candidate);
                    }
                }
            }
            start += block.len();
        }
        return;
    }
    into.extend(candidates(logits));
    if count < into.len() && count > 0 {
        into.select_nth_unstable_by(count - 1, Candidate::order);
        into.truncate(count);
    }
    into.sort_unstable_by(Candidate::order);
}

fn candidates(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    logits.iter().enumerate().map(|(id, &logit)| Candidate {
        logit,
        id: id as u32,
    })
}

fn first_highest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The highest logit, once all are known to be usable.
fn highest(logits: &[f32]) -> Result<f32, SampleError> {
    const LANES: usize = 16;
    let mut highest = [f32::NEG_INFINITY; LANES];
    let mut good = [true; LANES];
    let (blocks, rest) = logits.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            // False for NaN and for +∞.
            good[lane] &= block[lane] < f32::INFINITY;
            highest[lane] = highest[lane].max(block[lane]);
        }
    }
    for (lane, &logit) in rest.iter().enumerate() {
        good[lane] &= logit < f32::INFINITY;
        highest[lane] = highest[lane].max(logit);
    }
    if good.contains(&false) {
        let bad = logits
            .iter()
            .position(|&l| l.is_nan() || l == f32::INFINITY);
        return Err(SampleError::NotFinite(bad.unwrap_or(0)));
    }
    let highest = highest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if highest == f32::NEG_INFINITY {
        return Err(SampleError::NothingPossible);
    }
    Ok(highest)
}

/// Σ exp(logit − highest), to about seven digits, in an order of its own that no machine
/// changes. Laid out so that the compiler makes vectors of it.
fn sum_exp(logits: &[f32], highest: f32) -> f64 {
    const LANES: usize = 16;
    let mut total = 0.0;
    for part in logits.chunks(LANES * 64) {
        let mut sums = [0.0_f32; LANES];
        let (blocks, rest) = part.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                sums[lane] += exp_f32(block[lane] - highest);
            }
        }
        for (lane, &logit) in rest.iter().enumerate() {
            sums[lane] += exp_f32(logit - highest);
        }
        total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    }
    total
}

/// e^x for x ≤ 0, relative error below 3e-7; 0 below −87.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    // Adding and taking off 1.5·2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let power = clamped * std::f32::consts::LOG2_E;
    let whole = (power + ROUND) - ROUND;
    // ln 2 in two parts: the first has few bits, so its product is exact.
    let rest = (clamped - whole * 0.693_359_4) - whole * -2.121_944_4e-4;
    let mut sum = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * rest + coefficient;
    }
    let scale = f32::from_bits(((whole as i32 + 127) as u32) << 23);
    if x > -87.0 { sum * scale } else { 0.0 }
}

/// e^x for x ≤ 0 (a little above is fine), relative error below 1e-15; 0 below −700.
fn exp(x: f64) -> f64 {
    if x.is_nan() || x < -700.0 {
        return 0.0;
    }
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let whole = (x * std::f64::consts::LOG2_E + ROUND) - ROUND;
    let rest = (x - whole * 0.693_147_180_369_123_8) - whole * 1.908_214_929_270_587_7e-10;
    // Taylor's series: |rest| ≤ 0.35, and the 14th term is below 1e-17.
    let mut sum = 1.0;
    for divisor in (1..=14).rev() {
        sum = 1.0 + sum * rest / f64::from(divisor);
    }
    sum * f64::from_bits(((whole as i64 + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::Rng;

    fn greedy() -> Sampling {
        Sampling {
            temperature: 0.0,
            repetition_penalty: 1.0,
            ..Sampling::default()
        }
    }

    fn open(temperature: f32) -> Sampling {
        Sampling {
            temperature,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            ..Sampling::default()
        }
    }

    /// The rule said plainly: the probability of every token.
    fn plain(sampling: &Sampling, logits: &[f32], recent: &[u32]) -> Vec<f64> {
        let mut logits: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
        let window = (sampling.repetition_window as usize).min(recent.len());
        let window = &recent[recent.len() - window..];
        for (id, logit) in logits.iter_mut().enumerate() {
            if window.contains(&(id as u32)) {
                let penalty = f64::from(sampling.repetition_penalty);
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k as usize);
        }
        let sum: f64 = order.iter().map(|&id| logits[id].exp()).sum();
        let probability = |id: usize| logits[id].exp() / sum;
        let mut reached = 0.0;
        let top_p = order
            .iter()
            .position(|&id| {
                reached += probability(id);
                sampling.top_p < 1.0 && reached >= f64::from(sampling.top_p)
            })
            .map_or(order.len(), |at| at + 1);
        order.truncate(top_p);
        let least = f64::from(sampling.min_p) * probability(order[0]);
        order.retain(|&id| probability(id) >= least);
        let weight = |id: usize| (logits[id] / f64::from(sampling.temperature)).exp();
        let sum: f64 = order.iter().map(|&id| weight(id)).sum();
        let mut result = vec![0.0; logits.len()];
        for id in order {
            result[id] = weight(id) / sum;
        }
        result
    }

    /// Draws many times and compares the counts with the plain rule.
    fn check(sampling: &Sampling, logits: &[f32], recent: &[u32]) {
        let expected = plain(sampling, logits, recent);
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut given = logits.to_vec();
        let draws = 20_000;
        let mut counts = vec![0_u32; logits.len()];
        let log_sum = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        for _ in 0..draws {
            let sampled = sampler.sample(&mut given, recent).unwrap();
            counts[sampled.id as usize] += 1;
            let logprob = f64::from(logits[sampled.id as usize]) - log_sum;
            assert!((f64::from(sampled.logprob) - logprob).abs() < 1e-5);
        }
        assert_eq!(given, logits, "the logits are as before");
        for (id, (&count, &p)) in counts.iter().zip(&expected).enumerate() {
            let share = f64::from(count) / f64::from(draws);
            let spread = (p * (1.0 - p) / f64::from(draws)).sqrt();
            assert!(
                (share - p).abs() <= 5.0 * spread + 1e-12,
                "token {id}: drawn {share}, expected {p} with {sampling:?}"
            );
        }
    }

    #[test]
    fn draws_follow_the_plain_rule() {
        let logits = [1.5, -0.3, 2.0, 0.1, -2.0, 1.5, 0.0, -8.0, 0.7, 1.1];
        check(&open(1.0), &logits, &[]);
        check(&open(0.3), &logits, &[]);
        check(&open(2.0), &logits, &[]);
        check(
            &Sampling {
                top_k: 3,
                ..open(1.0)
            },
            &logits,
            &[],
        );
        check(
            &Sampling {
                top_k: 100,
                ..open(1.0)
            },
            &logits,
            &[],
        );
        check(
            &Sampling {
                top_p: 0.6,
                ..open(1.3)
            },
            &logits,
            &[],
        );
        check(
            &Sampling {
                top_p: 0.0,
                ..open(1.3)
            },
            &logits,
            &[],
        );
        check(
            &Sampling {
                min_p: 0.3,
                ..open(0.8)
            },
            &logits,
            &[],
        );
        check(
            &Sampling {
                min_p: 1.0,
                ..open(0.8)
            },
            &logits,
            &[],
        );
        check(
            &Sampling {
                repetition_penalty: 1.8,
                repetition_window: 3,
                ..open(1.0)
            },
            &logits,
            &[5, 2, 1, 2, 99],
        );
        check(
            &Sampling {
                top_k: 7,
                top_p: 0.9,
                min_p: 0.05,
                repetition_penalty: 1.3,
                repetition_window: 64,
                ..open(0.7)
            },
            &logits,
            &[0, 2, 9],
        );
    }

    #[test]
    fn any_settings_choose_only_what_the_plain_rule_allows() {
        let mut random = Pcg64::seed_from_u64(3);
        for round in 0..400 {
            let vocabulary = random.random_range(1..700);
            // Few distinct values, so that ties happen.
            let logits: Vec<f32> = (0..vocabulary)
                .map(|_| random.random_range(-40..40) as f32 / 4.0)
                .collect();
            let recent: Vec<u32> = (0..20).map(|_| random.random_range(0..800)).collect();
            let sampling = Sampling {
                top_k: [0, 1, 5, 300, 1000][random.random_range(0..5)],
                top_p: [1.0, 0.9, 0.3][random.random_range(0..3)],
                min_p: [0.0, 0.05, 0.5][random.random_range(0..3)],
                repetition_penalty: [1.0, 1.2][random.random_range(0..2)],
                seed: round,
                ..open(random.random_range(0.1..2.0))
            };
            let expected = plain(&sampling, &logits, &recent);
            let mut sampler = Sampler::new(&sampling).unwrap();
            for _ in 0..20 {
                let id = sampler.sample(&mut logits.clone(), &recent).unwrap().id;
                assert!(expected[id as usize] > 0.0, "token {id} with {sampling:?}");
            }
        }
    }

    #[test]
    fn a_long_flat_tail_is_kept_where_nothing_cuts_it() {
        // 5,000 equal tokens: `top_p` must look far beyond its first short list.
        let mut logits = vec![0.0; 5000];
        let sampling = Sampling {
            top_p: 0.9,
            ..open(1.0)
        };
        let mut sampler = Sampler::new(&sampling).unwrap();
        let ids: Vec<u32> = (0..3000)
            .map(|_| sampler.sample(&mut logits, &[]).unwrap().id)
            .collect();
        assert!(ids.iter().all(|&id| id <= 4500));
        assert!(ids.iter().any(|&id| id > 4000));
    }

    #[test]
    fn greedy_takes_the_highest_and_of_equals_the_first() {
        let mut sampler = Sampler::new(&greedy()).unwrap();
        let sampled = sampler.sample(&mut [0.0, 3.0, 3.0, 1.0], &[]).unwrap();
        assert_eq!(sampled.id, 1);
        assert!(
            (sampled.logprob - (3.0 - (1.0 + 2.0 * 3.0_f32.exp() + 1.0_f32.exp()).ln())).abs()
                < 1e-6
        );
        let penalised = Sampling {
            repetition_penalty: 1.5,
            ..greedy()
        };
        let mut sampler = Sampler::new(&penalised).unwrap();
        assert_eq!(sampler.sample(&mut [0.0, 3.0, 2.9], &[1]).unwrap().id, 2);
        assert_eq!(sampler.sample(&mut [-1.0, -1.1], &[0]).unwrap().id, 1);
    }

    #[test]
    fn one_seed_gives_one_sequence_and_another_gives_another() {
        let draw = |seed| {
            let mut sampler = Sampler::new(&Sampling { seed, ..open(1.0) }).unwrap();
            (0..12)
                .map(|_| {
                    sampler
                        .sample(&mut [0.1, 0.2, 0.3, 0.4, 0.5], &[])
                        .unwrap()
                        .id
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        // Written down: it must never change between versions or machines.
        assert_eq!(draw(42), [1, 1, 4, 2, 4, 2, 1, 2, 4, 2, 1, 4]);
    }

    #[test]
    fn unusable_logits_are_errors() {
        for sampling in [greedy(), open(1.0), Sampling::default()] {
            let mut sampler = Sampler::new(&sampling).unwrap();
            let mut sample = |logits: &[f32]| sampler.sample(&mut logits.to_vec(), &[]);
            assert_eq!(sample(&[0.0, f32::NAN]), Err(SampleError::NotFinite(1)));
            assert_eq!(sample(&[f32::INFINITY]), Err(SampleError::NotFinite(0)));
            let mut long = vec![0.0; 100];
            long[40] = f32::NAN;
            assert_eq!(sample(&long), Err(SampleError::NotFinite(40)));
            assert_eq!(sample(&[]), Err(SampleError::NothingPossible));
            assert_eq!(
                sample(&[f32::NEG_INFINITY; 3]),
                Err(SampleError::NothingPossible)
            );
            let masked = sample(&[f32::NEG_INFINITY, -3.0, f32::NEG_INFINITY]).unwrap();
            assert_eq!((masked.id, masked.logprob), (1, 0.0));
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let say = |sampling: Sampling| validate(&sampling).unwrap_err().to_string();
        let base = Sampling::default;
        assert_eq!(
            say(Sampling {
                temperature: -0.1,
                ..base()
            }),
            "temperature is -0.1, and must be between 0 and 2"
        );
        assert!(
            say(Sampling {
                temperature: f32::NAN,
                ..base()
            })
            .contains("NaN")
        );
        assert!(
            say(Sampling {
                top_p: 1.5,
                ..base()
            })
            .starts_with("top_p")
        );
        assert!(
            say(Sampling {
                min_p: -1.0,
                ..base()
            })
            .starts_with("min_p")
        );
        assert!(
            say(Sampling {
                repetition_penalty: 0.0,
                ..base()
            })
            .starts_with("repetition_penalty")
        );
        assert_eq!(validate(&base()), Ok(()));
    }

    #[test]
    fn our_exponentials_agree_with_the_system() {
        for step in 0..200_000 {
            let x = -f64::from(step) * 0.0005;
            assert!((exp(x) / x.exp() - 1.0).abs() < 2e-15, "{x}");
            if x > -87.0 {
                let narrow = x as f32;
                let error = f64::from(exp_f32(narrow)) / f64::from(narrow).exp() - 1.0;
                assert!(error.abs() < 3e-7, "{narrow}: {error}");
            }
        }
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }
}
