//! Log-probabilities of given tokens, from rows of logits.

use std::sync::OnceLock;

use llmpick_kernels::Pool;

/// Natural log-probability of one target per row. The sum runs in f64: over a vocabulary of
/// 262,144, an f32 sum is off by more than perplexities are compared at.
pub(crate) fn log_likelihoods(
    pool: &Pool,
    logits: &[f32],
    vocab: usize,
    targets: &[u32],
) -> Vec<f64> {
    let slots: Vec<OnceLock<f64>> = targets.iter().map(|_| OnceLock::new()).collect();
    pool.run(targets.len(), &|row| {
        let logits = &logits[row * vocab..(row + 1) * vocab];
        // Each task is called once, so the slot is empty.
        let _ = slots[row].set(log_likelihood(logits, targets[row] as usize));
    });
    slots
        .into_iter()
        .map(|slot| slot.into_inner().unwrap_or(f64::NAN))
        .collect()
}

/// The `count` largest logits of a row with their natural log-probabilities, largest first;
/// of equals the lower id comes first.
pub(crate) fn best(logits: &[f32], count: usize) -> Vec<(u32, f64)> {
    let mut best: Vec<usize> = Vec::with_capacity(count + 1);
    for (id, logit) in logits.iter().enumerate() {
        let last = best.last().map_or(f32::NEG_INFINITY, |id| logits[*id]);
        if best.len() < count || *logit > last {
            let place = best.partition_point(|id| logits[*id] >= *logit);
            best.insert(place, id);
            best.truncate(count);
        }
    }
    best.into_iter()
        .map(|id| (id as u32, log_likelihood(logits, id)))
        .collect()
}

fn log_likelihood(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    let own = logits.get(target).copied().unwrap_or(f32::NEG_INFINITY);
    f64::from(own) - f64::from(max) - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised_apart() {
        let logits = [0.0, 0.0, 0.0, 0.0, 1000.0, 0.0, 0.0, 0.0];
        let all = log_likelihoods(&Pool::new(1), &logits, 4, &[2, 0]);
        assert!((all[0] - 0.25f64.ln()).abs() < 1e-12);
        assert_eq!(all[1], 0.0);
    }

    #[test]
    fn the_best_are_sorted_and_equals_keep_their_order() {
        let ids = |logits: &[f32], count| -> Vec<u32> {
            best(logits, count).into_iter().map(|(id, _)| id).collect()
        };
        let logits = [0.0, 2.0, -1.0, 2.0, 3.0];
        assert_eq!(ids(&logits, 3), [4, 1, 3]);
        assert_eq!(ids(&logits, 9), [4, 1, 3, 0, 2]);
        assert_eq!(ids(&[1.0, 1.0], 1), [0]);
        assert!((best(&[0.0; 4], 1)[0].1 - 0.25f64.ln()).abs() < 1e-12);
    }
}
