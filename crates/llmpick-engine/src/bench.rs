//! Measure a model: single runs to be timed, from which a caller makes statistics.
//!
//! What is measured in turn with something else (another program, a plain read of memory)
//! needs its turns handed out from outside, so here is one run of each kind and no loop.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::memory;
use crate::model::{Clock, Model};
use crate::tokens::Tokenizer;

/// Time of one run from an empty cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchRun {
    /// From the prompt to the first token.
    pub first: Duration,
    /// For the tokens after the first.
    pub rest: Duration,
    /// Bytes of keys and values that the run took, room included.
    pub kv_bytes: u64,
}

/// Middle, least and greatest of several values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The value in the middle, or the mean of the two there.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these values; all three are NaN if there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Spread {
            median: (at(last / 2) + at(values.len() / 2)) / 2.0,
            min: at(0),
            max: at(last),
        }
    }
}

/// A prompt of ordinary tokens in no order: speed does not depend on what they say. The same
/// for every call with one tokenizer and length; begins with BOS where the model wants one.
pub fn bench_prompt(tokenizer: &Tokenizer, len: usize) -> Vec<u32> {
    let vocab = tokenizer.vocab_size() as u32;
    let mut state = 1u32;
    let mut tokens = Vec::with_capacity(len);
    tokens.extend(tokenizer.bos().filter(|_| tokenizer.adds_bos()));
    tokens.truncate(len);
    while tokens.len() < len {
        // Numerical Recipes' generator: the same prompt on every machine.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let id = (state >> 8) % vocab.max(1);
        if !tokenizer.is_control(id) {
            tokens.push(id);
        }
    }
    tokens
}

/// The most bytes this process ever had resident; 0 where the system does not say.
pub fn peak_resident() -> u64 {
    memory::peak_resident()
}

impl Model {
    /// Computes a prompt and generates `gen_tokens` tokens greedily; an end token counts as
    /// any other. Nothing of an earlier run is used but the memory it took.
    ///
    /// # Errors
    /// If the prompt is empty, nothing is to be generated, both do not fit the context, or
    /// `cancelled` says so before a token or a piece of the prompt.
    pub fn bench_run(
        &mut self,
        prompt: &[u32],
        gen_tokens: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<BenchRun, EngineError> {
        if prompt.is_empty() || gen_tokens == 0 {
            return Err(EngineError::InvalidRequest(
                "a measurement needs a prompt token and a generated one".to_owned(),
            ));
        }
        if prompt.len().saturating_add(gen_tokens) > self.context_tokens() as usize {
            return Err(EngineError::InvalidRequest(format!(
                "{} and {gen_tokens} tokens do not fit the context of {}",
                prompt.len(),
                self.context_tokens()
            )));
        }
        self.forget();
        let mut tokens = prompt.to_vec();
        let started = Instant::now();
        self.greedy_step(&mut tokens, cancelled)?;
        let first = started.elapsed();
        let started = Instant::now();
        for _ in 1..gen_tokens {
            self.greedy_step(&mut tokens, cancelled)?;
        }
        Ok(BenchRun {
            first,
            rest: started.elapsed(),
            kv_bytes: self.cache_bytes(),
        })
    }

    /// Appends the most likely token.
    fn greedy_step(
        &mut self,
        tokens: &mut Vec<u32>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), EngineError> {
        let mut next = 0;
        let wanted = tokens.len() - 1;
        let mut clock = Clock::default();
        self.run(tokens, wanted, cancelled, &mut clock, &mut |_, logits| {
            next = most_likely(logits);
        })?;
        tokens.push(next);
        Ok(())
    }
}

fn most_likely(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (id as u32, *logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_of_runs_is_a_mean() {
        let all = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((all.median, all.min, all.max), (2.5, 1.0, 4.0));
        let odd = Spread::of([7.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 7.0));
        assert_eq!(Spread::of([7.0]).median, 7.0);
        assert!(Spread::of([]).median.is_nan());
    }
}
