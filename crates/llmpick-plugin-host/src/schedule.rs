//! The scheduler of this machine: dependent rounding from the logged seed.

use llmpick_bandit::{chance, rounding};
use llmpick_core::{Schedule, ScheduleRequest, Scheduler, SchedulerError};

pub use llmpick_bandit::rounding::redeal;

/// How far a sum of probabilities may be off.
pub(crate) const TOLERANCE: f64 = 1e-6;

/// Draws a set with these marginals from a seed, the likeliest arms first; at least one and at
/// most `most`. Marginals are in 0..=1 and do not all vanish.
pub fn draw(marginals: &[f64], seed: u64, most: u32) -> Vec<u32> {
    let mut drawn = rounding::round(marginals, &mut chance::seeded(seed));
    // A total below one leaves the set empty now and then; somebody must answer all the
    // same, and a total a hair above the limit may draw one arm too many.
    let by_marginal =
        |&a: &usize, &b: &usize| marginals[b].total_cmp(&marginals[a]).then(a.cmp(&b));
    if drawn.is_empty() {
        drawn.extend((0..marginals.len()).min_by(by_marginal));
    }
    drawn.sort_by(by_marginal);
    drawn.truncate(most as usize);
    drawn.into_iter().map(|index| index as u32).collect()
}

/// The seed of the `n`-th further draw from marginals that are held: fresh chance for each, and
/// the same again for the same seed and number. Draw 0 has the seed itself.
pub fn nth_seed(seed: u64, n: u64) -> u64 {
    if n == 0 {
        return seed;
    }
    // SplitMix64: neighbours share nothing.
    let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Rounds here. An arm that is down is not eligible, and so the router gave it no mass; that
/// is all there is to know of a machine's own arms, whose queues are part of their candidates.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalScheduler;

impl Scheduler for LocalScheduler {
    fn schedule(&self, request: &ScheduleRequest<'_>) -> Result<Schedule, SchedulerError> {
        let marginals: Vec<f64> = request.arms.iter().map(|arm| arm.marginal).collect();
        let whole = |arm: &llmpick_core::ScheduledArm| {
            (0.0..=1.0).contains(&arm.marginal) && (arm.eligible || arm.marginal == 0.0)
        };
        if let Some(arm) = request.arms.iter().find(|arm| !whole(arm)) {
            let (id, marginal) = (&arm.id, arm.marginal);
            return Err(SchedulerError::Marginals(format!(
                "{marginal} is no marginal to draw `{id}` by"
            )));
        }
        let total: f64 = marginals.iter().sum();
        let most = f64::from(request.max_arms);
        if total < TOLERANCE || total > most + TOLERANCE {
            return Err(SchedulerError::Marginals(format!(
                "the marginals add up to {total} where 0 to {most} arms may run"
            )));
        }
        Ok(Schedule {
            choices: draw(&marginals, request.seed, request.max_arms),
            marginals,
            note: String::new(),
        })
    }
}
