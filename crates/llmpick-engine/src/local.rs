//! A local model as an arm: [`LocalModel`] is the handle, one thread owns the model.
//!
//! The thread starts with the first request and takes jobs in order. What needs no weights
//! (checking a request, counting its tokens) happens in the caller's task, so a prompt that
//! is too long is refused at once even when the queue is long. A client that goes away
//! closes its channel, which the thread looks at before each token and each piece of a
//! prompt; a job whose client left while it waited costs nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use llmpick_core::{
    Arm, ArmState, Backend, BackendError, BoxFuture, ChoiceLikelihood, ChoicesRequest, Event,
    EventStream, GenerateRequest,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc as channel, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::error::{EngineError, LoadError};
use crate::model::{EngineOptions, Front, Model};
use crate::tokens::Tokenizer;

/// Requests that may wait for one model; more are refused rather than kept for minutes.
const QUEUE: u32 = 64;

/// After a failed load the arm counts as unavailable for so long, then is tried again.
const PAUSE: Duration = Duration::from_secs(30);

/// A model file as an arm. Cheap to make: nothing is read before the first request.
pub struct LocalModel {
    arm: Arm,
    path: PathBuf,
    options: EngineOptions,
    shared: Arc<Shared>,
    /// The worker's inbox, once it runs.
    worker: Mutex<Option<mpsc::Sender<Command>>>,
}

/// What the handle and the worker both see.
#[derive(Default)]
struct Shared {
    /// There while the model is loaded.
    front: Mutex<Option<Arc<Front>>>,
    /// Jobs running or queued.
    inflight: AtomicU32,
    resident: AtomicU64,
    /// The last load's failure, until another load succeeds.
    failure: Mutex<Option<(Instant, String)>>,
}

enum Command {
    /// Make sure that the model is loaded; answers with what can be asked of it, and how
    /// long this load took (zero if it was loaded).
    Load(oneshot::Sender<Result<(Arc<Front>, Duration), LoadError>>),
    Generate(Generate),
    Choices(Choices),
    Unload(oneshot::Sender<()>),
}

struct Generate {
    ticket: Ticket,
    tokens: Vec<u32>,
    request: GenerateRequest,
    load: Duration,
    events: channel::UnboundedSender<Result<Event, BackendError>>,
}

struct Choices {
    ticket: Ticket,
    request: ChoicesRequest,
    reply: oneshot::Sender<Result<Vec<ChoiceLikelihood>, EngineError>>,
}

/// A place in the queue, given back when the job is over, however it ends.
struct Ticket(Arc<Shared>);

impl Ticket {
    fn take(shared: &Arc<Shared>) -> Result<Ticket, BackendError> {
        let waiting = shared.inflight.fetch_add(1, SeqCst);
        let ticket = Ticket(Arc::clone(shared));
        match waiting {
            0..=QUEUE => Ok(ticket),
            _ => Err(BackendError::Busy { waiting: QUEUE }),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.inflight.fetch_sub(1, SeqCst);
    }
}

impl LocalModel {
    /// An arm over the model at `path`: a GGUF file, or a folder of safetensors.
    pub fn new(arm: Arm, path: PathBuf, options: EngineOptions) -> Self {
        Self {
            arm,
            path,
            options,
            shared: Arc::default(),
            worker: Mutex::new(None),
        }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Drops the weights once the requests already queued are done; the next request loads
    /// them again. True if there was a model to drop.
    pub async fn unload(&self) -> bool {
        let sender = self.worker.lock().clone();
        let Some(sender) = sender else { return false };
        let loaded = self.shared.front.lock().is_some();
        let (reply, done) = oneshot::channel();
        sender.send(Command::Unload(reply)).is_ok() && done.await.is_ok() && loaded
    }

    /// The model's tokenizer, loading the model if need be.
    pub async fn tokenizer(&self) -> Result<Tokenizer, BackendError> {
        let (front, _) = self.front().await?;
        Ok(front.tokenizer.clone())
    }

    /// What can be asked of the loaded model, and how long loading took just now.
    async fn front(&self) -> Result<(Arc<Front>, Duration), BackendError> {
        let loaded = self.shared.front.lock().clone();
        if let Some(front) = loaded {
            return Ok((front, Duration::ZERO));
        }
        let (reply, loaded) = oneshot::channel();
        self.send(Command::Load(reply))?;
        match loaded.await {
            Ok(Ok(loaded)) => Ok(loaded),
            Ok(Err(error)) => Err(BackendError::Load(Box::new(error))),
            Err(_) => Err(gone()),
        }
    }

    /// Hands a command to the worker, starting it if it does not run.
    fn send(&self, command: Command) -> Result<(), BackendError> {
        let mut worker = self.worker.lock();
        let command = match worker.as_ref() {
            None => command,
            Some(sender) => match sender.send(command) {
                Ok(()) => return Ok(()),
                // It has ended; only a failure outside of any job can have done that.
                Err(mpsc::SendError(command)) => command,
            },
        };
        let (sender, inbox) = mpsc::channel();
        let state = Worker {
            path: self.path.clone(),
            options: self.options.clone(),
            shared: Arc::clone(&self.shared),
            model: None,
        };
        std::thread::Builder::new()
            .name(format!("llmpick-{}", self.arm.id))
            .spawn(move || state.run(&inbox))
            .map_err(|error| BackendError::Internal(Box::new(error)))?;
        sender.send(command).map_err(|_| gone())?;
        *worker = Some(sender);
        Ok(())
    }
}

/// The worker dropped a job without an answer.
fn gone() -> BackendError {
    BackendError::Internal(Box::new(EngineError::Fault(
        "the model's thread has ended".to_owned(),
    )))
}

impl Backend for LocalModel {
    fn arm(&self) -> &Arm {
        &self.arm
    }

    fn state(&self) -> ArmState {
        let failure = self.shared.failure.lock().clone();
        ArmState {
            warm: self.shared.front.lock().is_some(),
            unavailable: failure
                .filter(|(at, _)| at.elapsed() < PAUSE)
                .map(|(_, reason)| reason),
            inflight: self.shared.inflight.load(SeqCst),
            resident_bytes: self.shared.resident.load(SeqCst),
        }
    }

    fn warm_up(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async { self.front().await.map(drop) })
    }

    fn generate(
        &self,
        request: GenerateRequest,
    ) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        Box::pin(async move {
            let ticket = Ticket::take(&self.shared)?;
            let (front, load) = self.front().await?;
            let (request, tokens) = off_the_runtime(move || {
                front.check(&request)?;
                let tokens = front.prompt_tokens(&request.prompt)?;
                Ok((request, tokens))
            })
            .await?;
            let (events, stream) = channel::unbounded_channel();
            self.send(Command::Generate(Generate {
                ticket,
                tokens,
                request,
                load,
                events,
            }))?;
            Ok(Box::pin(UnboundedReceiverStream::new(stream)) as EventStream)
        })
    }

    fn choices(
        &self,
        request: ChoicesRequest,
    ) -> BoxFuture<'_, Result<Vec<ChoiceLikelihood>, BackendError>> {
        Box::pin(async move {
            let ticket = Ticket::take(&self.shared)?;
            self.front().await?;
            let (reply, answer) = oneshot::channel();
            self.send(Command::Choices(Choices {
                ticket,
                request,
                reply,
            }))?;
            answer
                .await
                .map_err(|_| gone())?
                .map_err(BackendError::from)
        })
    }
}

/// Tokenising a book takes longer than an async task may block.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, BackendError> {
    match tokio::runtime::Handle::try_current() {
        Err(_) => work(),
        Ok(runtime) => runtime
            .spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(EngineError::Fault(error.to_string()))),
    }
    .map_err(BackendError::from)
}

/// The thread's state.
struct Worker {
    path: PathBuf,
    options: EngineOptions,
    shared: Arc<Shared>,
    model: Option<Model>,
}

impl Worker {
    /// Works until the handle is gone.
    fn run(mut self, inbox: &mpsc::Receiver<Command>) {
        while let Ok(command) = inbox.recv() {
            // A fault costs the request it came with and, since nobody knows what state
            // it left behind, the loaded model; never the thread.
            let done = catch_unwind(AssertUnwindSafe(|| self.handle(command)));
            if done.is_err() {
                tracing::error!(path = %self.path.display(), "a request made the engine panic; model dropped");
                self.drop_model();
            }
        }
        self.drop_model();
    }

    fn handle(&mut self, command: Command) {
        match command {
            // A receiver that is gone needs no answer: its caller left.
            Command::Load(reply) => drop(reply.send(self.load())),
            Command::Generate(job) => self.generate(job),
            Command::Choices(job) => self.choices(job),
            Command::Unload(reply) => {
                self.drop_model();
                // Who asked may have left; the memory is free either way.
                let _ = reply.send(());
            }
        }
    }

    fn load(&mut self) -> Result<(Arc<Front>, Duration), LoadError> {
        if let Some(model) = &self.model {
            return Ok((Arc::clone(model.front()), Duration::ZERO));
        }
        match Model::open(&self.path, &self.options) {
            Ok(model) => {
                let loaded = (Arc::clone(model.front()), model.load_time());
                tracing::info!(path = %self.path.display(), run_by = ?model.info().run_by, device = model.device(), seconds = loaded.1.as_secs_f64(), "model loaded");
                self.model = Some(model);
                *self.shared.failure.lock() = None;
                *self.shared.front.lock() = Some(Arc::clone(&loaded.0));
                self.note_memory();
                Ok(loaded)
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), error = %error.kind, "model not loaded");
                *self.shared.failure.lock() = Some((Instant::now(), error.kind.to_string()));
                Err(error)
            }
        }
    }

    fn drop_model(&mut self) {
        *self.shared.front.lock() = None;
        self.model = None;
        self.shared.resident.store(0, SeqCst);
    }

    fn note_memory(&self) {
        let resident = self.model.as_ref().map_or(0, Model::resident_bytes);
        self.shared.resident.store(resident, SeqCst);
    }

    fn generate(&mut self, job: Generate) {
        let Generate {
            ticket,
            tokens,
            request,
            load,
            events,
        } = job;
        let result = self.generate_now(tokens, &request, load, &events);
        self.note_memory();
        // The place in the queue is free before the client hears the end, so that a client
        // that asks again at once finds it free.
        drop(ticket);
        if !matches!(result, Err(EngineError::Cancelled)) {
            // A client that left does not hear it.
            drop(events.send(result.map_err(BackendError::from)));
        }
    }

    fn generate_now(
        &mut self,
        tokens: Vec<u32>,
        request: &GenerateRequest,
        load: Duration,
        events: &channel::UnboundedSender<Result<Event, BackendError>>,
    ) -> Result<Event, EngineError> {
        let cancelled = || events.is_closed();
        if cancelled() {
            return Err(EngineError::Cancelled);
        }
        // The model may have been unloaded since the tokens were counted.
        let (_, again) = self.load()?;
        let model = self.model.as_mut().ok_or_else(no_model)?;
        let mut emit = |piece| drop(events.send(Ok(Event::Token(piece))));
        let mut finish = model.generate_tokens(tokens, request, &cancelled, &mut emit)?;
        finish.load = load + again;
        Ok(Event::Finish(finish))
    }

    fn choices(&mut self, job: Choices) {
        let Choices {
            ticket,
            request,
            reply,
        } = job;
        let result = self.choices_now(&request, &|| reply.is_closed());
        self.note_memory();
        drop(ticket);
        drop(reply.send(result));
    }

    fn choices_now(
        &mut self,
        request: &ChoicesRequest,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<ChoiceLikelihood>, EngineError> {
        if cancelled() {
            return Err(EngineError::Cancelled);
        }
        self.load()?;
        let model = self.model.as_mut().ok_or_else(no_model)?;
        model.choices(request, cancelled)
    }
}

fn no_model() -> EngineError {
    EngineError::Fault("the model was loaded and is not there".to_owned())
}
