//! A scheduler on another machine behind [`Scheduler`].
//!
//! Only marginals go there (see [`schedule`](crate::schedule)). In the asynchronous mode they
//! go only once they have moved, or after so many rounds; between, the scheduler draws from
//! those it holds. While it cannot be reached, sets are drawn here.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use llmpick_core::{ArmId, RouteId, Schedule, ScheduleRequest, Scheduler, SchedulerError};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Client, Url};
use serde::Deserialize;
use tokio::runtime::Handle;
use tracing::warn;

use crate::endpoint::{below, reach};
use crate::error::innermost;
use crate::openai::bearer;
use crate::schedule::{
    Marginals, NO_ARM_FREE, PATH, Reason, ScheduleCall, ScheduleReply, UNKNOWN_SESSION, VERSION,
};
use crate::{OpenAiError, Secret};

/// After a failure sets are drawn here for so long, so that not every request waits in vain.
const PAUSE: Duration = Duration::from_secs(2);
/// Streams of marginals kept; beyond, all are begun anew.
const MOST_STREAMS: usize = 1024;

/// How a scheduler is reached, and how often marginals go there.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteSchedulerOptions {
    /// `unix:/path/to/socket`, or `http(s)://host:port`.
    pub address: String,
    /// The key, sent as a Bearer token.
    pub api_key: Option<Secret>,
    /// Marginals go again after so many rounds (the B of the asynchronous mode), at least 1.
    /// With 1 they go every time, which is the synchronous mode.
    pub resend_after: u32,
    /// … or as soon as any of them differs from the held one by more than this.
    pub resend_tolerance: f64,
}

/// Draws sets by asking another machine.
pub struct RemoteScheduler {
    client: Client,
    url: Url,
    authorization: Option<HeaderValue>,
    options: RemoteSchedulerOptions,
    /// Draws while the other is away.
    here: Arc<dyn Scheduler>,
    /// Nobody can guess another client's sessions.
    nonce: u64,
    streams: Mutex<HashMap<String, Arc<Mutex<Stream>>>>,
    begun: Mutex<u64>,
    paused: Mutex<Option<Pause>>,
}

/// The scheduler is let alone for a while.
#[derive(Clone)]
struct Pause {
    until: Instant,
    why: String,
}

/// Marginals that belong together, and what the scheduler holds of them.
struct Stream {
    session: String,
    sequence: u64,
    held: Option<Held>,
}

/// What the scheduler holds.
struct Held {
    marginals: Marginals,
    /// The route they were computed for, and the question that brought them.
    route_id: RouteId,
    sequence: u64,
    /// Sets drawn from them.
    rounds: u32,
}

/// Why a question has no answer.
enum Trouble {
    /// It does not hold what we thought it held.
    Forgot,
    /// It answers, and has no set for us.
    NoSet(String),
    /// It does not answer, or not in our words.
    Away(String),
}

impl RemoteScheduler {
    /// Prepares it; nothing is sent before the first request. `here` draws while the other is
    /// away.
    pub fn new(
        options: RemoteSchedulerOptions,
        here: Arc<dyn Scheduler>,
    ) -> Result<Self, OpenAiError> {
        let (builder, base) = reach(&options.address, "/")?;
        Ok(Self {
            url: below(&options.address, &base, &PATH)?,
            client: builder.build().map_err(OpenAiError::Client)?,
            authorization: options.api_key.as_ref().map(bearer).transpose()?,
            options,
            here,
            nonce: std::hash::RandomState::new().build_hasher().finish(),
            streams: Mutex::default(),
            begun: Mutex::default(),
            paused: Mutex::default(),
        })
    }

    fn stream(&self, name: &str) -> Arc<Mutex<Stream>> {
        let mut streams = lock(&self.streams);
        if let Some(stream) = streams.get(name) {
            return Arc::clone(stream);
        }
        if streams.len() >= MOST_STREAMS {
            streams.clear();
        }
        let mut begun = lock(&self.begun);
        *begun += 1;
        let stream = Arc::new(Mutex::new(Stream {
            // The name of a context stays here: a number stands for it.
            session: format!("{:016x}-{begun}", self.nonce),
            sequence: 0,
            held: None,
        }));
        streams.insert(name.to_owned(), Arc::clone(&stream));
        stream
    }

    /// Asks, sending marginals only where they have to go.
    fn ask(&self, request: &ScheduleRequest<'_>) -> Result<Schedule, Trouble> {
        let deadline = Instant::now() + request.time_budget;
        let stream = self.stream(request.stream);
        // One question at a time for each stream: an answer always belongs to what we think
        // the other side holds.
        let mut stream = lock(&stream);
        let fresh = marginals(request);
        stream.sequence += 1;
        if let Some(held) = self.still_good(&stream, request, &fresh) {
            let call = ScheduleCall::again(&stream.session, stream.sequence);
            match self.post(&call, deadline) {
                Ok(reply) => {
                    // With the seed of that route, this is what it takes to draw it again.
                    let note = format!(
                        "the scheduler drew the set from the marginals of {}, draw {}",
                        held.route_id,
                        stream.sequence - held.sequence
                    );
                    let schedule = understood(&reply, &held.marginals.arms, request, note)?;
                    if let Some(held) = &mut stream.held {
                        held.rounds += 1;
                    }
                    return Ok(schedule);
                }
                // It was started anew, or holds too many: it is told again.
                Err(Trouble::Forgot) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        // Whatever it holds after a failure is not to be relied on.
        stream.held = None;
        let call = ScheduleCall::with(&stream.session, stream.sequence, &fresh);
        let reply = self.post(&call, deadline)?;
        let note = "the scheduler drew the set".to_owned();
        let schedule = understood(&reply, &fresh.arms, request, note)?;
        stream.held = Some(Held {
            marginals: fresh,
            route_id: request.route_id,
            sequence: stream.sequence,
            rounds: 1,
        });
        Ok(schedule)
    }

    /// What is held, if the next set may come from it.
    fn still_good<'a>(
        &self,
        stream: &'a Stream,
        request: &ScheduleRequest<'_>,
        fresh: &Marginals,
    ) -> Option<&'a Held> {
        let held = stream.held.as_ref()?;
        let known = |z: &Marginals, id: &ArmId| {
            let place = z.arms.iter().position(|arm| arm == id);
            place.and_then(|place| z.z.get(place)).copied()
        };
        let near = request.arms.iter().all(|arm| {
            let before = known(&held.marginals, &arm.id).unwrap_or(0.0);
            let now = known(fresh, &arm.id).unwrap_or(0.0);
            (now - before).abs() <= self.options.resend_tolerance && (arm.eligible || before == 0.0)
        });
        let all_here = held
            .marginals
            .arms
            .iter()
            .all(|id| request.arms.iter().any(|arm| arm.id == *id));
        let same = held.marginals.max_arms == fresh.max_arms && held.marginals.mode == fresh.mode;
        let few = held.rounds < self.options.resend_after;
        (near && all_here && same && few).then_some(held)
    }

    fn post(&self, call: &ScheduleCall, deadline: Instant) -> Result<ScheduleReply, Trouble> {
        let left = deadline.saturating_duration_since(Instant::now());
        let runtime =
            Handle::try_current().map_err(|error| Trouble::Away(format!("ask: {error}")))?;
        let mut request = self.client.post(self.url.clone()).json(call).timeout(left);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let (status, body) = runtime
            .block_on(async {
                let response = request.send().await?;
                Ok((response.status(), response.bytes().await?))
            })
            .map_err(|error: reqwest::Error| {
                Trouble::Away(match error.is_timeout() {
                    true => format!("it did not answer within {left:?}"),
                    false => innermost(&error.without_url()),
                })
            })?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| Trouble::Away(format!("its answer is not understood: {error}")));
        }
        Err(refusal(status.as_u16(), &body))
    }

    /// Why the scheduler is not to be asked just now.
    fn paused(&self) -> Option<String> {
        let mut paused = lock(&self.paused);
        match paused.as_ref() {
            Some(pause) if Instant::now() < pause.until => Some(pause.why.clone()),
            _ => {
                *paused = None;
                None
            }
        }
    }
}

impl Scheduler for RemoteScheduler {
    fn schedule(&self, request: &ScheduleRequest<'_>) -> Result<Schedule, SchedulerError> {
        let why = match self.paused() {
            Some(why) => why,
            None => match self.ask(request) {
                Ok(schedule) => return Ok(schedule),
                Err(Trouble::NoSet(why)) => why,
                Err(Trouble::Forgot) => "it does not keep what it is told".to_owned(),
                Err(Trouble::Away(why)) => {
                    let address = &self.options.address;
                    warn!(%address, why, "the scheduler is away, sets are drawn here");
                    *lock(&self.paused) = Some(Pause {
                        until: Instant::now() + PAUSE,
                        why: why.clone(),
                    });
                    why
                }
            },
        };
        let schedule = self.here.schedule(request)?;
        Ok(Schedule {
            note: format!("the set was drawn here, since the scheduler had none: {why}"),
            ..schedule
        })
    }
}

/// Only what may be drawn goes out.
fn marginals(request: &ScheduleRequest<'_>) -> Marginals {
    let open = || request.arms.iter().filter(|arm| arm.marginal > 0.0);
    Marginals {
        seed: request.seed,
        arms: open().map(|arm| arm.id.clone()).collect(),
        z: open().map(|arm| arm.marginal).collect(),
        max_arms: request.max_arms,
        mode: request.mode,
    }
}

/// The reply in the request's own numbers.
fn understood(
    reply: &ScheduleReply,
    arms: &[ArmId],
    request: &ScheduleRequest<'_>,
    note: String,
) -> Result<Schedule, Trouble> {
    let odd = |what: String| Trouble::Away(format!("its answer makes no sense: {what}"));
    if reply.version != VERSION {
        return Err(odd(format!("it has version {}", reply.version)));
    }
    if reply.z.len() != arms.len() || reply.choices.is_empty() {
        return Err(odd(format!(
            "{} marginals for {} arms, {} chosen",
            reply.z.len(),
            arms.len(),
            reply.choices.len()
        )));
    }
    let z = |id: &ArmId| {
        let place = arms.iter().position(|arm| arm == id);
        place.and_then(|place| reply.z.get(place)).copied()
    };
    if let Some(z) = reply.z.iter().find(|z| !(0.0..=1.0).contains(*z)) {
        return Err(odd(format!("{z} is no probability")));
    }
    let place = |id: &ArmId| {
        let place = request.arms.iter().position(|arm| arm.id == *id);
        place
            .filter(|_| z(id).is_some_and(|z| z > 0.0))
            .map(|place| place as u32)
            .ok_or_else(|| odd(format!("it chose `{id}`, which it was not to choose")))
    };
    let away: Vec<String> = reply
        .away
        .iter()
        .map(|away| match away.reason {
            Reason::Full => format!("`{}` is full", away.arm),
            Reason::Down => format!("`{}` is down", away.arm),
        })
        .collect();
    Ok(Schedule {
        choices: reply.choices.iter().map(place).collect::<Result<_, _>>()?,
        marginals: request
            .arms
            .iter()
            .map(|arm| z(&arm.id).unwrap_or(0.0))
            .collect(),
        note: match away.is_empty() {
            true => note,
            false => format!("{note}; {}", away.join(", ")),
        },
    })
}

fn refusal(status: u16, body: &[u8]) -> Trouble {
    #[derive(Deserialize)]
    struct Body {
        error: Said,
    }
    #[derive(Deserialize)]
    struct Said {
        message: String,
        code: Option<String>,
    }
    let Ok(Body { error }) = serde_json::from_slice(body) else {
        return Trouble::Away(format!("it answered {status}"));
    };
    let text: String = error.message.chars().take(300).collect();
    match error.code.as_deref() {
        Some(UNKNOWN_SESSION) => Trouble::Forgot,
        Some(NO_ARM_FREE) => Trouble::NoSet(text),
        _ => Trouble::Away(format!("it answered {status}: {text}")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
