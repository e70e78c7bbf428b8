//! One model, called and waited for: prompts, generation, perplexity, likelihoods.
//!
//! The cache holds one sequence. Every call says which tokens it is about, and what the
//! cache already holds of them is not computed again; a chat's next turn reads only what
//! is new in it. Since no row's result depends on how a prompt is cut, a warm cache never
//! changes an answer.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llmpick_core::{
    ChoiceLikelihood, ChoicesRequest, Finish, FinishReason, GenerateRequest, Prompt, TokenPiece,
    Usage,
};
use llmpick_kernels::{KvType, Rounding, stream_read};
use serde::{Deserialize, Serialize};

use crate::decoder::DecoderOptions;
use crate::device::Device;
use crate::error::{EngineError, LoadError, LoadErrorKind};
use crate::file::ModelFile;
use crate::gguf;
use crate::gpu::{DeviceChoice, Place};
use crate::info::{ModelInfo, describe};
use crate::likelihood::{best, log_likelihoods};
use crate::memory;
use crate::output::Output;
use crate::runner::{Plan, Runner};
use crate::sample::Sampler;
use crate::template::{ChatTemplate, TemplateError};
use crate::tokens::{Encode, Tokenizer};

/// How a model is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads that compute; `None` means as many as the process may use.
    pub threads: Option<usize>,
    /// Most tokens of context, if fewer than the file's own.
    pub max_context: Option<u32>,
    /// Most bytes of weights, cache and working space; `None` leaves it to the machine.
    pub memory_limit: Option<u64>,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// How finely quantised weights meet what is multiplied with them.
    pub rounding: Rounding,
    /// Where it runs.
    pub device: DeviceChoice,
}

/// A loaded model.
pub struct Model {
    front: Arc<Front>,
    runner: Runner,
    device: Arc<Device>,
    place: Place,
    /// The tokens whose keys and values the cache holds.
    sequence: Vec<u32>,
    load: Duration,
}

/// What can be asked of a loaded model while another thread computes with it.
pub(crate) struct Front {
    pub info: ModelInfo,
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    pub context: u32,
}

/// A perplexity by llama.cpp's definition.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// Tokens that were scored: those of the later half of each window.
    pub tokens: u64,
    /// Their negative log-likelihoods, added up; natural logarithm.
    pub nll: f64,
    /// `exp(nll / tokens)`.
    pub ppl: f64,
    /// Tokens of a window.
    pub context: usize,
}

impl Model {
    /// Reads a GGUF file, or a folder of safetensors as the hub has them: the folder, one of
    /// its safetensors files, or their index may be named.
    ///
    /// # Errors
    /// If the file is missing, damaged, of a kind that is not supported, or needs more
    /// memory than is free.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Model, LoadError> {
        Self::load(path, options).map_err(|kind| LoadError::new(path, kind))
    }

    fn load(path: &Path, options: &EngineOptions) -> Result<Model, LoadErrorKind> {
        let started = Instant::now();
        let file = ModelFile::open(path)?;
        let place = Place::of(options.device);
        let found = Self::from_file(&file, path, options, place.clone(), started);
        match found {
            Err(LoadErrorKind::Device(why)) if options.device == DeviceChoice::Auto => {
                tracing::warn!(path = %path.display(), %why, "the GPU cannot take the model; it runs on the CPU");
                Self::from_file(&file, path, options, Place::Cpu, started)
            }
            found => found,
        }
    }

    /// Reads a file to run it as on a GPU, with candle's tensors, and on the processor: so
    /// that what a GPU computes can be tested where there is none.
    #[doc(hidden)]
    pub fn open_as_on_gpu(path: &Path, options: &EngineOptions) -> Result<Model, LoadError> {
        let place = Place::Candle(candle_core::Device::Cpu);
        ModelFile::open(path)
            .and_then(|file| Self::from_file(&file, path, options, place, Instant::now()))
            .map_err(|kind| LoadError::new(path, kind))
    }

    /// Reads a file that is in memory, as it would from a disk.
    pub(crate) fn from_bytes(bytes: Vec<u8>, options: &EngineOptions) -> Result<Model, LoadError> {
        let path = Path::new("memory.gguf");
        gguf::from_bytes(bytes)
            .and_then(|file| Self::from_file(&file, path, options, Place::Cpu, Instant::now()))
            .map_err(|kind| LoadError::new(path, kind))
    }

    fn from_file(
        file: &ModelFile,
        path: &Path,
        options: &EngineOptions,
        place: Place,
        started: Instant,
    ) -> Result<Model, LoadErrorKind> {
        let plan = Plan::of(file)?;
        let info = describe(path, file, &plan)?;
        let context = options
            .max_context
            .map_or(info.context_tokens, |most| most.min(info.context_tokens))
            .max(1);
        if !place.is_elsewhere() {
            check_memory(file, &plan, context, options)?;
        }
        let device = Device::shared(options.threads);
        let options = DecoderOptions {
            context: context as usize,
            kv_type: options.kv_type,
            rounding: options.rounding,
            memory_limit: options.memory_limit,
        };
        // The tokenizer is read while the weights are packed.
        let (words, runner) = std::thread::scope(|scope| {
            let words = std::thread::Builder::new()
                .name("llmpick-tokenizer".to_owned())
                .spawn_scoped(scope, || words(file, &info));
            let runner = plan.load(file, &device, &options, &place);
            let words = match words.map(|thread| thread.join()) {
                Ok(Ok(words)) => words,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                // The system gives no thread.
                Err(_) => self::words(file, &info),
            };
            (words, runner)
        });
        let (tokenizer, template) = words?;
        Ok(Model {
            front: Arc::new(Front {
                info,
                tokenizer,
                template,
                context,
            }),
            runner: runner?,
            device,
            place,
            sequence: Vec::new(),
            load: started.elapsed(),
        })
    }

    /// What the file says about itself.
    pub fn info(&self) -> &ModelInfo {
        &self.front.info
    }

    /// The file's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.front.tokenizer
    }

    /// Tokens of context in use: the file's own, or fewer by the options.
    pub fn context_tokens(&self) -> u32 {
        self.front.context
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.runner.threads(&self.device)
    }

    /// Where it runs, as the setting has it: `cpu` or `cuda:N`.
    pub fn device(&self) -> String {
        self.place.name()
    }

    /// How long [`open`](Self::open) took.
    pub fn load_time(&self) -> Duration {
        self.load
    }

    /// Bytes of weights and of the cache as it is now.
    pub fn resident_bytes(&self) -> u64 {
        self.runner.weight_bytes() + self.runner.cache_bytes()
    }

    /// Forgets the cached sequence and gives its memory back.
    pub fn clear_cache(&mut self) {
        self.sequence.clear();
        self.runner.clear();
    }

    /// Forgets the cached sequence and keeps its memory for the next one.
    pub(crate) fn forget(&mut self) {
        self.sequence.clear();
    }

    /// Bytes of keys and values, room included.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.runner.cache_bytes()
    }

    /// Bytes of weights that one generated token reads.
    pub fn weight_bytes(&self) -> u64 {
        self.runner.weight_bytes()
    }

    /// Reads the bytes of [`weight_bytes`](Self::weight_bytes) once with all threads and
    /// does nothing with them; how long that took is what no generated token can beat.
    /// `None` where the weights are not in our own matrices.
    pub fn stream_weights(&self) -> Option<Duration> {
        let Runner::Own(decoder) = &self.runner else {
            return None;
        };
        let _turn = self.device.turn();
        let parts = decoder.packed();
        let started = Instant::now();
        std::hint::black_box(stream_read(self.device.pool(), &parts));
        Some(started.elapsed())
    }

    /// The tokens of a prompt, chat template and BOS applied.
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, EngineError> {
        self.front.prompt_tokens(prompt)
    }

    /// Answers a prompt. Pieces go to `emit` as they come; `cancelled` is asked before each
    /// token and each piece of the prompt.
    pub fn generate(
        &mut self,
        request: &GenerateRequest,
        cancelled: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(TokenPiece),
    ) -> Result<Finish, EngineError> {
        self.front.check(request)?;
        let tokens = self.front.prompt_tokens(&request.prompt)?;
        self.generate_tokens(tokens, request, cancelled, emit)
    }

    /// [`generate`](Self::generate) for a prompt that is checked and tokenised already.
    pub(crate) fn generate_tokens(
        &mut self,
        prompt: Vec<u32>,
        request: &GenerateRequest,
        cancelled: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(TokenPiece),
    ) -> Result<Finish, EngineError> {
        let prompt_tokens = prompt.len();
        let front = Arc::clone(&self.front);
        let mut sampler = front.sampler(request)?;
        let mut output = Output::new(&front.tokenizer, &request.stop, request.logprobs)?;
        let room = (front.context as usize).saturating_sub(prompt_tokens);
        let limit = request
            .max_tokens
            .map_or(room, |most| room.min(most as usize));
        let mut history = prompt;
        let mut clock = Clock::default();
        let mut usage = Usage {
            prompt_tokens: prompt_tokens as u32,
            ..Usage::default()
        };
        let mut prefill = Duration::ZERO;
        let reason = loop {
            // The last token is always computed: its logits are not kept.
            let wanted = history.len() - 1;
            let mut drawn = None;
            let cached = self.run(&history, wanted, cancelled, &mut clock, &mut |_, logits| {
                drawn = Some(sampler.sample(logits, &history));
            })?;
            if usage.completion_tokens == 0 {
                usage.cached_tokens = cached as u32;
                prefill = clock.busy;
            }
            let token = drawn
                .ok_or_else(|| EngineError::Fault("no logits came".to_owned()))?
                .map_err(|error| EngineError::Fault(error.to_string()))?;
            if front.tokenizer.is_end_of_generation(token.id) {
                output.finish(emit);
                break FinishReason::Stop;
            }
            usage.completion_tokens += 1;
            history.push(token.id);
            if output.push(token.id, token.logprob, emit) {
                break FinishReason::Stop;
            }
            if usage.completion_tokens as usize >= limit {
                output.finish(emit);
                break FinishReason::Length;
            }
        };
        Ok(Finish {
            reason,
            usage,
            busy: clock.busy,
            load: Duration::ZERO,
            prefill,
        })
    }

    /// Log-likelihood of each choice after the prompt; the prompt is computed once.
    ///
    /// As lm-evaluation-harness does it: prompt and choice are tokenised together, and the
    /// tokens beyond those of the prompt alone are the choice's.
    pub fn choices(
        &mut self,
        request: &ChoicesRequest,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<ChoiceLikelihood>, EngineError> {
        let prompt = self.front.prompt_tokens(&request.prompt)?;
        let mut clock = Clock::default();
        let mut rows = Vec::with_capacity(request.choices.len());
        for choice in &request.choices {
            let tokens = self.front.with_choice(&request.prompt, &prompt, choice)?;
            // Tokenised together, a choice may melt into the prompt's last token; at least
            // one token is the choice's, and something stands before it.
            let first = prompt.len().min(tokens.len() - 1).max(1);
            let logprobs = self.log_likelihoods(&tokens, first, cancelled, &mut clock)?;
            rows.push(ChoiceLikelihood {
                logprob: logprobs.iter().sum(),
                tokens: logprobs.len() as u32,
                bytes: choice.len() as u32,
                prompt_tokens: prompt.len() as u32,
                busy: Duration::ZERO,
            });
        }
        for row in &mut rows {
            row.busy = clock.busy;
        }
        Ok(rows)
    }

    /// Perplexity of a text in windows of `context` tokens, by llama.cpp's definition:
    /// windows do not overlap, an incomplete one at the end is dropped, BOS takes the place
    /// of each window's first token where the model adds BOS, and the positions from
    /// `context / 2` to `context − 2` are scored on the token after them.
    ///
    /// `progress` hears how many windows are done, and of how many.
    pub fn perplexity(
        &mut self,
        text: &str,
        context: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Perplexity, EngineError> {
        if context < 4 || context > self.front.context as usize {
            return Err(EngineError::InvalidRequest(format!(
                "a window has 4 to {} tokens, not {context}",
                self.front.context
            )));
        }
        let tokenizer = &self.front.tokenizer;
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let tokens = self.front.encode(text, true)?;
        let windows = tokens.len() / context;
        if windows == 0 {
            return Err(EngineError::InvalidRequest(format!(
                "the text has {} tokens, fewer than one window of {context}",
                tokens.len()
            )));
        }
        let mut clock = Clock::default();
        let (mut nll, mut count) = (0.0, 0);
        for (done, window) in tokens.chunks_exact(context).enumerate() {
            progress(done, windows);
            let mut window = window.to_vec();
            if let Some(bos) = bos {
                window[0] = bos;
            }
            let first = context / 2 + 1;
            let logprobs = self.log_likelihoods(&window, first, &|| false, &mut clock)?;
            nll -= logprobs.iter().sum::<f64>();
            count += logprobs.len() as u64;
        }
        progress(windows, windows);
        if !nll.is_finite() {
            return Err(EngineError::Fault(
                "the weights give values that are no numbers".to_owned(),
            ));
        }
        Ok(Perplexity {
            tokens: count,
            nll,
            ppl: (nll / count as f64).exp(),
            context,
        })
    }

    /// Natural log-probability of each of `tokens` from index `first` on, given all before it.
    ///
    /// # Errors
    /// If nothing stands before `first`, or there are more tokens than the context holds.
    pub fn likelihoods(&mut self, tokens: &[u32], first: usize) -> Result<Vec<f64>, EngineError> {
        if first == 0 || first >= tokens.len() {
            return Err(EngineError::InvalidRequest(format!(
                "of {} tokens, those from 1 on have a likelihood, not those from {first} on",
                tokens.len()
            )));
        }
        self.log_likelihoods(tokens, first, &|| false, &mut Clock::default())
    }

    /// The `count` most likely tokens after each position of `tokens` from `first` on, the
    /// likeliest first, with natural log-probabilities. Of equals the lower id comes first.
    ///
    /// # Errors
    /// If `tokens` are none, or more than the context holds.
    pub fn candidates(
        &mut self,
        tokens: &[u32],
        first: usize,
        count: usize,
    ) -> Result<Vec<Vec<(u32, f64)>>, EngineError> {
        if first >= tokens.len() {
            return Err(EngineError::InvalidRequest(format!(
                "there is no position {first} among {} tokens",
                tokens.len()
            )));
        }
        let vocab = self.runner.vocab();
        let mut all = Vec::with_capacity(tokens.len() - first);
        let clock = &mut Clock::default();
        self.run(tokens, first, &|| false, clock, &mut |_, logits| {
            all.extend(logits.chunks_exact(vocab).map(|row| best(row, count)));
        })?;
        Ok(all)
    }

    /// Natural log-probability of each token from index `first` (at least 1) on, given all before it.
    fn log_likelihoods(
        &mut self,
        tokens: &[u32],
        first: usize,
        cancelled: &dyn Fn() -> bool,
        clock: &mut Clock,
    ) -> Result<Vec<f64>, EngineError> {
        let vocab = self.runner.vocab();
        let device = Arc::clone(&self.device);
        let mut all = Vec::with_capacity(tokens.len() - first);
        // The logits of the last token answer no question here.
        let asked = &tokens[..tokens.len() - 1];
        self.run(
            asked,
            first - 1,
            cancelled,
            clock,
            &mut |position, logits| {
                let rows = logits.len() / vocab;
                let targets = &tokens[position + 1..position + 1 + rows];
                all.extend(log_likelihoods(device.pool(), logits, vocab, targets));
            },
        )?;
        Ok(all)
    }

    /// Makes the cache hold `tokens` and shows `visit` the logits of every position from
    /// `wanted` on, some rows at a time: the first row's position, and the rows. Gives the
    /// number of tokens that the cache spared.
    pub(crate) fn run(
        &mut self,
        tokens: &[u32],
        wanted: usize,
        cancelled: &dyn Fn() -> bool,
        clock: &mut Clock,
        visit: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<usize, EngineError> {
        // Some 16 MB at the largest vocabulary, and rows enough for every thread.
        const ROWS: usize = 16;
        if tokens.len() > self.front.context as usize {
            return Err(EngineError::ContextExceeded {
                prompt_tokens: tokens.len() as u32,
                context_tokens: self.front.context,
            });
        }
        let common = self
            .sequence
            .iter()
            .zip(tokens)
            .take_while(|(a, b)| a == b)
            .count();
        // Where layers with a window have dropped what is seen from there, everything is
        // computed again: the same numbers, later.
        let cached = match common.min(wanted) {
            at if self.runner.resumes_at(at) => at,
            _ => 0,
        };
        if cached == 0 && self.runner.positions() > 4 * tokens.len() + 1024 {
            // A short sequence does not hold what a long one before it needed.
            self.runner.clear();
        }
        self.sequence.truncate(cached);
        let mut start = cached;
        while start < tokens.len() {
            if cancelled() {
                return Err(EngineError::Cancelled);
            }
            let chunk = &tokens[start..self.runner.piece(start, wanted, tokens.len())];
            let turn = self.device.turn();
            let began = Instant::now();
            let end = start + chunk.len();
            let mut row = wanted.clamp(start, end);
            self.runner.forward(chunk, start, row - start)?;
            self.sequence.extend_from_slice(chunk);
            while row < end {
                let rows = row - start..(row + ROWS).min(end) - start;
                visit(row, self.runner.logits(rows)?);
                row += ROWS;
            }
            clock.busy += began.elapsed();
            drop(turn);
            start = end;
        }
        Ok(cached)
    }

    pub(crate) fn front(&self) -> &Arc<Front> {
        &self.front
    }
}

/// Adds up the time inside turns.
#[derive(Default)]
pub(crate) struct Clock {
    pub busy: Duration,
}

impl Front {
    /// Refuses a request whose values make no sense, before anything is computed.
    pub fn check(&self, request: &GenerateRequest) -> Result<(), EngineError> {
        if request.max_tokens == Some(0) {
            return Err(EngineError::InvalidRequest(
                "max_tokens is 0; ask for at least 1 token".to_owned(),
            ));
        }
        Output::new(&self.tokenizer, &request.stop, request.logprobs)?;
        self.sampler(request).map(drop)
    }

    fn sampler(&self, request: &GenerateRequest) -> Result<Sampler, EngineError> {
        Sampler::new(&request.sampling)
            .map_err(|error| EngineError::InvalidRequest(error.to_string()))
    }

    /// The tokens of a prompt; at least one, and with room for one more in the context.
    ///
    /// A chat goes through the template, where only the template's own text may become
    /// control tokens. Other text never does.
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, EngineError> {
        let tokens = match (prompt, &self.template) {
            (Prompt::Text(text), _) => self.encode(text, true)?,
            (Prompt::Chat(_), None) => self.encode(&prompt.text(), true)?,
            (Prompt::Chat(messages), Some(template)) => template
                .encode(&self.tokenizer, messages, true)
                .map_err(refused)?,
        };
        if tokens.is_empty() {
            return Err(EngineError::InvalidRequest(
                "the prompt is empty".to_owned(),
            ));
        }
        if tokens.len() >= self.context as usize {
            return Err(EngineError::ContextExceeded {
                prompt_tokens: tokens.len() as u32,
                context_tokens: self.context,
            });
        }
        Ok(tokens)
    }

    /// The tokens of a prompt with one choice after it. `prompt_tokens` are the prompt's own.
    fn with_choice(
        &self,
        prompt: &Prompt,
        prompt_tokens: &[u32],
        choice: &str,
    ) -> Result<Vec<u32>, EngineError> {
        if choice.is_empty() {
            return Err(EngineError::InvalidRequest(
                "a choice is empty; there is nothing to compare".to_owned(),
            ));
        }
        let tokens = match (prompt, &self.template) {
            // Behind a template the choice begins a message, so nothing melts into it.
            (Prompt::Chat(_), Some(_)) => {
                [prompt_tokens, self.encode(choice, false)?.as_slice()].concat()
            }
            _ => self.encode(&(prompt.text() + choice), true)?,
        };
        match tokens.len() {
            0 | 1 => Err(EngineError::InvalidRequest(
                "the prompt is empty; a choice needs something before it".to_owned(),
            )),
            _ => Ok(tokens),
        }
    }

    fn encode(&self, text: &str, bos: bool) -> Result<Vec<u32>, EngineError> {
        let options = Encode {
            add_bos: bos && self.tokenizer.adds_bos(),
            parse_special: false,
        };
        self.tokenizer
            .encode(text, options)
            .map_err(EngineError::Tokenizer)
    }
}

/// An empty conversation is the request's fault; what a template refuses, another model's
/// template may take.
fn refused(error: TemplateError) -> EngineError {
    match error {
        TemplateError::Empty => {
            EngineError::InvalidRequest("the conversation has no message".to_owned())
        }
        error => EngineError::Template(error),
    }
}

/// A file's tokenizer, and the template of its chats.
fn words(
    file: &ModelFile,
    info: &ModelInfo,
) -> Result<(Tokenizer, Option<ChatTemplate>), LoadErrorKind> {
    let metadata = file.metadata();
    let tokenizer = Tokenizer::from_gguf(metadata).map_err(LoadErrorKind::Tokenizer)?;
    if tokenizer.vocab_size() > info.vocab as usize {
        return Err(LoadErrorKind::Malformed(format!(
            "it has {} tokens and embeddings for {}",
            tokenizer.vocab_size(),
            info.vocab
        )));
    }
    let template = match ChatTemplate::from_gguf(metadata).map_err(LoadErrorKind::Template)? {
        None if info.instruct => {
            Some(ChatTemplate::chatml(metadata).map_err(LoadErrorKind::Template)?)
        }
        template => template,
    };
    Ok((tokenizer, template))
}

/// Refuses a model that would not fit, with the figures.
fn check_memory(
    file: &ModelFile,
    plan: &Plan,
    context: u32,
    options: &EngineOptions,
) -> Result<(), LoadErrorKind> {
    // The cache grows as it is used, so only what an ordinary conversation takes is asked
    // for here.
    let weights = plan.weight_bytes(file);
    let counted = context.min(2048);
    let working = 64 << 20;
    let cache = plan.cache_bytes(options.kv_type, counted as usize);
    let needed = cache.saturating_add(weights + working);
    let free = [memory::available(), options.memory_limit]
        .into_iter()
        .flatten()
        .min();
    match free {
        Some(available) if available < needed => Err(LoadErrorKind::Memory {
            needed,
            weights,
            context: counted,
            available,
        }),
        _ => Ok(()),
    }
}
