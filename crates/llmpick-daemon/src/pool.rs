//! The arms of the pool as the settings want them, at the start and again while it serves.
//!
//! An arm that the settings still describe as before stays the same object, so its loaded
//! weights stay in memory. Where only its price changed, the new price is put over the same
//! object. An answer that is being written keeps the arm, and the price, that it began with.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use llmpick_core::{
    Arm, ArmId, ArmState, Backend, BackendError, BoxFuture, ChoiceLikelihood, ChoicesRequest,
    EventStream, GenerateRequest, Locality, Price,
};
use llmpick_dispatch::Dispatch;
use llmpick_engine::EngineOptions;
use llmpick_remote::{OpenAi, OpenAiOptions};
use llmpick_store::{ResolvedModel, Store, arm_name_of, looks_like_path};
use serde::Serialize;
use tracing::{info, warn};

use crate::app::sentence;
use crate::parts::{ModelError, context_of, engine_options, open_store, refuse_embedder};
use crate::residency::{Find, Residency, ResidentArm};
use crate::settings::RemoteSettings;
use crate::{AppError, Settings};

/// What rereading the settings did to the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReloadedArms {
    /// The pool now, in its order.
    pub arms: Vec<ArmId>,
    /// Were not in it before.
    pub added: Vec<ArmId>,
    /// Are not in it any more. What was learnt of them is kept.
    pub removed: Vec<ArmId>,
    /// Have another price.
    pub repriced: Vec<ArmId>,
    /// Are reached or run another way: another file, address, key, or engine setting.
    pub changed: Vec<ArmId>,
    /// Settings that differ from those at the start, and hold only after the next one.
    pub needs_restart: Vec<String>,
}

/// The sections that a reload obeys.
const OBEYED: [&str; 4] = ["pool.", "remote.", "compute.", "store."];

/// The arms that the settings name, and the models outside of them that were asked for.
pub(crate) struct Pool {
    residency: Arc<Residency>,
    /// Held for as long as a reload takes.
    turn: Mutex<()>,
    /// Held for a moment.
    now: Mutex<Now>,
}

struct Now {
    settings: Settings,
    store: Store,
    arms: Vec<Made>,
    outside: Vec<Made>,
}

/// An arm that was made from the settings.
#[derive(Clone)]
struct Made {
    base: Base,
    /// `base`, at the price of the settings.
    backend: Arc<dyn Backend>,
}

#[derive(Clone)]
enum Base {
    Local(Arc<ResidentArm>),
    Remote(Arc<OpenAi>, RemoteSettings),
}

impl Pool {
    /// Of these settings, still without arms.
    pub(crate) fn empty(settings: &Settings, store: Store) -> Self {
        Self {
            residency: Residency::new(settings.compute.memory_limit),
            turn: Mutex::default(),
            now: Mutex::new(Now {
                settings: settings.clone(),
                store,
                arms: Vec::new(),
                outside: Vec::new(),
            }),
        }
    }

    /// Makes every arm that the settings name. Loads no weights.
    pub(crate) fn open(settings: &Settings, store: Store) -> Result<Self, AppError> {
        let pool = Self::empty(settings, store);
        let arms = {
            let now = pool.now();
            make(&now.settings, &now.store, &pool.residency, &[])?
        };
        pool.now().arms = arms;
        Ok(pool)
    }

    pub(crate) fn backends(&self) -> Vec<Arc<dyn Backend>> {
        backends(&self.now().arms)
    }

    /// The catalogue and the cache, as the settings were last read.
    pub(crate) fn store(&self) -> Store {
        self.now().store.clone()
    }

    /// Reads the settings again and makes the pool anew. Where this fails, the old one goes on.
    /// Arms that somebody else gave to dispatch stay. One at a time; blocks.
    pub(crate) fn reload(
        &self,
        started_with: &Settings,
        dispatch: &Dispatch,
    ) -> Result<ReloadedArms, AppError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = started_with.reread()?;
        let store = open_store(&settings)?;
        let (old, known) = {
            let now = self.now();
            let known: Vec<Made> = now.arms.iter().chain(&now.outside).cloned().collect();
            (now.arms.clone(), known)
        };
        let new = make(&settings, &store, &self.residency, &known)?;
        let mut arms = backends(&new);
        let theirs = |arm: &&Arc<dyn Backend>| !old.iter().any(|m| Arc::ptr_eq(&m.backend, arm));
        arms.extend(dispatch.arms().iter().filter(theirs).cloned());
        let reloaded = ReloadedArms {
            arms: arms.iter().map(|arm| arm.arm().id.clone()).collect(),
            needs_restart: needs_restart(started_with, &settings),
            ..compare(&old, &new)
        };
        dispatch.set_arms(arms)?;
        self.residency.set_limit(settings.compute.memory_limit);
        let options = engine_options(&settings);
        let mut now = self.now();
        now.outside.retain(|made| made.is_current(&options));
        now.arms = new;
        now.settings = settings;
        now.store = store;
        drop(now);
        log(&reloaded);
        Ok(reloaded)
    }

    /// A model that is not in the pool. Made once for each file; its weights follow with the
    /// first request.
    pub(crate) fn outside(&self, model: ResolvedModel) -> Result<Arc<dyn Backend>, ModelError> {
        let mut now = self.now();
        let options = engine_options(&now.settings);
        let id = ArmId::new(&model.arm_name)?;
        let price = local_price(&now.settings);
        now.outside.retain(|made| made.is_current(&options));
        let known = now.outside.iter_mut().find(|made| match &made.base {
            Base::Local(local) => local.runs(&id, &model.path, &options),
            Base::Remote(..) => false,
        });
        if let Some(known) = known {
            *known = known.at(price);
            return Ok(Arc::clone(&known.backend));
        }
        let arm = Arm {
            id,
            locality: Locality::Local,
            context_tokens: context_of(&model.path, &options)?,
            price,
        };
        let found = (arm.clone(), model.path);
        let find: Find = Box::new(move || Ok(found.clone()));
        let made = Made::new(Base::Local(self.residency.arm(arm, find, options)));
        let backend = Arc::clone(&made.backend);
        now.outside.push(made);
        Ok(backend)
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Made {
    fn new(base: Base) -> Self {
        let backend = base.backend();
        Self { base, backend }
    }

    /// The same arm at this price; the very same where that is its price.
    fn at(&self, price: Price) -> Self {
        if self.backend.arm().price == price {
            return self.clone();
        }
        let base = self.base.backend();
        let backend = match base.arm().price == price {
            true => base,
            false => Arc::new(Repriced::new(base, price)),
        };
        Self {
            base: self.base.clone(),
            backend,
        }
    }

    /// Whether its file, if it has one, is still the one it runs.
    fn is_current(&self, options: &EngineOptions) -> bool {
        match &self.base {
            Base::Local(local) => local
                .path()
                .is_some_and(|path| local.runs(&local.arm().id, path, options)),
            Base::Remote(..) => true,
        }
    }

    fn id(&self) -> &ArmId {
        &self.backend.arm().id
    }
}

impl Base {
    fn backend(&self) -> Arc<dyn Backend> {
        match self {
            Base::Local(local) => Arc::clone(local) as _,
            Base::Remote(remote, _) => Arc::clone(remote) as _,
        }
    }

    /// Whether both are one object. Two arms whose files are missing are as good as one.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Base::Local(a), Base::Local(b)) => {
                Arc::ptr_eq(a, b) || (a.path().is_none() && b.path().is_none())
            }
            (Base::Remote(a, _), Base::Remote(b, _)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

fn backends(arms: &[Made]) -> Vec<Arc<dyn Backend>> {
    arms.iter().map(|made| Arc::clone(&made.backend)).collect()
}

/// What became of the arms; the fields that the arms do not tell stay empty.
fn compare(old: &[Made], new: &[Made]) -> ReloadedArms {
    let find = |arms: &'_ [Made], id: &ArmId| arms.iter().find(|made| made.id() == id).cloned();
    let ids = |keep: &dyn Fn(&Made) -> bool, arms: &[Made]| {
        let kept = arms.iter().filter(|made| keep(made));
        kept.map(|made| made.id().clone()).collect()
    };
    let differs = |what: &dyn Fn(&Made, &Made) -> bool| {
        ids(
            &|made| find(old, made.id()).is_some_and(|before| what(&before, made)),
            new,
        )
    };
    ReloadedArms {
        arms: Vec::new(),
        added: ids(&|made| find(old, made.id()).is_none(), new),
        removed: ids(&|made| find(new, made.id()).is_none(), old),
        repriced: differs(&|a, b| a.backend.arm().price != b.backend.arm().price),
        changed: differs(&|a, b| !a.base.is(&b.base)),
        needs_restart: Vec::new(),
    }
}

fn needs_restart(started_with: &Settings, settings: &Settings) -> Vec<String> {
    let mut keys = started_with.differing(settings);
    keys.retain(|key| !OBEYED.iter().any(|section| key.starts_with(section)));
    keys
}

fn log(reloaded: &ReloadedArms) {
    let list = |ids: &[ArmId]| {
        let names: Vec<&str> = ids.iter().map(ArmId::as_str).collect();
        names.join(" ")
    };
    info!(
        arms = list(&reloaded.arms),
        added = list(&reloaded.added),
        removed = list(&reloaded.removed),
        repriced = list(&reloaded.repriced),
        changed = list(&reloaded.changed),
        "arms reloaded"
    );
    if !reloaded.needs_restart.is_empty() {
        let settings = reloaded.needs_restart.join(" ");
        warn!(
            settings,
            "these settings changed and hold after the next start"
        );
    }
}

/// An arm for each local model and each remote of the settings; those of `known` that are
/// still right are used again.
fn make(
    settings: &Settings,
    store: &Store,
    residency: &Arc<Residency>,
    known: &[Made],
) -> Result<Vec<Made>, AppError> {
    let mut arms = Vec::new();
    for name in &settings.pool {
        let Some(id) = expected_id(store, name) else {
            warn!(
                arm = name,
                "pool entry left out, its name cannot be an arm's"
            );
            continue;
        };
        arms.push(local(settings, store, residency, known, (name, id)));
    }
    for remote in &settings.remotes {
        arms.push(self::remote(remote, known)?);
    }
    Ok(arms)
}

/// An entry of the pool, here or not. One that cannot be used says why, and the others answer.
fn local(
    settings: &Settings,
    store: &Store,
    residency: &Arc<Residency>,
    known: &[Made],
    (name, id): (&String, ArmId),
) -> Made {
    let options = engine_options(settings);
    let card_context = store.card(name).map_or(0, |card| card.context_tokens);
    let expected = Arm {
        id,
        locality: Locality::Local,
        context_tokens: options
            .max_context
            .map_or(card_context, |most| most.min(card_context)),
        price: local_price(settings),
    };
    let price = expected.price;
    let find = finder(
        store.clone(),
        name.clone(),
        expected.clone(),
        options.clone(),
    );
    // Nothing to look for at the start.
    let found: Option<(Arm, PathBuf)> = match known {
        [] => None,
        _ => find().ok(),
    };
    let same = found.and_then(|(arm, path)| {
        let is_same = |made: &&Made| match &made.base {
            Base::Local(local) => local.runs(&arm.id, &path, &options),
            Base::Remote(..) => false,
        };
        known.iter().find(is_same)
    });
    if let Some(same) = same {
        return same.at(price);
    }
    let arm = residency.arm(expected, find, options);
    if arm.path().is_none() {
        warn!(
            arm = name,
            reason = arm.state().unavailable,
            "arm is not available"
        );
    }
    Made::new(Base::Local(arm))
}

fn remote(remote: &RemoteSettings, known: &[Made]) -> Result<Made, AppError> {
    let price = Price::PerToken {
        input_usd: remote.input_usd_per_mtok,
        output_usd: remote.output_usd_per_mtok,
    };
    let but_price = |other: &RemoteSettings| RemoteSettings {
        input_usd_per_mtok: 0.0,
        output_usd_per_mtok: 0.0,
        ..other.clone()
    };
    let is_same = |made: &&Made| match &made.base {
        Base::Remote(_, before) => but_price(before) == but_price(remote),
        Base::Local(_) => false,
    };
    if let Some(same) = known.iter().find(is_same) {
        return Ok(same.at(price));
    }
    let arm = Arm {
        id: remote.name.clone(),
        locality: Locality::Remote,
        context_tokens: remote.context_tokens,
        price,
    };
    let options = OpenAiOptions {
        base_url: remote.base_url.clone(),
        model: remote.model.clone(),
        api_key: remote.api_key.clone(),
        unavailable: remote.key_missing.clone(),
        timeout: remote.timeout,
        extended_sampling: remote.extended_sampling,
    };
    let backend = OpenAi::new(arm, options).map_err(|source| AppError::Remote {
        name: remote.name.clone(),
        source,
    })?;
    Ok(Made::new(Base::Remote(Arc::new(backend), remote.clone())))
}

fn local_price(settings: &Settings) -> Price {
    Price::PerHour {
        usd: settings.compute.usd_per_hour,
    }
}

/// The arm's name before its file is found: the catalogue's, or the file's stem.
fn expected_id(store: &Store, name: &str) -> Option<ArmId> {
    let stem = match store.resolve(name) {
        Ok(resolved) => resolved.arm_name,
        Err(_) if looks_like_path(name) => arm_name_of(name.as_ref()),
        Err(_) => name.to_owned(),
    };
    ArmId::new(stem).ok()
}

fn finder(store: Store, name: String, expected: Arm, options: EngineOptions) -> Find {
    Box::new(move || {
        let resolved = store.resolve(&name).map_err(|error| sentence(&error))?;
        refuse_embedder(resolved.card.as_ref()).map_err(|error| sentence(&error))?;
        let context_tokens =
            context_of(&resolved.path, &options).map_err(|error| sentence(&error))?;
        Ok((
            Arm {
                context_tokens,
                ..expected.clone()
            },
            resolved.path,
        ))
    })
}

/// An arm at another price than it was made with.
struct Repriced {
    base: Arc<dyn Backend>,
    price: Price,
    first: Arm,
    /// The description where it changed since, as it does once when a file is found.
    later: OnceLock<Arm>,
}

impl Repriced {
    fn new(base: Arc<dyn Backend>, price: Price) -> Self {
        Self {
            first: Arm {
                price,
                ..base.arm().clone()
            },
            base,
            price,
            later: OnceLock::new(),
        }
    }
}

impl Backend for Repriced {
    fn arm(&self) -> &Arm {
        let now = self.base.arm();
        if now.context_tokens == self.first.context_tokens {
            return &self.first;
        }
        self.later.get_or_init(|| Arm {
            price: self.price,
            ..now.clone()
        })
    }

    fn state(&self) -> ArmState {
        self.base.state()
    }

    fn warm_up(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        self.base.warm_up()
    }

    fn generate(
        &self,
        request: GenerateRequest,
    ) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        self.base.generate(request)
    }

    fn choices(
        &self,
        request: ChoicesRequest,
    ) -> BoxFuture<'_, Result<Vec<ChoiceLikelihood>, BackendError>> {
        self.base.choices(request)
    }
}
