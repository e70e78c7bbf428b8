//! The trait of a scorer, and the C functions made from it.

use std::ffi::c_void;

use llmpick_plugin_abi as abi;
use serde::de::DeserializeOwned;

use crate::error::entry;
use crate::export::{Instance, plugin};
use crate::{Error, Host, Result, ScoreRequest};

/// A scorer: grades answers.
///
/// Calls on one instance never overlap; panics are handled as for a
/// [router](crate::RouterPlugin).
///
/// ```
/// use llmpick_plugin_sdk::{Error, Host, Result, Score, ScoreRequest, ScorerPlugin};
///
/// /// Short answers are good answers.
/// struct Brevity;
///
/// impl ScorerPlugin for Brevity {
///     type Config = ();
///     const NAME: &'static str = "brevity";
///
///     fn create((): (), _: Host) -> Result<Self> {
///         Ok(Self)
///     }
///
///     fn score(&mut self, request: &ScoreRequest<'_>) -> Result<Score> {
///         match request.response.len() {
///             0 => Err(Error::abstain()),
///             bytes => Score::new(1.0 / bytes as f64),
///         }
///     }
/// }
///
/// let mut scorer = Brevity::create((), Host::detached())?;
/// let grade = scorer.score(&ScoreRequest { response: "four", ..Default::default() })?;
/// assert_eq!(grade.value(), 0.25);
/// # llmpick_plugin_sdk::Result::Ok(())
/// ```
pub trait ScorerPlugin: Send + Sized + 'static {
    /// Settings, as for [`RouterPlugin::Config`](crate::RouterPlugin::Config).
    type Config: DeserializeOwned + Default;

    /// `[a-z0-9][a-z0-9_-]{0,63}`, checked when the plugin is compiled.
    const NAME: &'static str;
    /// A line for people.
    const DESCRIPTION: &'static str = "";
    /// JSON Schema of the settings.
    const CONFIG_SCHEMA: &'static str = "";
    /// Bits of [`caps`](crate::caps).
    const CAPS: u64 = 0;

    /// Makes an instance.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Grades; [`Error::abstain`] where there is nothing to go by.
    fn score(&mut self, request: &ScoreRequest<'_>) -> Result<Score>;
}

/// A grade: 0..=1, perhaps with a confidence of 0..=1.
///
/// ```
/// use llmpick_plugin_sdk::Score;
///
/// let score = Score::new(0.75)?.with_confidence(0.9);
/// assert_eq!((score.value(), score.confidence()), (0.75, Some(0.9)));
/// # llmpick_plugin_sdk::Result::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    value: f64,
    confidence: Option<f64>,
}

impl Score {
    /// Checks that `value` is in 0..=1.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::Score;
    /// assert!(Score::new(1.5).is_err() && Score::new(f64::NAN).is_err());
    /// ```
    pub fn new(value: f64) -> Result<Self> {
        if (0.0..=1.0).contains(&value) {
            Ok(Self {
                value,
                confidence: None,
            })
        } else {
            Err(Error::internal(format!(
                "a score is a number from 0 to 1, not {value}"
            )))
        }
    }

    /// Says how sure the scorer is; clamped to 0..=1, NaN is ignored.
    #[must_use]
    pub fn with_confidence(self, confidence: f64) -> Self {
        Self {
            confidence: (!confidence.is_nan()).then(|| confidence.clamp(0.0, 1.0)),
            ..self
        }
    }

    /// The grade as a number.
    pub fn value(self) -> f64 {
        self.value
    }

    /// How sure the scorer is.
    pub fn confidence(self) -> Option<f64> {
        self.confidence
    }
}

/// Describes `P` to the host.
#[doc(hidden)]
pub const fn scorer_plugin<P: ScorerPlugin>(version: &'static str) -> abi::Plugin {
    const {
        assert!(
            P::CAPS & abi::CAP_THREAD_SAFE == 0,
            "calls on a scorer of this SDK never overlap"
        );
    }
    let mut plugin = plugin(abi::KIND_SCORER, P::NAME, version, P::CAPS);
    plugin.description = abi::Str::new(P::DESCRIPTION);
    plugin.config_schema = abi::Str::new(P::CONFIG_SCHEMA);
    plugin.vtbl = std::ptr::from_ref(Functions::<P>::TABLE).cast();
    plugin
}

struct Functions<P>(std::marker::PhantomData<P>);

impl<P: ScorerPlugin> Functions<P> {
    const TABLE: &'static abi::ScorerVtbl = &abi::ScorerVtbl {
        size: size_of::<abi::ScorerVtbl>() as u32,
        reserved: 0,
        create: Some(create::<P>),
        destroy: Some(crate::export::destroy::<P>),
        score: Some(score::<P>),
    };
}

unsafe extern "C" fn create<P: ScorerPlugin>(
    host: *const abi::Host,
    config: abi::Str,
    this: *mut *mut c_void,
    err: *mut abi::Error,
) -> abi::Status {
    // SAFETY: the host's pointers are as the header promises.
    unsafe { entry(err, || Instance::create(host, config, this, P::create)) }
}

unsafe extern "C" fn score<P: ScorerPlugin>(
    this: *mut c_void,
    req: *const abi::ScoreReq,
    out: *mut abi::Score,
    err: *mut abi::Error,
) -> abi::Status {
    // SAFETY: the host's pointers are as the header promises, and valid during this call.
    unsafe {
        Instance::<P>::call(this, err, |instance| {
            let score = instance.plugin.score(&ScoreRequest::from_raw(req)?)?;
            if out.is_null() {
                return Err(Error::invalid("the host passed no score to fill"));
            }
            let size = (&raw const (*out).size).read() as usize;
            if size < size_of::<abi::Score>() {
                return Err(Error::invalid("the host's score struct is too short"));
            }
            (&raw mut (*out).value).write(score.value);
            (&raw mut (*out).confidence).write(score.confidence.unwrap_or(f64::NAN));
            Ok(())
        })
    }
}
