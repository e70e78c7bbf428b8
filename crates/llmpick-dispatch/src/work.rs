//! How an arm is made to work: by its backend, streaming to a client, or by the caller.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use llmpick_core::{
    ArmId, Backend, BackendError, Decision, Event, EventStream, Finish, FinishReason,
    GenerateRequest, RouteId, TokenPiece,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::open::Meter;
use crate::{Clock, DispatchError, Measured, RouteEvent};

/// Who works. Its futures stop where they are when they are dropped.
pub(crate) trait Work {
    /// Whether the clock tells how long the work took. A caller who looks results up knows
    /// better.
    const REAL_TIME: bool;

    /// Says that an arm starts.
    async fn chosen(&mut self, route: RouteId, arm: &ArmId, decision: &Decision);

    /// Makes one arm work to its end. `live`: content goes to the client as it comes.
    async fn attempt(&mut self, backend: &Arc<dyn Backend>, live: bool, meter: &Meter) -> Ended;

    /// Gives the client an answer that was held back. False when the client is gone.
    async fn release(&mut self, answer: &Answer) -> bool;

    /// True when the time for the request is over.
    fn is_late(&self) -> bool;
}

/// How an attempt ended.
pub(crate) enum Ended {
    Answered(Answer),
    Failed {
        error: BackendError,
        /// Content has reached the client: nobody else can take over.
        committed: bool,
    },
    /// The client went away.
    Cancelled,
}

/// A complete answer.
pub(crate) struct Answer {
    pub(crate) measured: Measured,
    pub(crate) reason: FinishReason,
    /// As it came, for release.
    pub(crate) pieces: Vec<TokenPiece>,
}

/// Pumps a backend's stream to a client.
pub(crate) struct Streaming {
    pub(crate) request: GenerateRequest,
    pub(crate) events: mpsc::Sender<Result<RouteEvent, DispatchError>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limit: Option<Duration>,
    pub(crate) deadline: Option<Instant>,
}

impl Work for Streaming {
    const REAL_TIME: bool = true;

    async fn chosen(&mut self, route: RouteId, arm: &ArmId, decision: &Decision) {
        let event = RouteEvent::Chosen {
            route_id: route,
            arm: arm.clone(),
            decision: decision.clone(),
        };
        // A client that is gone is noticed by the attempt that follows.
        let _ = self.events.send(Ok(event)).await;
    }

    async fn attempt(&mut self, backend: &Arc<dyn Backend>, live: bool, meter: &Meter) -> Ended {
        let mut committed = false;
        let pump = pump(
            backend,
            &self.request,
            &self.clock,
            live.then_some(&self.events),
            &mut committed,
            meter,
        );
        let ended = tokio::select! {
            biased;
            () = self.events.closed() => None,
            ended = within(self.deadline, pump) => Some(ended),
        };
        let limit = self.limit.unwrap_or_default();
        match ended {
            None => Ended::Cancelled,
            Some(Some(Err(_))) if self.events.is_closed() => Ended::Cancelled,
            Some(Some(Ok(answer))) => Ended::Answered(answer),
            Some(Some(Err(error))) => Ended::Failed { error, committed },
            Some(None) => Ended::Failed {
                error: BackendError::Timeout(limit),
                committed,
            },
        }
    }

    async fn release(&mut self, answer: &Answer) -> bool {
        for piece in &answer.pieces {
            let event = RouteEvent::Token(piece.clone());
            if self.events.send(Ok(event)).await.is_err() {
                return false;
            }
        }
        true
    }

    fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// Runs a backend to its end, passing content on to `live` if it is given.
pub(crate) async fn pump(
    backend: &Arc<dyn Backend>,
    request: &GenerateRequest,
    clock: &Arc<dyn Clock>,
    live: Option<&mpsc::Sender<Result<RouteEvent, DispatchError>>>,
    committed: &mut bool,
    meter: &Meter,
) -> Result<Answer, BackendError> {
    let started = clock.monotonic();
    let mut stream: EventStream = backend.generate(request.clone()).await?;
    let mut pieces = Vec::new();
    // Pieces without text (a token that completes no character) wait for the next text: the
    // first content is what commits.
    let mut silent: VecDeque<TokenPiece> = VecDeque::new();
    while let Some(event) = stream.next().await {
        let piece = match event? {
            Event::Finish(finish) => {
                let latency = clock.monotonic().saturating_sub(started);
                pieces.extend(silent);
                return Ok(answer(pieces, finish, latency, meter.lock().ttft));
            }
            Event::Token(piece) => piece,
        };
        count(meter, &piece, clock.monotonic().saturating_sub(started));
        if piece.text.is_empty() {
            silent.push_back(piece);
            continue;
        }
        for piece in silent.drain(..).chain([piece]) {
            if let Some(live) = live {
                *committed = true;
                let sent = live.send(Ok(RouteEvent::Token(piece.clone()))).await;
                sent.map_err(|_| BackendError::Internal("the client is gone".into()))?;
            }
            pieces.push(piece);
        }
    }
    Err(BackendError::Internal(
        "the stream ended without saying how".into(),
    ))
}

/// Takes a piece that came `elapsed` after the start into account.
fn count(meter: &Meter, piece: &TokenPiece, elapsed: Duration) {
    let mut progress = meter.lock();
    progress.completion_tokens += u32::try_from(piece.logprobs.len()).unwrap_or(1).max(1);
    if !piece.text.is_empty() && progress.ttft.is_none() {
        progress.ttft = Some(elapsed);
    }
}

fn answer(
    pieces: Vec<TokenPiece>,
    finish: Finish,
    latency: Duration,
    ttft: Option<Duration>,
) -> Answer {
    Answer {
        measured: Measured {
            text: pieces.iter().map(|piece| piece.text.as_str()).collect(),
            usage: finish.usage,
            busy: finish.busy,
            prefill: finish.prefill,
            load: finish.load,
            latency,
            ttft,
            logprobs: pieces
                .iter()
                .flat_map(|piece| piece.logprobs.iter().copied())
                .collect(),
            score: None,
        },
        reason: finish.reason,
        pieces,
    }
}

/// Lets the caller do an arm's work.
pub(crate) struct Called<F> {
    pub(crate) work: F,
    pub(crate) limit: Option<Duration>,
    pub(crate) deadline: Option<Instant>,
}

impl<F, Fut> Work for Called<F>
where
    F: Fn(ArmId) -> Fut,
    Fut: Future<Output = Result<Measured, BackendError>>,
{
    const REAL_TIME: bool = false;

    async fn chosen(&mut self, _route: RouteId, _arm: &ArmId, _decision: &Decision) {}

    async fn attempt(&mut self, backend: &Arc<dyn Backend>, _live: bool, _meter: &Meter) -> Ended {
        let work = (self.work)(backend.arm().id.clone());
        let failed = |error| Ended::Failed {
            error,
            committed: false,
        };
        match within(self.deadline, work).await {
            Some(Ok(measured)) => Ended::Answered(Answer {
                measured,
                reason: FinishReason::Stop,
                pieces: Vec::new(),
            }),
            Some(Err(error)) => failed(error),
            None => failed(BackendError::Timeout(self.limit.unwrap_or_default())),
        }
    }

    async fn release(&mut self, _answer: &Answer) -> bool {
        true
    }

    fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// `None` when the deadline came first.
pub(crate) async fn within<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = T>,
) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}
