//! The Rust mirror of `include/llmpick_plugin.h`, the contract with plugins.
//!
//! The header is normative; this file says the same in Rust, type by type, and
//! `tests/layout.rs` compiles the header with the C compiler and compares every size and
//! offset. No dependencies, no `std`: whatever is here crosses the boundary as it stands.
//!
//! Both sides copy `min(size)` bytes of the other's struct into a zeroed one of their own
//! before they look at it ([`read_sized`], [`read_prefix`]): a field that the peer does not
//! know reads as zero, and a function it does not have as `None`.
#![no_std]
#![allow(unsafe_code)]

use core::ffi::{c_char, c_void};

/// Major version: libraries of another major are refused.
pub const ABI_MAJOR: u32 = 1;
/// Minor version: grows when fields or functions are appended.
pub const ABI_MINOR: u32 = 0;
/// The version this mirror describes.
pub const ABI: u32 = abi(ABI_MAJOR, ABI_MINOR);
/// First bytes of every module.
pub const MAGIC: [u8; 8] = *b"LLMPICK\0";
/// The one symbol a plugin library exports, NUL-terminated for `dlsym`.
pub const ENTRY_SYMBOL: &[u8] = b"llmpick_plugin_entry\0";

/// Packs a version as the header's `LLMPICK_ABI` does.
pub const fn abi(major: u32, minor: u32) -> u32 {
    (major << 16) | minor
}

/// Unpacks a version into (major, minor).
pub const fn abi_parts(version: u32) -> (u32, u32) {
    (version >> 16, version & 0xffff)
}

/// What every fallible call answers.
pub type Status = i32;
/// It worked.
pub const OK: Status = 0;
/// No opinion: the host uses its fallback; not a fault.
pub const E_ABSTAIN: Status = -1;
/// Bad argument.
pub const E_INVALID: Status = -2;
/// Bad configuration: `create` refuses.
pub const E_CONFIG: Status = -3;
/// Snapshot not understood: the instance keeps its state.
pub const E_STATE: Status = -4;
/// Not offered.
pub const E_UNSUPPORTED: Status = -5;
/// The plugin's own failure.
pub const E_INTERNAL: Status = -6;
/// A panic or exception was contained: the instance is poisoned.
pub const E_PANIC: Status = -7;
/// A host callback failed.
pub const E_IO: Status = -8;

/// Log level: error.
pub const LOG_ERROR: u32 = 1;
/// Log level: warning.
pub const LOG_WARN: u32 = 2;
/// Log level: information.
pub const LOG_INFO: u32 = 3;
/// Log level: debug.
pub const LOG_DEBUG: u32 = 4;
/// Log level: trace.
pub const LOG_TRACE: u32 = 5;

/// Candidate flag: computes on this machine.
pub const CAND_LOCAL: u32 = 1 << 0;
/// Candidate flag: loaded, no cold start to pay.
pub const CAND_WARM: u32 = 1 << 1;
/// Candidate flag: healthy, fits the context, permitted.
pub const CAND_ELIGIBLE: u32 = 1 << 2;

/// Mode: run the first choice.
pub const MODE_SINGLE: u32 = 1 << 0;
/// Mode: in order, stop at the first good answer.
pub const MODE_ANY_WIN: u32 = 1 << 1;
/// Mode: all at once, each does a part, parts add.
pub const MODE_SUM_UP: u32 = 1 << 2;
/// Mode: all at once, every part must succeed.
pub const MODE_ALL_IN: u32 = 1 << 3;

/// Outcome: it answered.
pub const OUTCOME_OK: u32 = 1;
/// Outcome: it failed.
pub const OUTCOME_ERROR: u32 = 2;
/// Outcome: it took too long.
pub const OUTCOME_TIMEOUT: u32 = 3;
/// Outcome: the client went away.
pub const OUTCOME_CANCELLED: u32 = 4;

/// Feedback flag: chosen by the host's fallback or the user, not by the plugin.
pub const FB_FALLBACK: u32 = 1 << 0;
/// Feedback flag: latency includes model loading.
pub const FB_COLD: u32 = 1 << 1;

/// Kind of a plugin: router.
pub const KIND_ROUTER: u32 = 1;
/// Kind of a plugin: scorer.
pub const KIND_SCORER: u32 = 2;

/// Capability: wants the prompt's text; without it prompts stay private.
pub const CAP_NEEDS_PROMPT: u64 = 1 << 0;
/// Capability: wants the feature vector.
pub const CAP_NEEDS_FEATURES: u64 = 1 << 1;
/// Capability: calls on one instance may overlap.
pub const CAP_THREAD_SAFE: u64 = 1 << 2;
/// Capability: may return more than one choice.
pub const CAP_MULTI_SELECT: u64 = 1 << 3;

/// UTF-8 text, not NUL-terminated.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    /// First byte; NULL only when `len` is 0.
    pub ptr: *const c_char,
    /// Bytes.
    pub len: usize,
}

impl Str {
    /// No text.
    pub const EMPTY: Str = Str {
        ptr: core::ptr::null(),
        len: 0,
    };

    /// A view of `text`, valid as long as `text` is.
    pub const fn new(text: &str) -> Str {
        Str {
            ptr: text.as_ptr().cast(),
            len: text.len(),
        }
    }

    /// The bytes behind the view, or `None` where a length comes with no pointer.
    ///
    /// # Safety
    /// `ptr` is NULL or points to `len` readable bytes that stay unchanged for `'a`.
    pub const unsafe fn bytes<'a>(self) -> Option<&'a [u8]> {
        if self.len == 0 {
            return Some(&[]);
        }
        if self.ptr.is_null() || self.len > isize::MAX as usize {
            return None;
        }
        // SAFETY: non-NULL by the check above, readable for `'a` by the caller's promise.
        Some(unsafe { core::slice::from_raw_parts(self.ptr.cast(), self.len) })
    }

    /// The text, or `None` where it is no text.
    ///
    /// # Safety
    /// As for [`bytes`](Self::bytes).
    pub const unsafe fn text<'a>(self) -> Option<&'a str> {
        // SAFETY: the caller's promise is passed on.
        match unsafe { self.bytes() } {
            Some(bytes) => match core::str::from_utf8(bytes) {
                Ok(text) => Some(text),
                Err(_) => None,
            },
            None => None,
        }
    }
}

/// Bytes, owned by whoever passes them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// First byte; NULL only when `len` is 0.
    pub ptr: *const u8,
    /// Bytes.
    pub len: usize,
}

/// Bytes of text that an [`Error`] holds.
pub const ERROR_CAPACITY: usize = 248;

/// Where a call says what went wrong. The host's memory, 256 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Error {
    /// `sizeof` on the host's side.
    pub size: u32,
    /// Out: bytes of `msg` used.
    pub len: u32,
    /// Out: UTF-8.
    pub msg: [c_char; ERROR_CAPACITY],
}

/// `log` of [`Host`].
pub type LogFn = unsafe extern "C" fn(ctx: *mut c_void, level: u32, msg: Str);
/// `max_log_level` of [`Host`].
pub type MaxLogLevelFn = unsafe extern "C" fn(ctx: *mut c_void) -> u32;
/// `now_ns` of [`Host`].
pub type NowFn = unsafe extern "C" fn(ctx: *mut c_void) -> u64;
/// `config_f64` of [`Host`].
pub type ConfigF64Fn = unsafe extern "C" fn(ctx: *mut c_void, key: Str, out: *mut f64) -> Status;
/// `config_i64` of [`Host`].
pub type ConfigI64Fn = unsafe extern "C" fn(ctx: *mut c_void, key: Str, out: *mut i64) -> Status;
/// `config_str` of [`Host`].
pub type ConfigStrFn = unsafe extern "C" fn(ctx: *mut c_void, key: Str, out: *mut Str) -> Status;

/// What the host offers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// `sizeof` on the host's side.
    pub size: u32,
    /// The host's version.
    pub abi: u32,
    /// Passed back unchanged.
    pub ctx: *mut c_void,
    /// Writes a line to the host's log.
    pub log: Option<LogFn>,
    /// The chattiest level that is written; cheap.
    pub max_log_level: Option<MaxLogLevelFn>,
    /// Monotonic nanoseconds.
    pub now_ns: Option<NowFn>,
    /// Looks a number up, only during `create`. Keys are dotted paths.
    pub config_f64: Option<ConfigF64Fn>,
    /// Looks a whole number up, only during `create`.
    pub config_i64: Option<ConfigI64Fn>,
    /// Looks a text up, only during `create`.
    pub config_str: Option<ConfigStrFn>,
}

/// `write` of [`Writer`].
pub type WriteFn = unsafe extern "C" fn(ctx: *mut c_void, ptr: *const u8, len: usize) -> Status;

/// Where snapshots go.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// `sizeof` on the host's side.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// Passed back unchanged.
    pub ctx: *mut c_void,
    /// Appends bytes.
    pub write: Option<WriteFn>,
}

/// One arm, for one request. Unknown numbers are NaN.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Stable across restarts.
    pub id: Str,
    /// `CAND_*` bits.
    pub flags: u32,
    /// Tokens of its context.
    pub context_tokens: u32,
    /// Cost units per 10⁶ prompt tokens.
    pub price_in: f64,
    /// Cost units per 10⁶ completion tokens.
    pub price_out: f64,
    /// The host's estimate for this request.
    pub est_cost: f64,
    /// Upper bound of this request.
    pub cost_max: f64,
    /// Measured, whole response, in ms.
    pub latency_ms: f64,
    /// Measured, first token, in ms.
    pub ttft_ms: f64,
    /// Measured, 0..1.
    pub score: f64,
    /// Calls that succeeded.
    pub n_ok: u64,
    /// Calls that failed.
    pub n_err: u64,
    /// Calls running or queued.
    pub inflight: u32,
    /// Zero.
    pub reserved: u32,
}

/// One question to a router.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SelectReq {
    /// `sizeof` on the host's side.
    pub size: u32,
    /// `MODE_*` bits the host will execute.
    pub allowed_modes: u32,
    /// Number of the request.
    pub request_id: u64,
    /// The only source of chance.
    pub seed: u64,
    /// Changes when the set or order of ids changes.
    pub arms_epoch: u64,
    /// Nanoseconds allowed for the call.
    pub budget_ns: u64,
    /// First candidate.
    pub candidates: *const Candidate,
    /// How many.
    pub n_candidates: u32,
    /// Bytes from one candidate to the next.
    pub candidate_size: u32,
    /// Tag, may be empty.
    pub task: Str,
    /// Opaque, may be empty.
    pub session: Str,
    /// Empty unless `CAP_NEEDS_PROMPT`.
    pub prompt: Str,
    /// NULL unless `CAP_NEEDS_FEATURES`.
    pub features: *const f32,
    /// Length of `features`.
    pub n_features: usize,
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens that may be generated.
    pub max_new_tokens: u32,
    /// The user's limit; NaN for none.
    pub max_cost: f64,
    /// The user's limit; NaN for none.
    pub max_latency_ms: f64,
    /// The user's limit; NaN for none.
    pub min_score: f64,
    /// Long-term budget per request (ρ); NaN for none.
    pub cost_budget: f64,
    /// Most arms that may run (N).
    pub max_arms: u32,
    /// Zero.
    pub reserved: u32,
}

/// A router's answer. Buffers are the host's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    /// `sizeof` on the host's side.
    pub size: u32,
    /// Out: one `MODE_*`.
    pub mode: u32,
    /// Out: candidate indexes, ordered, distinct.
    pub choices: *mut u32,
    /// Room in `choices`.
    pub choices_cap: u32,
    /// Out: 1..=`choices_cap`, or 0 for "round for me".
    pub choices_len: u32,
    /// Out: P(this set), NaN if unknown.
    pub propensity: f64,
    /// Out: P(arm runs), one per candidate, NaN if unknown.
    pub marginals: *mut f64,
    /// Out: a short UTF-8 note.
    pub reason: *mut c_char,
    /// Room in `reason`.
    pub reason_cap: u32,
    /// Out: bytes of `reason` used.
    pub reason_len: u32,
}

/// What came back from one candidate that ran.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Feedback {
    /// `sizeof` on the host's side.
    pub size: u32,
    /// `OUTCOME_*`.
    pub outcome: u32,
    /// Number of the request.
    pub request_id: u64,
    /// Who ran.
    pub candidate_id: Str,
    /// Tag, may be empty.
    pub task: Str,
    /// Features of the request, or NULL.
    pub features: *const f32,
    /// Length of `features`.
    pub n_features: usize,
    /// `FB_*` bits.
    pub flags: u32,
    /// Place in the plan.
    pub position: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Whole response in ms.
    pub latency_ms: f64,
    /// First token in ms.
    pub ttft_ms: f64,
    /// What it cost.
    pub cost: f64,
    /// 0..1, NaN when nothing scored it.
    pub score: f64,
}

/// `create` of both vtables.
pub type CreateFn = unsafe extern "C" fn(
    host: *const Host,
    config_json: Str,
    this: *mut *mut c_void,
    err: *mut Error,
) -> Status;
/// `destroy` of both vtables.
pub type DestroyFn = unsafe extern "C" fn(this: *mut c_void);
/// `select` of a router.
pub type SelectFn = unsafe extern "C" fn(
    this: *mut c_void,
    req: *const SelectReq,
    out: *mut Decision,
    err: *mut Error,
) -> Status;
/// `feedback` of a router.
pub type FeedbackFn =
    unsafe extern "C" fn(this: *mut c_void, fb: *const Feedback, err: *mut Error) -> Status;
/// `snapshot` of a router.
pub type SnapshotFn =
    unsafe extern "C" fn(this: *mut c_void, w: *const Writer, err: *mut Error) -> Status;
/// `restore` of a router.
pub type RestoreFn = unsafe extern "C" fn(
    this: *mut c_void,
    state_version: u32,
    state: Bytes,
    err: *mut Error,
) -> Status;
/// `score` of a scorer.
pub type ScoreFn = unsafe extern "C" fn(
    this: *mut c_void,
    req: *const ScoreReq,
    out: *mut Score,
    err: *mut Error,
) -> Status;

/// The functions of a router.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouterVtbl {
    /// `sizeof` on the plugin's side.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// Required.
    pub create: Option<CreateFn>,
    /// Required.
    pub destroy: Option<DestroyFn>,
    /// Required.
    pub select: Option<SelectFn>,
    /// Optional.
    pub feedback: Option<FeedbackFn>,
    /// Optional.
    pub snapshot: Option<SnapshotFn>,
    /// Optional.
    pub restore: Option<RestoreFn>,
}

/// One question to a scorer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScoreReq {
    /// `sizeof` on the host's side.
    pub size: u32,
    /// `OUTCOME_*`.
    pub outcome: u32,
    /// Number of the request.
    pub request_id: u64,
    /// The only source of chance.
    pub seed: u64,
    /// Nanoseconds allowed for the call.
    pub budget_ns: u64,
    /// Who answered.
    pub candidate_id: Str,
    /// Tag, may be empty.
    pub task: Str,
    /// What was asked.
    pub prompt: Str,
    /// What was answered.
    pub response: Str,
    /// The expected answer, may be empty.
    pub reference: Str,
}

/// A scorer's answer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Score {
    /// `sizeof` on the host's side.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// Out: 0..1.
    pub value: f64,
    /// Out: 0..1, NaN if unknown.
    pub confidence: f64,
}

/// The functions of a scorer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScorerVtbl {
    /// `sizeof` on the plugin's side.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// Required.
    pub create: Option<CreateFn>,
    /// Required.
    pub destroy: Option<DestroyFn>,
    /// Required.
    pub score: Option<ScoreFn>,
}

/// One plugin of a module.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    /// `sizeof` on the plugin's side.
    pub size: u32,
    /// `KIND_*`.
    pub kind: u32,
    /// `CAP_*` bits.
    pub caps: u64,
    /// `[a-z0-9][a-z0-9_-]{0,63}`.
    pub name: Str,
    /// Semantic version.
    pub version: Str,
    /// A line for people.
    pub description: Str,
    /// JSON Schema, may be empty.
    pub config_schema: Str,
    /// Version that `snapshot` writes; 0 for stateless.
    pub state_version: u32,
    /// Oldest version that `restore` takes.
    pub state_version_min: u32,
    /// [`RouterVtbl`] or [`ScorerVtbl`], by `kind`.
    pub vtbl: *const c_void,
}

// SAFETY: a `Plugin` is read-only static data; its pointers lead to read-only static data.
unsafe impl Sync for Plugin {}

/// What a library exports.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// `sizeof` on the plugin's side.
    pub size: u32,
    /// Built against.
    pub abi: u32,
    /// Oldest host it can run on.
    pub abi_min: u32,
    /// How many plugins.
    pub n_plugins: u32,
    /// Pointers to them.
    pub plugins: *const *const Plugin,
    /// Tool chain, for people.
    pub built_with: Str,
}

// SAFETY: as for `Plugin`.
unsafe impl Sync for Module {}

/// Type of the exported symbol.
pub type EntryFn = unsafe extern "C" fn(host_abi: u32) -> *const Module;

/// True for what a plugin may be called: `[a-z0-9][a-z0-9_-]{0,63}`.
pub const fn is_plugin_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > 64 {
        return false;
    }
    let mut i = 0;
    while i < bytes.len() {
        let letter = matches!(bytes[i], b'a'..=b'z' | b'0'..=b'9');
        if !(letter || i > 0 && matches!(bytes[i], b'_' | b'-')) {
            return false;
        }
        i += 1;
    }
    true
}

/// A struct of this header, for which all bytes zero is a value.
///
/// # Safety
/// The type is `repr(C)`, and all-zero bytes are a valid value of it.
pub unsafe trait Pod: Copy {}

/// A struct whose first field is `size: u32`.
///
/// # Safety
/// The first field is a `u32` that holds the writer's `sizeof`.
pub unsafe trait HasSize: Pod {}

macro_rules! pod {
    ($($name:ty),*) => { $(
        // SAFETY: `repr(C)`, made of integers, floats, raw pointers and `Option<fn>`, for
        // all of which zero is a value.
        unsafe impl Pod for $name {}
    )* };
}
macro_rules! sized {
    ($($name:ty),*) => { $(
        // SAFETY: the first field of each is `size: u32`; `tests/layout.rs` holds it there.
        unsafe impl HasSize for $name {}
    )* };
}
pod!(
    Candidate, Module, Error, Host, Writer, SelectReq, Decision, Feedback, RouterVtbl, ScoreReq,
    Score, ScorerVtbl, Plugin
);
sized!(
    Error, Host, Writer, SelectReq, Decision, Feedback, RouterVtbl, ScoreReq, Score, ScorerVtbl,
    Plugin
);

/// All bytes zero.
pub fn zeroed<T: Pod>() -> T {
    // SAFETY: `Pod` promises that zero is a value.
    unsafe { core::mem::zeroed() }
}

/// A struct of the peer that says its own size, cut or padded with zeros to ours.
///
/// # Safety
/// `peer` is not NULL and points to as many readable bytes as its `size` field says (and at
/// least to that field).
pub unsafe fn read_sized<T: HasSize>(peer: *const T) -> T {
    // SAFETY: `HasSize` promises that the struct begins with a `u32`; the caller, that it is readable.
    let size = unsafe { peer.cast::<u32>().read_unaligned() };
    // SAFETY: the caller promises `size` readable bytes.
    unsafe { read_prefix(peer, size as usize) }
}

/// The first `available` bytes of a peer's struct, cut or padded with zeros to ours.
///
/// # Safety
/// `peer` points to `available` readable bytes.
pub unsafe fn read_prefix<T: Pod>(peer: *const T, available: usize) -> T {
    if available >= size_of::<T>() {
        // The usual case, and a copy whose length is known here.
        // SAFETY: the caller promises as many readable bytes, which are the peer's `T`.
        return unsafe { peer.read_unaligned() };
    }
    let mut own = zeroed::<T>();
    let bytes = available;
    // SAFETY: `bytes` is at most what the caller promises to read and what `own` has room for.
    unsafe {
        core::ptr::copy_nonoverlapping(
            peer.cast::<u8>(),
            core::ptr::from_mut(&mut own).cast::<u8>(),
            bytes,
        );
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_struct_reads_as_zero_beyond_its_end() {
        let mut writer = Writer {
            size: 8,
            reserved: 0,
            ctx: 8 as *mut c_void,
            write: None,
        };
        // SAFETY: `writer` is readable for its whole length.
        let old = unsafe { read_sized(&raw const writer) };
        assert!(old.ctx.is_null(), "beyond `size`, so it must not be read");
        writer.size = u32::MAX;
        // SAFETY: only `size_of::<Writer>()` bytes are ever read.
        let new = unsafe { read_sized(&raw const writer) };
        assert_eq!(new.ctx, writer.ctx);
    }

    #[test]
    fn names_follow_the_pattern() {
        for good in ["a", "c2mabv", "exact-match", "7b_", &"x".repeat(64)] {
            assert!(is_plugin_name(good), "{good}");
        }
        for bad in ["", "-a", "_a", "Upper", "sp ace", "ä", &"x".repeat(65)] {
            assert!(!is_plugin_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_length_without_a_pointer_is_no_text() {
        let str = Str {
            ptr: core::ptr::null(),
            len: 4,
        };
        // SAFETY: a NULL pointer is never followed.
        assert_eq!(unsafe { str.text() }, None);
        // SAFETY: as above.
        assert_eq!(unsafe { Str::EMPTY.text() }, Some(""));
    }
}
