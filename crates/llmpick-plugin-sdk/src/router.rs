//! The trait of a router, and the C functions made from it.

use std::ffi::c_void;

use llmpick_plugin_abi as abi;
use serde::de::DeserializeOwned;

use crate::error::entry;
use crate::export::{Instance, plugin};
use crate::request::emptied;
use crate::{Choice, Error, Feedback, Host, Plan, Result, SelectRequest};

/// A router: chooses arms, and learns from what comes back.
///
/// Calls on one instance never overlap. A panic in any of them is caught, the instance is
/// not called again, and the host builds a new one from the last snapshot.
///
/// ```
/// use llmpick_plugin_sdk::{
///     Candidate, Choice, Feedback, Host, Plan, Result, RouterPlugin, SelectRequest, from_json,
///     to_json,
/// };
///
/// /// Takes turns; what it has learnt is how many turns there were.
/// struct InTurn {
///     turns: u64,
/// }
///
/// impl RouterPlugin for InTurn {
///     type Config = ();
///     const NAME: &'static str = "in-turn";
///     const STATE_VERSION: u32 = 1;
///
///     fn create((): (), _: Host) -> Result<Self> {
///         Ok(Self { turns: 0 })
///     }
///
///     fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()> {
///         let arms: Vec<&Candidate<'_>> = request.eligible().collect();
///         match arms.len() {
///             0 => choice.abstain(),
///             count => choice.choose(arms[(self.turns % count as u64) as usize].index),
///         };
///         Ok(())
///     }
///
///     fn feedback(&mut self, _: &Feedback<'_>) -> Result<()> {
///         self.turns += 1;
///         Ok(())
///     }
///
///     fn snapshot(&self) -> Result<Vec<u8>> {
///         to_json(&[self.turns])
///     }
///
///     fn restore(&mut self, _version: u32, state: &[u8]) -> Result<()> {
///         [self.turns] = from_json(state)?;
///         Ok(())
///     }
/// }
///
/// let mut router = InTurn::create((), Host::detached())?;
/// let arm = |index| Candidate { index, eligible: true, ..Default::default() };
/// let request = SelectRequest { candidates: vec![arm(0), arm(1)], ..Default::default() };
/// let mut plan = Plan::default();
/// router.feedback(&Feedback::default())?;
/// router.select(&request, &mut Choice::new(&mut plan, &request))?;
/// assert_eq!(plan.choices, [1]);
/// # llmpick_plugin_sdk::Result::Ok(())
/// ```
pub trait RouterPlugin: Send + Sized + 'static {
    /// Settings, read from JSON; `{}` and nothing at all mean the default. Put
    /// `#[serde(default, deny_unknown_fields)]` on it, so that a misspelt key is refused.
    type Config: DeserializeOwned + Default;

    /// `[a-z0-9][a-z0-9_-]{0,63}`, checked when the plugin is compiled.
    const NAME: &'static str;
    /// A line for people.
    const DESCRIPTION: &'static str = "";
    /// JSON Schema of the settings.
    const CONFIG_SCHEMA: &'static str = "";
    /// Version that [`snapshot`](Self::snapshot) writes; raise it when the format changes.
    /// 0 for a router that learns nothing.
    const STATE_VERSION: u32 = 0;
    /// Oldest version that [`restore`](Self::restore) takes.
    const STATE_VERSION_MIN: u32 = Self::STATE_VERSION;
    /// Bits of [`caps`](crate::caps).
    const CAPS: u64 = 0;

    /// Makes an instance.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Chooses. Must not change learnt state, and takes all chance from the request's seed.
    fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()>;

    /// Learns from one arm that ran.
    fn feedback(&mut self, _feedback: &Feedback<'_>) -> Result<()> {
        Ok(())
    }

    /// All that has been learnt. [`to_json`](crate::to_json) is a good format.
    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Takes learnt state over; on an error the instance must stay as it was. `version` is
    /// between [`STATE_VERSION_MIN`](Self::STATE_VERSION_MIN) and
    /// [`STATE_VERSION`](Self::STATE_VERSION).
    fn restore(&mut self, _version: u32, state: &[u8]) -> Result<()> {
        if state.is_empty() {
            return Ok(());
        }
        Err(Error::state("this router keeps no state"))
    }
}

/// Describes `P` to the host.
#[doc(hidden)]
pub const fn router_plugin<P: RouterPlugin>(version: &'static str) -> abi::Plugin {
    const {
        assert!(
            P::CAPS & abi::CAP_THREAD_SAFE == 0,
            "calls on a router of this SDK never overlap"
        );
        assert!(P::STATE_VERSION_MIN <= P::STATE_VERSION);
    }
    let mut plugin = plugin(abi::KIND_ROUTER, P::NAME, version, P::CAPS);
    plugin.description = abi::Str::new(P::DESCRIPTION);
    plugin.config_schema = abi::Str::new(P::CONFIG_SCHEMA);
    plugin.state_version = P::STATE_VERSION;
    plugin.state_version_min = P::STATE_VERSION_MIN;
    plugin.vtbl = std::ptr::from_ref(Functions::<P>::TABLE).cast();
    plugin
}

struct Functions<P>(std::marker::PhantomData<P>);

impl<P: RouterPlugin> Functions<P> {
    const TABLE: &'static abi::RouterVtbl = &abi::RouterVtbl {
        size: size_of::<abi::RouterVtbl>() as u32,
        reserved: 0,
        create: Some(create::<P>),
        destroy: Some(crate::export::destroy::<P>),
        select: Some(select::<P>),
        feedback: Some(feedback::<P>),
        snapshot: Some(snapshot::<P>),
        restore: Some(restore::<P>),
    };
}

unsafe extern "C" fn create<P: RouterPlugin>(
    host: *const abi::Host,
    config: abi::Str,
    this: *mut *mut c_void,
    err: *mut abi::Error,
) -> abi::Status {
    // SAFETY: the host's pointers are as the header promises.
    unsafe { entry(err, || Instance::create(host, config, this, P::create)) }
}

unsafe extern "C" fn select<P: RouterPlugin>(
    this: *mut c_void,
    req: *const abi::SelectReq,
    out: *mut abi::Decision,
    err: *mut abi::Error,
) -> abi::Status {
    // SAFETY: the host's pointers are as the header promises, and valid during this call.
    unsafe {
        Instance::<P>::call(this, err, |instance| {
            let Instance {
                plugin,
                plan,
                candidates,
                ..
            } = instance;
            let plan: &mut Plan = plan;
            let request = SelectRequest::from_raw(req, std::mem::take(candidates))?;
            let chosen = plugin
                .select(&request, &mut Choice::new(plan, &request))
                .and_then(|()| plan.write(&request, P::CAPS, out));
            *candidates = emptied(request.candidates);
            chosen
        })
    }
}

unsafe extern "C" fn feedback<P: RouterPlugin>(
    this: *mut c_void,
    raw: *const abi::Feedback,
    err: *mut abi::Error,
) -> abi::Status {
    // SAFETY: the host's pointers are as the header promises, and valid during this call.
    unsafe {
        Instance::<P>::call(this, err, |instance| {
            instance.plugin.feedback(&Feedback::from_raw(raw)?)
        })
    }
}

unsafe extern "C" fn snapshot<P: RouterPlugin>(
    this: *mut c_void,
    writer: *const abi::Writer,
    err: *mut abi::Error,
) -> abi::Status {
    // SAFETY: the host's pointers are as the header promises, and valid during this call.
    unsafe {
        Instance::<P>::call(this, err, |instance| {
            let state = instance.plugin.snapshot()?;
            if writer.is_null() {
                return Err(Error::invalid("the host passed no writer"));
            }
            let writer = abi::read_sized(writer);
            let write = writer
                .write
                .ok_or_else(|| Error::invalid("the host's writer cannot write"))?;
            match write(writer.ctx, state.as_ptr(), state.len()) {
                abi::OK => Ok(()),
                _ => Err(Error::io("the host took no more of the snapshot")),
            }
        })
    }
}

unsafe extern "C" fn restore<P: RouterPlugin>(
    this: *mut c_void,
    version: u32,
    state: abi::Bytes,
    err: *mut abi::Error,
) -> abi::Status {
    // SAFETY: the host's pointers are as the header promises, and valid during this call.
    unsafe {
        Instance::<P>::call(this, err, |instance| {
            let (oldest, newest) = (P::STATE_VERSION_MIN, P::STATE_VERSION);
            if !(oldest..=newest).contains(&version) {
                return Err(Error::state(format!(
                    "the state has version {version}, this plugin reads {oldest} to {newest}"
                )));
            }
            let bytes = abi::Str {
                ptr: state.ptr.cast(),
                len: state.len,
            };
            let state = bytes
                .bytes()
                .ok_or_else(|| Error::invalid("the host passed no state"))?;
            instance.plugin.restore(version, state)
        })
    }
}
