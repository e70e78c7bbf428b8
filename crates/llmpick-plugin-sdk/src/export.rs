//! From a trait to the exported symbol: the macro, the instance behind `self`, poisoning.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llmpick_plugin_abi as abi;
use serde::de::DeserializeOwned;

use crate::error::{self, Result};
use crate::request::text;
use crate::{Candidate, Error, Host, Plan};

/// Exports plugins from a `cdylib`: `export_plugins!(router MyRouter, scorer MyScorer);`.
/// Once per library.
///
/// ```standalone_crate
/// use llmpick_plugin_sdk::{Error, Host, Result, Score, ScoreRequest, ScorerPlugin, export_plugins};
///
/// struct Undecided;
///
/// impl ScorerPlugin for Undecided {
///     type Config = ();
///     const NAME: &'static str = "undecided";
///
///     fn create((): (), _: Host) -> Result<Self> {
///         Ok(Self)
///     }
///
///     fn score(&mut self, _: &ScoreRequest<'_>) -> Result<Score> {
///         Err(Error::abstain())
///     }
/// }
///
/// export_plugins!(scorer Undecided);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugins {
    ($($kind:ident $plugin:ty),+ $(,)?) => {
        const _: () = {
            use $crate::private::abi;
            const VERSION: &str = match ::core::option_env!("CARGO_PKG_VERSION") {
                ::core::option::Option::Some(version) => version,
                ::core::option::Option::None => "0.0.0",
            };
            static PLUGINS: &[&abi::Plugin] =
                &[$(&$crate::export_plugins!(@describe $kind $plugin)),+];
            static MODULE: abi::Module = abi::Module {
                magic: abi::MAGIC,
                size: ::core::mem::size_of::<abi::Module>() as u32,
                abi: abi::ABI,
                abi_min: abi::abi(abi::ABI_MAJOR, 0),
                n_plugins: PLUGINS.len() as u32,
                plugins: PLUGINS.as_ptr().cast(),
                built_with: abi::Str::new($crate::private::BUILT_WITH),
            };
            /// The one symbol of the plugin ABI.
            #[allow(unsafe_code)]
            #[unsafe(no_mangle)]
            pub extern "C" fn llmpick_plugin_entry(host_abi: u32) -> *const abi::Module {
                $crate::private::entry(&MODULE, host_abi)
            }
        };
    };
    (@describe router $plugin:ty) => { $crate::private::router_plugin::<$plugin>(VERSION) };
    (@describe scorer $plugin:ty) => { $crate::private::scorer_plugin::<$plugin>(VERSION) };
}

/// The module, if it can serve a host of this version.
pub fn entry(module: &'static abi::Module, host_abi: u32) -> *const abi::Module {
    if abi::abi_parts(host_abi).0 == abi::ABI_MAJOR && host_abi >= module.abi_min {
        module
    } else {
        std::ptr::null()
    }
}

/// What the module says it was built with.
pub const BUILT_WITH: &str = concat!("llmpick-plugin-sdk ", env!("CARGO_PKG_VERSION"));

/// The part of a description that routers and scorers share.
pub(crate) const fn plugin(
    kind: u32,
    name: &'static str,
    version: &'static str,
    caps: u64,
) -> abi::Plugin {
    assert!(
        abi::is_plugin_name(name),
        "NAME must be 1 to 64 of a-z, 0-9, _ and -, starting with a letter or digit"
    );
    abi::Plugin {
        size: size_of::<abi::Plugin>() as u32,
        kind,
        caps,
        name: abi::Str::new(name),
        version: abi::Str::new(version),
        description: abi::Str::EMPTY,
        config_schema: abi::Str::EMPTY,
        state_version: 0,
        state_version_min: 0,
        vtbl: std::ptr::null(),
    }
}

/// What `self` points to.
pub(crate) struct Instance<P> {
    pub(crate) plugin: P,
    /// Reused between selects, so that a choice allocates nothing.
    pub(crate) plan: Plan,
    /// Empty but during a select; reused, for its memory.
    pub(crate) candidates: Vec<Candidate<'static>>,
    host: Host,
    poisoned: bool,
}

impl<P> Instance<P> {
    /// Makes an instance and hands it to the host.
    ///
    /// # Safety
    /// The pointers are as the header promises for `create`.
    pub(crate) unsafe fn create<C: DeserializeOwned + Default>(
        host: *const abi::Host,
        config: abi::Str,
        this: *mut *mut c_void,
        make: impl FnOnce(C, Host) -> Result<P>,
    ) -> Result<()> {
        if this.is_null() {
            return Err(Error::invalid("the host gave no place for the instance"));
        }
        // SAFETY: as the caller promises.
        let (host, config) = unsafe { (Host::from_raw(host)?, text(config)?) };
        let plugin = make(parse_config(config)?, host.clone())?;
        let instance = Box::new(Self {
            plugin,
            plan: Plan::default(),
            candidates: Vec::new(),
            host,
            poisoned: false,
        });
        // SAFETY: `this` is the host's writable place for one pointer.
        unsafe { this.write(Box::into_raw(instance).cast()) };
        Ok(())
    }

    /// Runs one call on the instance. A panic poisons it: its state may be half-changed, so
    /// every later call answers `E_PANIC` at once.
    ///
    /// # Safety
    /// `this` came from [`create`](Self::create) with the same `P`, was not destroyed, and
    /// no other call on it runs (rule R3).
    pub(crate) unsafe fn call(
        this: *mut c_void,
        err: *mut abi::Error,
        body: impl FnOnce(&mut Self) -> Result<()>,
    ) -> abi::Status {
        // SAFETY: by the caller's promise this is our live `Instance`, and nobody else holds it.
        let Some(instance) = (unsafe { this.cast::<Self>().as_mut() }) else {
            // SAFETY: `err` is the host's.
            return unsafe { error::entry(err, || Err(Error::invalid("no instance"))) };
        };
        if instance.poisoned {
            // A panic that is not repeated, only reported.
            // SAFETY: `err` is the host's.
            unsafe { error::entry(err, || Err(Error::internal("poisoned by an earlier panic"))) };
            return abi::E_PANIC;
        }
        // SAFETY: `err` is the host's.
        let status = unsafe { error::entry(err, || body(instance)) };
        instance.poisoned = status == abi::E_PANIC;
        status
    }
}

/// Frees an instance. A poisoned one is leaked: its `Drop` may rely on what the panic broke.
pub(crate) unsafe extern "C" fn destroy<P>(this: *mut c_void) {
    if this.is_null() {
        return;
    }
    // SAFETY: the header's rule: `self` came from `create`, and this is its last call.
    let instance = unsafe { Box::from_raw(this.cast::<Instance<P>>()) };
    let host = instance.host.clone();
    if instance.poisoned {
        Box::leak(instance);
    } else if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(instance))) {
        std::mem::forget(payload);
    }
    host.retire();
}

fn parse_config<C: DeserializeOwned + Default>(json: &str) -> Result<C> {
    match json.trim() {
        "" | "{}" | "null" => Ok(C::default()),
        json => serde_json::from_str(json).map_err(|error| Error::config(error.to_string())),
    }
}
