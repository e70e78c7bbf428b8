//! A dispatch with fake arms and a router whose state shows everything it was told.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use llmpick_core::{
    ArmId, Backend, Decision, DecisionSource, Feedback, GenerateRequest, Mode, Outcome, Prompt,
    Router, RouterError, RouterNeeds, Score, Scorer, ScorerError, SelectRequest, Snapshot,
};
use llmpick_dispatch::{
    Clock, Dispatch, DispatchError, DispatchSettings, Parts, RouteEvent, RouteRequest, RouteStream,
    RouteSummary,
};
use llmpick_ledger::Ledger;
use llmpick_testkit::{FakeBackend, ManualClock};

/// The manual clock, as dispatch reads it.
pub struct StillClock(pub ManualClock);

impl Clock for StillClock {
    fn unix_ms(&self) -> u64 {
        self.0.unix_ms()
    }
    fn monotonic(&self) -> Duration {
        self.0.now()
    }
}

/// What a router does when asked.
#[derive(Clone)]
pub enum Habit {
    /// These arms, in this mode.
    Plan(Vec<u32>, Mode),
    /// No arms, but marginals for a scheduler.
    Share(Vec<f64>),
    /// Needs features: the arm of this number.
    Features,
    /// One eligible arm that depends on seed and state.
    Wander,
    /// Breaks.
    Fault,
    /// Panics.
    Panic,
}

/// A fold over everything a [`Tester`] was told: order matters, every bit matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub told: u64,
    pub digest: u64,
}

/// A router for tests; its state can be read from outside.
pub struct Tester {
    pub habit: Habit,
    pub state: Arc<Mutex<State>>,
}

impl Tester {
    pub fn boxed(habit: Habit) -> (Box<dyn Router>, Arc<Mutex<State>>) {
        let state = Arc::new(Mutex::new(State::default()));
        let router = Self {
            habit,
            state: state.clone(),
        };
        (Box::new(router), state)
    }
}

impl Router for Tester {
    fn name(&self) -> &str {
        "tester"
    }

    fn needs(&self) -> RouterNeeds {
        RouterNeeds {
            prompt: false,
            features: matches!(self.habit, Habit::Features),
        }
    }

    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        let eligible = (0..request.candidates.len())
            .filter(|i| request.candidates[*i].eligible)
            .map(|i| i as u32);
        let mut marginals = Vec::new();
        let (choices, mode) = match &self.habit {
            Habit::Features => {
                let place = request.features.map_or(0.0, |features| features[0]);
                (vec![place as u32], request.allowed_modes[0])
            }
            Habit::Share(shares) => {
                marginals.clone_from(shares);
                (Vec::new(), request.allowed_modes[0])
            }
            Habit::Plan(choices, mode) => (choices.clone(), *mode),
            Habit::Wander => {
                let eligible: Vec<u32> = eligible.collect();
                let state = self.state.lock().unwrap();
                let draw = (request.seed ^ state.digest) % eligible.len() as u64;
                (vec![eligible[draw as usize]], request.allowed_modes[0])
            }
            Habit::Fault => return Err(RouterError::Fault("it is ill".into())),
            Habit::Panic => panic!("on purpose"),
        };
        Ok(Decision {
            choices,
            mode,
            propensity: f64::NAN,
            marginals,
            reason: "habit".into(),
            source: DecisionSource::Router,
        })
    }

    fn feedback(&mut self, feedback: &Feedback) -> Result<(), RouterError> {
        let mut state = self.state.lock().unwrap();
        state.told += 1;
        // FNV-1a over the text of everything in it.
        for byte in format!("{feedback:?}").bytes() {
            state.digest = (state.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        let state = self.state.lock().unwrap();
        let bytes = [state.told.to_le_bytes(), state.digest.to_le_bytes()].concat();
        Ok(Snapshot {
            version: 1,
            state: bytes,
        })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RouterError> {
        let (told, digest) = snapshot
            .state
            .split_first_chunk()
            .and_then(|(told, rest)| Some((told, rest.first_chunk()?)))
            .ok_or_else(|| RouterError::State("too short".into()))?;
        *self.state.lock().unwrap() = State {
            told: u64::from_le_bytes(*told),
            digest: u64::from_le_bytes(*digest),
        };
        Ok(())
    }
}

/// Right or wrong where a reference is given, else how sure the model was.
pub struct TestScorer;

impl Scorer for TestScorer {
    fn name(&self) -> &str {
        "same"
    }

    fn score(&self, outcome: &Outcome) -> Result<Option<Score>, ScorerError> {
        if let Some(reference) = &outcome.reference {
            return Ok(Some(Score::from_correct(outcome.response == *reference)));
        }
        let count = outcome.logprobs.len() as f32;
        let mean = outcome.logprobs.iter().sum::<f32>() / count;
        Ok(Score::new(f64::from(mean.exp())).ok())
    }
}

/// Everything a test may want to set.
pub struct Setup {
    pub ledger: Arc<Ledger>,
    pub arms: Vec<Arc<FakeBackend>>,
    pub habit: Habit,
    pub scorers: Vec<Arc<dyn Scorer>>,
    pub settings: DispatchSettings,
    pub snapshot_dir: Option<PathBuf>,
}

impl Setup {
    pub fn new(arms: Vec<FakeBackend>, habit: Habit) -> Self {
        Self {
            ledger: Arc::new(Ledger::open_in_memory().unwrap()),
            arms: arms.into_iter().map(Arc::new).collect(),
            habit,
            scorers: vec![Arc::new(TestScorer)],
            settings: DispatchSettings {
                base_seed: Some(1),
                ..DispatchSettings::default()
            },
            snapshot_dir: None,
        }
    }

    /// A dispatch, and the state of its router.
    pub fn start(&self) -> (Arc<Dispatch>, Arc<Mutex<State>>) {
        let (router, state) = Tester::boxed(self.habit.clone());
        let arms = self.arms.iter().map(|arm| arm.clone() as Arc<dyn Backend>);
        let dispatch = Dispatch::new(Parts {
            ledger: self.ledger.clone(),
            arms: arms.collect(),
            router,
            scorers: self.scorers.clone(),
            settings: self.settings.clone(),
            snapshot_dir: self.snapshot_dir.clone(),
            clock: Arc::new(StillClock(ManualClock::new())),
        })
        .unwrap();
        (dispatch, state)
    }
}

pub fn request() -> RouteRequest {
    let mut generate = GenerateRequest::new(Prompt::Text("Count: one two".into()));
    generate.max_tokens = Some(10);
    RouteRequest::new(generate)
}

pub fn arm(name: &str) -> ArmId {
    ArmId::new(name).unwrap()
}

/// What a client saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub chosen: Vec<String>,
    pub text: String,
    pub end: Option<Result<RouteSummary, DispatchError>>,
}

impl Seen {
    pub fn summary(self) -> RouteSummary {
        self.end.unwrap().unwrap()
    }

    pub fn error(self) -> DispatchError {
        self.end.unwrap().unwrap_err()
    }
}

pub async fn read(mut stream: RouteStream) -> Seen {
    let mut seen = Seen::default();
    while let Some(event) = stream.next().await {
        assert!(seen.end.is_none(), "nothing comes after the end");
        match event {
            Ok(RouteEvent::Chosen { arm, .. }) => {
                assert!(seen.text.is_empty(), "no arm starts once content came");
                seen.chosen.push(arm.to_string());
            }
            Ok(RouteEvent::Token(piece)) => seen.text += &piece.text,
            Ok(RouteEvent::Finished(summary)) => seen.end = Some(Ok(summary)),
            Err(error) => seen.end = Some(Err(error)),
        }
    }
    seen
}

pub async fn ask(dispatch: &Arc<Dispatch>, request: RouteRequest) -> Seen {
    read(dispatch.run(request).await.unwrap()).await
}
