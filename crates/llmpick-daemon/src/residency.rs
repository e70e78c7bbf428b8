//! Several local models on one machine: an arm for each, and one eye on the memory.
//!
//! The engine checks one model against the machine. This adds what only the whole program
//! can know: which other models are in memory, and which of them nobody is using.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use llmpick_core::{
    Arm, ArmId, ArmState, Backend, BackendError, BoxFuture, ChoiceLikelihood, ChoicesRequest,
    EventStream, GenerateRequest,
};
use llmpick_engine::{EngineOptions, LocalModel};
use tokio::sync::MutexGuard;
use tracing::info;

use crate::reload::{Signature, signature};

/// How often an arm whose file is not here looks for it again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Finds an arm's file, or says why it cannot be used; a sentence for people.
pub(crate) type Find = Box<dyn Fn() -> Result<(Arm, PathBuf), String> + Send + Sync>;

/// A local model as an arm, from before its file is here.
pub(crate) struct ResidentArm {
    /// What is said of the arm until its file is found.
    expected: Arm,
    find: Find,
    options: EngineOptions,
    model: OnceLock<LocalModel>,
    /// As its file was when it was found.
    signature: OnceLock<Option<Signature>>,
    /// When the file was last looked for, and why it could not be used.
    missing: Mutex<Option<(Instant, String)>>,
    last_used: Mutex<Instant>,
    residency: Arc<Residency>,
}

/// All local models of the program.
#[derive(Default)]
pub(crate) struct Residency {
    arms: Mutex<Vec<Weak<ResidentArm>>>,
    /// One model makes room and loads at a time, so that two cannot both take the last bytes.
    loading: tokio::sync::Mutex<()>,
    limit: Mutex<Option<u64>>,
}

/// The models together would pass `compute.memory_limit`.
#[derive(Debug, thiserror::Error)]
#[error(
    "it needs about {needed} MB, others that are in use hold {held} MB, and compute.memory_limit \
     is {limit} MB"
)]
struct TooMuch {
    needed: u64,
    held: u64,
    limit: u64,
}

impl Residency {
    pub(crate) fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            limit: Mutex::new(limit),
            ..Self::default()
        })
    }

    /// Another limit, for models that are loaded from now on.
    pub(crate) fn set_limit(&self, limit: Option<u64>) {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
    }

    /// Adds an arm. Its file is looked for once, now.
    pub(crate) fn arm(
        self: &Arc<Self>,
        expected: Arm,
        find: Find,
        options: EngineOptions,
    ) -> Arc<ResidentArm> {
        let arm = Arc::new(ResidentArm {
            expected,
            find,
            options,
            model: OnceLock::new(),
            signature: OnceLock::new(),
            missing: Mutex::new(None),
            last_used: Mutex::new(Instant::now()),
            residency: Arc::clone(self),
        });
        let _ = arm.model();
        if let Ok(mut arms) = self.arms.lock() {
            arms.retain(|arm| arm.strong_count() > 0);
            arms.push(Arc::downgrade(&arm));
        }
        arm
    }

    /// The other arms that hold memory, the longest unused first.
    fn others(&self, than: &ResidentArm) -> Vec<Arc<ResidentArm>> {
        let arms = self
            .arms
            .lock()
            .map(|arms| arms.clone())
            .unwrap_or_default();
        let mut others: Vec<_> = arms
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|arm| !std::ptr::eq(arm.as_ref(), than) && arm.state().resident_bytes > 0)
            .collect();
        others.sort_by_key(|arm| arm.last_used.lock().map(|at| *at).ok());
        others
    }

    /// Unloads models that nobody uses until `needed` bytes are below the limit.
    async fn make_room(&self, arm: &ResidentArm, needed: u64) -> Result<(), BackendError> {
        let limit = *self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(limit) = limit else {
            return Ok(());
        };
        let mut held: u64 = 0;
        let others = self.others(arm);
        for other in &others {
            held += other.state().resident_bytes;
        }
        for other in &others {
            if held.saturating_add(needed) <= limit {
                return Ok(());
            }
            held -= other.evict().await.min(held);
        }
        if held.saturating_add(needed) <= limit {
            return Ok(());
        }
        let megabytes = |bytes: u64| bytes / 1_000_000;
        Err(BackendError::Load(Box::new(TooMuch {
            needed: megabytes(needed),
            held: megabytes(held),
            limit: megabytes(limit),
        })))
    }

    /// Unloads every model that nobody uses; true if there was one.
    async fn evict_idle(&self, than: &ResidentArm) -> bool {
        let mut freed = 0;
        for other in self.others(than) {
            freed += other.evict().await;
        }
        freed > 0
    }
}

impl ResidentArm {
    /// The model, once its file is found.
    fn model(&self) -> Option<&LocalModel> {
        if let Some(model) = self.model.get() {
            return Some(model);
        }
        let mut missing = self.missing.lock().ok()?;
        if matches!(&*missing, Some((at, _)) if at.elapsed() < LOOK_AGAIN) {
            return None;
        }
        match (self.find)() {
            Ok((arm, path)) => {
                *missing = None;
                self.signature.get_or_init(|| signature(&path));
                let model = LocalModel::new(arm, path, self.options.clone());
                // Another thread may have been as quick; either is right.
                Some(self.model.get_or_init(|| model))
            }
            Err(reason) => {
                *missing = Some((Instant::now(), reason));
                None
            }
        }
    }

    /// Whether it runs just this file in just this way: a loaded model need not be loaded anew.
    pub(crate) fn runs(&self, id: &ArmId, path: &Path, options: &EngineOptions) -> bool {
        let found = self.model.get().map(|model| (model.arm(), model.path()));
        found.is_some_and(|(own, at)| own.id == *id && at == path)
            && self.options == *options
            && self.signature.get() == Some(&signature(path))
    }

    fn reason(&self) -> String {
        let missing = self.missing.lock().ok();
        let reason = missing.and_then(|missing| missing.as_ref().map(|(_, reason)| reason.clone()));
        reason.unwrap_or_else(|| "its file is not here".to_owned())
    }

    /// The file, once it was found.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.model().map(LocalModel::path)
    }

    /// The model, with room for its weights. The guard is there while they are not loaded:
    /// nobody else may load in the meantime.
    async fn ready(&self) -> Result<(&LocalModel, Option<MutexGuard<'_, ()>>), BackendError> {
        let model = self
            .model()
            .ok_or_else(|| BackendError::Load(self.reason().into()))?;
        if let Ok(mut last_used) = self.last_used.lock() {
            *last_used = Instant::now();
        }
        if model.state().warm {
            return Ok((model, None));
        }
        let guard = self.residency.loading.lock().await;
        if model.state().warm {
            return Ok((model, None));
        }
        self.residency
            .make_room(self, expected_bytes(model))
            .await?;
        Ok((model, Some(guard)))
    }

    /// Runs `work`; where the model could not be loaded although idle ones took memory, drops
    /// those and tries once more.
    async fn with_room<'a, T, F>(
        &'a self,
        work: impl Fn(&'a LocalModel) -> F,
    ) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>> + 'a,
    {
        let (model, _guard) = self.ready().await?;
        match work(model).await {
            Err(BackendError::Load(error)) => {
                if !self.residency.evict_idle(self).await {
                    return Err(BackendError::Load(error));
                }
                work(model).await
            }
            other => other,
        }
    }

    /// Gives the memory back if nobody uses the model; the bytes that were freed.
    async fn evict(&self) -> u64 {
        let Some(model) = self.model.get() else {
            return 0;
        };
        let state = model.state();
        if state.inflight > 0 || state.resident_bytes == 0 || !model.unload().await {
            return 0;
        }
        info!(arm = %model.arm().id, bytes = state.resident_bytes, "model unloaded to make room");
        state.resident_bytes
    }
}

/// Weights are kept at about their size in the file; cache and scratch come on top.
fn expected_bytes(model: &LocalModel) -> u64 {
    let file = std::fs::metadata(model.path()).map_or(0, |file| file.len());
    file + file / 8
}

impl Backend for ResidentArm {
    fn arm(&self) -> &Arm {
        self.model.get().map_or(&self.expected, LocalModel::arm)
    }

    fn state(&self) -> ArmState {
        match self.model() {
            Some(model) => model.state(),
            None => ArmState {
                unavailable: Some(self.reason()),
                ..ArmState::default()
            },
        }
    }

    fn warm_up(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(self.with_room(|model| model.warm_up()))
    }

    fn generate(
        &self,
        request: GenerateRequest,
    ) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        Box::pin(async move {
            self.with_room(|model| model.generate(request.clone()))
                .await
        })
    }

    fn choices(
        &self,
        request: ChoicesRequest,
    ) -> BoxFuture<'_, Result<Vec<ChoiceLikelihood>, BackendError>> {
        Box::pin(async move { self.with_room(|model| model.choices(request.clone())).await })
    }
}
