//! A backend that answers what a test tells it to.
//!
//! A token is a word with the space before it, so a test can count in its head. Delays go
//! through tokio's clock, so a test that pauses it waits for nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream;
use llmpick_core::{
    Arm, ArmId, ArmState, Backend, BackendError, BoxFuture, ChoiceLikelihood, ChoicesRequest,
    Event, EventStream, Finish, FinishReason, GenerateRequest, Locality, Price, TokenPiece, Usage,
};

type MakeError = Arc<dyn Fn() -> BackendError + Send + Sync>;
type Reply = Box<dyn Fn(&GenerateRequest) -> Answer + Send + Sync>;

/// One scripted answer.
#[derive(Clone)]
pub struct Answer {
    text: String,
    refusal: Option<MakeError>,
    broken: Option<(usize, Ending)>,
    first_delay: Duration,
    token_delay: Duration,
    busy: Duration,
    logprob: f32,
}

#[derive(Clone)]
enum Ending {
    Error(MakeError),
    Hang,
    Cut,
}

impl Answer {
    /// Says `text`, at once, in one token per word; each token takes 10 ms of device time.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            refusal: None,
            broken: None,
            first_delay: Duration::ZERO,
            token_delay: Duration::ZERO,
            busy: Duration::from_millis(10),
            logprob: -0.1,
        }
    }

    /// Refuses before the first token.
    pub fn refusal(error: impl Fn() -> BackendError + Send + Sync + 'static) -> Self {
        Self {
            refusal: Some(Arc::new(error)),
            ..Self::text("")
        }
    }

    /// Fails after `tokens` tokens.
    pub fn failing_after(
        self,
        tokens: usize,
        error: impl Fn() -> BackendError + Send + Sync + 'static,
    ) -> Self {
        self.ending(tokens, Ending::Error(Arc::new(error)))
    }

    /// Sends `tokens` tokens and then nothing, for ever.
    pub fn hanging_after(self, tokens: usize) -> Self {
        self.ending(tokens, Ending::Hang)
    }

    /// Breaks the contract: the stream ends after `tokens` tokens without a finish.
    pub fn cut_after(self, tokens: usize) -> Self {
        self.ending(tokens, Ending::Cut)
    }

    fn ending(self, tokens: usize, ending: Ending) -> Self {
        Self {
            broken: Some((tokens, ending)),
            ..self
        }
    }

    /// Waits before the first token, and before every later one.
    pub fn delays(self, first: Duration, token: Duration) -> Self {
        Self {
            first_delay: first,
            token_delay: token,
            ..self
        }
    }

    /// Device time that each token is said to have taken.
    pub fn busy_per_token(self, busy: Duration) -> Self {
        Self { busy, ..self }
    }

    /// Natural log-probability that each token is said to have had.
    pub fn logprob(self, logprob: f32) -> Self {
        Self { logprob, ..self }
    }
}

/// An arm with a script. What was asked of it can be read back.
pub struct FakeBackend {
    arm: Arm,
    load: Duration,
    script: Mutex<VecDeque<Answer>>,
    reply: Reply,
    shared: Arc<Shared>,
    unavailable: Mutex<Option<String>>,
    calls: Mutex<Vec<GenerateRequest>>,
}

#[derive(Default)]
struct Shared {
    warm: AtomicBool,
    inflight: AtomicU32,
    cancelled: AtomicU32,
    finished: AtomicU32,
}

impl FakeBackend {
    /// A warm local arm with 4096 tokens of context, at 0.36 dollars an hour, that answers
    /// with `answer` every time.
    ///
    /// # Panics
    /// If `id` is no arm name.
    pub fn new(id: &str, answer: Answer) -> Self {
        Self::replying(id, move |_| answer.clone())
    }

    /// The same, with an answer that depends on the request.
    ///
    /// # Panics
    /// If `id` is no arm name.
    pub fn replying(
        id: &str,
        reply: impl Fn(&GenerateRequest) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let id = match ArmId::new(id) {
            Ok(id) => id,
            Err(error) => panic!("a test named an arm badly: {error}"),
        };
        let shared = Shared::default();
        shared.warm.store(true, Ordering::SeqCst);
        Self {
            arm: Arm {
                id,
                locality: Locality::Local,
                context_tokens: 4096,
                price: Price::PerHour { usd: 0.36 },
            },
            load: Duration::ZERO,
            script: Mutex::default(),
            reply: Box::new(reply),
            shared: Arc::new(shared),
            unavailable: Mutex::default(),
            calls: Mutex::default(),
        }
    }

    /// Answers the next unscripted request with `answer`; call it again for the one after.
    #[must_use]
    pub fn then(self, answer: Answer) -> Self {
        lock(&self.script).push_back(answer);
        self
    }

    /// Gives the arm another price.
    #[must_use]
    pub fn price(mut self, price: Price) -> Self {
        self.arm.price = price;
        self
    }

    /// Gives the arm another context size.
    #[must_use]
    pub fn context_tokens(mut self, tokens: u32) -> Self {
        self.arm.context_tokens = tokens;
        self
    }

    /// Makes it a remote arm.
    #[must_use]
    pub fn remote(mut self) -> Self {
        self.arm.locality = Locality::Remote;
        self
    }

    /// Makes it cold: the first call is said to have spent `load` on loading (and does, on
    /// tokio's clock).
    #[must_use]
    pub fn cold(mut self, load: Duration) -> Self {
        self.load = load;
        self.shared.warm.store(false, Ordering::SeqCst);
        self
    }

    /// Makes the arm unavailable, or available again.
    pub fn set_unavailable(&self, why: Option<&str>) {
        *lock(&self.unavailable) = why.map(str::to_owned);
    }

    /// Every request so far, refused ones included.
    pub fn calls(&self) -> Vec<GenerateRequest> {
        lock(&self.calls).clone()
    }

    /// Streams that were dropped before their end.
    pub fn cancelled(&self) -> u32 {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    /// Streams that were read to their finish.
    pub fn finished(&self) -> u32 {
        self.shared.finished.load(Ordering::SeqCst)
    }

    fn next_answer(&self, request: &GenerateRequest) -> Answer {
        let scripted = lock(&self.script).pop_front();
        scripted.unwrap_or_else(|| (self.reply)(request))
    }

    async fn load(&self) -> Duration {
        if self.shared.warm.swap(true, Ordering::SeqCst) {
            return Duration::ZERO;
        }
        tokio::time::sleep(self.load).await;
        self.load
    }

    /// Prompt tokens, or why the request is refused.
    fn admit(&self, request: &GenerateRequest) -> Result<u32, BackendError> {
        if let Some(why) = lock(&self.unavailable).clone() {
            return Err(BackendError::Load(why.into()));
        }
        if !(0.0..=2.0).contains(&request.sampling.temperature) {
            return Err(BackendError::InvalidRequest(format!(
                "temperature must be from 0 to 2, not {}",
                request.sampling.temperature
            )));
        }
        let prompt_tokens = words(&request.prompt.text()).len() as u32;
        if prompt_tokens >= self.arm.context_tokens {
            return Err(BackendError::ContextExceeded {
                prompt_tokens,
                context_tokens: self.arm.context_tokens,
            });
        }
        Ok(prompt_tokens)
    }
}

impl Backend for FakeBackend {
    fn arm(&self) -> &Arm {
        &self.arm
    }

    fn state(&self) -> ArmState {
        let warm = self.shared.warm.load(Ordering::SeqCst);
        ArmState {
            warm,
            unavailable: lock(&self.unavailable).clone(),
            inflight: self.shared.inflight.load(Ordering::SeqCst),
            resident_bytes: u64::from(warm && self.arm.locality == Locality::Local) << 20,
        }
    }

    fn warm_up(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async {
            if let Some(why) = lock(&self.unavailable).clone() {
                return Err(BackendError::Load(why.into()));
            }
            self.load().await;
            Ok(())
        })
    }

    fn generate(
        &self,
        request: GenerateRequest,
    ) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        lock(&self.calls).push(request.clone());
        Box::pin(async move {
            let prompt_tokens = self.admit(&request)?;
            let answer = self.next_answer(&request);
            if let Some(refusal) = &answer.refusal {
                return Err(refusal());
            }
            let running = Running::start(&self.shared);
            let load = self.load().await;
            let room = self.arm.context_tokens - prompt_tokens;
            let limit = request.max_tokens.unwrap_or(u32::MAX).min(room);
            let (tokens, reason) = shorten(&answer.text, &request.stop, limit as usize);
            let finish = Finish {
                reason,
                usage: Usage {
                    prompt_tokens,
                    cached_tokens: 0,
                    completion_tokens: tokens.len() as u32,
                },
                busy: match self.arm.locality {
                    Locality::Local => answer.busy * (tokens.len() as u32 + 1),
                    Locality::Remote => Duration::ZERO,
                },
                load,
                prefill: match self.arm.locality {
                    Locality::Local => answer.busy,
                    Locality::Remote => Duration::ZERO,
                },
            };
            let generation = Generation {
                tokens: tokens.into(),
                sent: 0,
                logprobs: request.logprobs,
                finish: Some(finish),
                answer,
                running,
            };
            let stream: EventStream = Box::pin(stream::unfold(generation, Generation::step));
            Ok(stream)
        })
    }

    /// The choice that equals the answer's text has log-likelihood 0, any other minus its
    /// length in bytes.
    fn choices(
        &self,
        request: ChoicesRequest,
    ) -> BoxFuture<'_, Result<Vec<ChoiceLikelihood>, BackendError>> {
        let generate = GenerateRequest::new(request.prompt);
        lock(&self.calls).push(generate.clone());
        Box::pin(async move {
            let prompt_tokens = self.admit(&generate)?;
            let answer = self.next_answer(&generate);
            if let Some(refusal) = &answer.refusal {
                return Err(refusal());
            }
            let row = |choice: &String| {
                let right = choice.trim() == answer.text.trim();
                ChoiceLikelihood {
                    logprob: if right { 0.0 } else { -(choice.len() as f64) },
                    tokens: words(choice).len() as u32,
                    bytes: choice.len() as u32,
                    prompt_tokens,
                    busy: answer.busy,
                }
            };
            Ok(request.choices.iter().map(row).collect())
        })
    }
}

/// Counts a stream as running until it is dropped, and as cancelled unless it finished.
struct Running {
    shared: Arc<Shared>,
    finished: bool,
}

impl Running {
    fn start(shared: &Arc<Shared>) -> Self {
        shared.inflight.fetch_add(1, Ordering::SeqCst);
        Self {
            shared: Arc::clone(shared),
            finished: false,
        }
    }

    /// The stream came to its own end; `counted` when with a finish.
    fn end(&mut self, counted: bool) {
        self.finished = true;
        if counted {
            self.shared.finished.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.inflight.fetch_sub(1, Ordering::SeqCst);
        if !self.finished {
            self.shared.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

struct Generation {
    tokens: VecDeque<String>,
    sent: usize,
    logprobs: bool,
    finish: Option<Finish>,
    answer: Answer,
    running: Running,
}

impl Generation {
    async fn step(mut self) -> Option<(Result<Event, BackendError>, Self)> {
        if let Some((after, ending)) = self.answer.broken.clone()
            && self.sent >= after
        {
            return match ending {
                Ending::Hang => std::future::pending().await,
                Ending::Cut => {
                    self.running.end(false);
                    None
                }
                Ending::Error(error) => {
                    self.answer.broken = Some((0, Ending::Cut));
                    self.running.end(false);
                    Some((Err(error()), self))
                }
            };
        }
        let Some(text) = self.tokens.pop_front() else {
            let finish = self.finish.take()?;
            self.running.end(true);
            return Some((Ok(Event::Finish(finish)), self));
        };
        let delay = match self.sent {
            0 => self.answer.first_delay,
            _ => self.answer.token_delay,
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.sent += 1;
        let logprobs = match self.logprobs {
            true => vec![self.answer.logprob],
            false => Vec::new(),
        };
        Some((Ok(Event::Token(TokenPiece { text, logprobs })), self))
    }
}

/// The tokens that are sent: ended before the first stop string and at `limit`.
fn shorten(text: &str, stop: &[String], limit: usize) -> (Vec<String>, FinishReason) {
    let end = stop
        .iter()
        .filter(|stop| !stop.is_empty())
        .filter_map(|stop| text.find(stop.as_str()))
        .min()
        .unwrap_or(text.len());
    let mut tokens = words(&text[..end]);
    let reason = match tokens.len() > limit {
        true => FinishReason::Length,
        false => FinishReason::Stop,
    };
    tokens.truncate(limit);
    (tokens, reason)
}

/// Words, each with the white space before it; white space at the end is a word of its own.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut inside = false;
    for character in text.chars() {
        if character.is_whitespace() && inside {
            words.push(String::new());
        }
        inside = !character.is_whitespace();
        if let Some(last) = words.last_mut() {
            last.push(character);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use llmpick_core::Prompt;

    use super::*;

    fn ask(text: &str) -> GenerateRequest {
        GenerateRequest::new(Prompt::Text(text.to_owned()))
    }

    #[test]
    fn words_keep_every_character() {
        assert_eq!(words("a  bc \n d "), ["a", "  bc", " \n d", " "]);
        assert!(words("").is_empty());
    }

    #[tokio::test]
    async fn a_script_is_followed_and_then_the_rule() {
        let fake = FakeBackend::new("fake", Answer::text("always"))
            .then(Answer::text("once"))
            .then(Answer::refusal(|| BackendError::Busy { waiting: 3 }));
        let mut heard = Vec::new();
        for _ in 0..4 {
            heard.push(match fake.generate(ask("q")).await {
                Err(error) => error.to_string(),
                Ok(stream) => {
                    let events: Vec<_> = stream.collect().await;
                    assert_eq!(events.len(), 2);
                    match &events[0] {
                        Ok(Event::Token(piece)) => piece.text.clone(),
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        let busy = "3 requests wait for this model already";
        assert_eq!(heard, ["once", busy, "always", "always"]);
        assert_eq!((fake.calls().len(), fake.finished()), (4, 3));
    }

    #[tokio::test]
    async fn a_dropped_stream_is_counted_and_frees_its_place() {
        let fake = FakeBackend::new("fake", Answer::text("a b c").hanging_after(1));
        let Ok(mut stream) = fake.generate(ask("q")).await else {
            panic!("refused");
        };
        assert!(matches!(stream.next().await, Some(Ok(Event::Token(_)))));
        let second = tokio::time::timeout(Duration::from_millis(20), stream.next()).await;
        assert!(second.is_err(), "it should hang");
        assert_eq!(fake.state().inflight, 1);
        drop(stream);
        assert_eq!((fake.state().inflight, fake.cancelled()), (0, 1));
    }

    #[tokio::test]
    async fn a_stream_may_fail_or_break_off() {
        let failing = Answer::text("a b c").failing_after(2, || BackendError::Busy { waiting: 1 });
        let fake = FakeBackend::new("fake", Answer::text("a b c").cut_after(1)).then(failing);
        for expected in ["token token error", "token"] {
            let Ok(stream) = fake.generate(ask("q")).await else {
                panic!("refused");
            };
            let kinds: Vec<_> = stream
                .map(|event| match event {
                    Ok(Event::Token(_)) => "token",
                    Ok(Event::Finish(_)) => "finish",
                    Err(_) => "error",
                })
                .collect()
                .await;
            assert_eq!(kinds.join(" "), expected);
        }
        assert_eq!((fake.cancelled(), fake.state().inflight), (0, 0));
    }

    #[tokio::test]
    async fn it_passes_the_suite_that_real_backends_pass() {
        crate::backend_suite(|| FakeBackend::new("fake", Answer::text("one two three four five")))
            .await;
        crate::backend_suite(|| {
            FakeBackend::new("fake", Answer::text("one two three four five")).remote()
        })
        .await;
    }
}
