//! From tokens to the text a client sees.
//!
//! Text waits for two reasons: the bytes of a character may come in several tokens, and an
//! end of text may be the beginning of a stop string. The log-probability of a token goes
//! out with the first text of its own, so a stop string leaves no trace in either.

use std::collections::VecDeque;

use llmpick_core::TokenPiece;

use crate::error::EngineError;
use crate::tokens::{StopMatcher, StreamDecoder, Tokenizer};

/// The output of one generation.
pub(crate) struct Output {
    decoder: StreamDecoder,
    stops: StopMatcher,
    logprobs: bool,
    /// Where each token's text begins, with its log-probability, until that text is out.
    waiting: VecDeque<(usize, f32)>,
    /// Bytes decoded, and bytes passed on.
    decoded: usize,
    emitted: usize,
}

impl Output {
    pub fn new(
        tokenizer: &Tokenizer,
        stops: &[String],
        logprobs: bool,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            decoder: StreamDecoder::new(tokenizer),
            stops: StopMatcher::new(stops)
                .map_err(|error| EngineError::InvalidRequest(error.to_string()))?,
            logprobs,
            waiting: VecDeque::new(),
            decoded: 0,
            emitted: 0,
        })
    }

    /// Takes a token; true when a stop string came up, after which nothing more is to come.
    pub fn push(&mut self, id: u32, logprob: f32, emit: &mut dyn FnMut(TokenPiece)) -> bool {
        if self.logprobs {
            self.waiting.push_back((self.decoded, logprob));
        }
        match self.decoder.push(id) {
            Some(text) => self.pass(&text, emit),
            None => false,
        }
    }

    /// Passes on what was still waiting.
    pub fn finish(mut self, emit: &mut dyn FnMut(TokenPiece)) {
        if let Some(text) = self.decoder.finish()
            && self.pass(&text, emit)
        {
            return;
        }
        let text = self.stops.finish();
        let logprobs: Vec<f32> = self.waiting.drain(..).map(|(_, l)| l).collect();
        if !text.is_empty() || !logprobs.is_empty() {
            emit(TokenPiece { text, logprobs });
        }
    }

    fn pass(&mut self, text: &str, emit: &mut dyn FnMut(TokenPiece)) -> bool {
        self.decoded += text.len();
        let passed = self.stops.push(text);
        self.emitted += passed.text.len();
        let mut logprobs = Vec::new();
        while let Some((_, logprob)) = self.waiting.pop_front_if(|(at, _)| *at < self.emitted) {
            logprobs.push(logprob);
        }
        if !passed.text.is_empty() {
            emit(TokenPiece {
                text: passed.text,
                logprobs,
            });
        }
        passed.stop.is_some()
    }
}
