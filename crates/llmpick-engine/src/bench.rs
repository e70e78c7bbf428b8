//! Measure a model: prompt and generation speed, time to the first token, load time, memory.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::memory;
use crate::model::{Clock, Model};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchPlan {
    /// Tokens of the synthetic prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub gen_tokens: usize,
    /// Measured runs; one more runs before them and is not counted.
    pub runs: usize,
    /// Sequences at once. Only 1 so far.
    pub batch: usize,
}

/// Middle, least and greatest of the runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle run, or the mean of the two in the middle.
    pub median: f64,
    /// The slowest run.
    pub min: f64,
    /// The fastest run.
    pub max: f64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Seconds to open the file and repack its weights.
    pub load_s: f64,
    /// Prompt tokens per second.
    pub prompt_tps: Spread,
    /// Generated tokens per second, the first not counted: it comes out of the prompt.
    pub gen_tps: Spread,
    /// Milliseconds from the prompt to the first token, the median.
    pub ttft_ms: f64,
    /// The most bytes this process ever had resident; 0 where the system does not say.
    pub peak_rss_bytes: u64,
    /// Threads that computed.
    pub threads: usize,
}

impl Model {
    /// Runs a synthetic prompt and a greedy generation of a fixed length, several times,
    /// each from an empty cache.
    pub fn bench(&mut self, plan: BenchPlan) -> Result<BenchReport, EngineError> {
        self.check_plan(&plan)?;
        let prompt = self.synthetic_prompt(plan.prompt_tokens);
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for run in 0..=plan.runs {
            let (first, rest) = self.timed_run(&prompt, plan.gen_tokens)?;
            // The first run grows buffers and wakes the threads.
            if run > 0 {
                prefill.push(first);
                decode.push(rest);
            }
        }
        let prompt_tps = prefill.iter().map(|s| plan.prompt_tokens as f64 / s);
        let steps = (plan.gen_tokens - 1) as f64;
        let gen_tps = decode.iter().map(|s| steps / s);
        Ok(BenchReport {
            load_s: self.load_time().as_secs_f64(),
            prompt_tps: spread(prompt_tps.collect()),
            gen_tps: spread(gen_tps.collect()),
            ttft_ms: spread(prefill).median * 1e3,
            peak_rss_bytes: memory::peak_resident(),
            threads: self.threads(),
        })
    }

    fn check_plan(&self, plan: &BenchPlan) -> Result<(), EngineError> {
        let wrong = |why: String| Err(EngineError::InvalidRequest(why));
        let BenchPlan {
            prompt_tokens,
            gen_tokens,
            runs,
            batch,
        } = *plan;
        if batch != 1 {
            return wrong(format!(
                "{batch} sequences at once are not supported yet; measure a batch of 1"
            ));
        }
        if prompt_tokens == 0 || runs == 0 || gen_tokens < 2 {
            return wrong(
                "a measurement needs a prompt token, two generated tokens, and one run".to_owned(),
            );
        }
        if prompt_tokens.saturating_add(gen_tokens) > self.context_tokens() as usize {
            return wrong(format!(
                "{prompt_tokens} and {gen_tokens} tokens do not fit the context of {}",
                self.context_tokens()
            ));
        }
        Ok(())
    }

    /// Ordinary tokens in no order: speed does not depend on what they say.
    fn synthetic_prompt(&self, len: usize) -> Vec<u32> {
        let tokenizer = self.tokenizer();
        let vocab = tokenizer.vocab_size() as u32;
        let mut state = 1u32;
        let mut tokens = Vec::with_capacity(len);
        tokens.extend(tokenizer.bos().filter(|_| tokenizer.adds_bos()));
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

    /// Seconds until the first token, and for the rest.
    fn timed_run(&mut self, prompt: &[u32], gen_tokens: usize) -> Result<(f64, f64), EngineError> {
        self.clear_cache();
        let mut tokens = prompt.to_vec();
        let started = Instant::now();
        self.greedy_step(&mut tokens)?;
        let first = started.elapsed().as_secs_f64();
        let started = Instant::now();
        for _ in 1..gen_tokens {
            self.greedy_step(&mut tokens)?;
        }
        Ok((first, started.elapsed().as_secs_f64()))
    }

    /// Appends the most likely token; an end token counts as any other.
    fn greedy_step(&mut self, tokens: &mut Vec<u32>) -> Result<(), EngineError> {
        let mut next = 0;
        let wanted = tokens.len() - 1;
        let mut clock = Clock::default();
        self.run(tokens, wanted, &|| false, &mut clock, &mut |_, logits| {
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

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let middle = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
    let count = values.len();
    Spread {
        median: (middle(count.saturating_sub(1) / 2) + middle(count / 2)) / 2.0,
        min: middle(0),
        max: middle(count.saturating_sub(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_of_runs_is_a_mean() {
        let all = spread(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((all.median, all.min, all.max), (2.5, 1.0, 4.0));
        assert_eq!(spread(vec![7.0]).median, 7.0);
    }
}
