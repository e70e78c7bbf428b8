//! A plugin instance under test: the C interface as it is, nothing forgiven.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use llmpick_plugin_abi as abi;
use serde_json::Value;

use super::inputs::{Ask, Feedback, ScoreAsk};
use super::memory::{Access, Memory, Thing};
use crate::call::{self, CallError};
use crate::context::Context;
use crate::library::Table;
use crate::{PluginInfo, RouterOptions};

/// The most bytes of a note.
const REASON: usize = 256;
/// What a newer host's structs have more, and with which bytes.
const NEWER: usize = 40;

/// The plugin under test, and the settings to create it with.
pub(super) struct Plugin {
    pub info: PluginInfo,
    pub table: Table,
    pub settings: Value,
}

/// The memory that calls are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum World {
    Plain,
    /// Guarded pages; see [`super::memory`].
    Strict,
    /// A host of a later minor version: every struct is longer, candidates have a larger
    /// stride, and the new bytes are not zero.
    Newer,
}

impl World {
    fn memory(self) -> Memory {
        match self {
            World::Plain | World::Newer => Memory::Plain(Vec::new()),
            World::Strict => Memory::Strict(Vec::new()),
        }
    }

    fn extra(self) -> usize {
        if self == World::Newer { NEWER } else { 0 }
    }
}

/// What a plugin is told when it looks a setting up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookUps {
    /// The truth.
    Honest,
    /// Every key has the wrong type.
    WrongType,
}

/// A live instance.
pub(super) struct Subject {
    table: Table,
    info: PluginInfo,
    world: World,
    this: *mut c_void,
    /// Boxes, since the plugin keeps pointers to both until `destroy`.
    _host: Box<abi::Host>,
    _context: Box<Context>,
    /// How long the last call took.
    pub took: Duration,
}

// SAFETY: rule R3 of the header: calls may come from different threads as long as they do
// not overlap, which `&mut self` sees to.
unsafe impl Send for Subject {}

/// Lines that plugins of this process logged, at the levels that a host writes by default.
pub(super) static LOGGED: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn count_line(_ctx: *mut c_void, level: u32, _msg: abi::Str) {
    if level <= abi::LOG_WARN {
        LOGGED.fetch_add(1, Ordering::AcqRel);
    }
}

unsafe extern "C" fn warnings_only(_ctx: *mut c_void) -> u32 {
    abi::LOG_WARN
}

unsafe extern "C" fn wrong_f64(_: *mut c_void, _: abi::Str, _: *mut f64) -> abi::Status {
    abi::E_CONFIG
}

unsafe extern "C" fn wrong_i64(_: *mut c_void, _: abi::Str, _: *mut i64) -> abi::Status {
    abi::E_CONFIG
}

unsafe extern "C" fn wrong_str(_: *mut c_void, _: abi::Str, _: *mut abi::Str) -> abi::Status {
    abi::E_CONFIG
}

impl Subject {
    /// An instance with the settings of the test.
    pub(super) fn new(plugin: &Plugin) -> Result<Self, String> {
        Self::in_world(plugin, World::Plain)
    }

    /// The same with other memory.
    pub(super) fn in_world(plugin: &Plugin, world: World) -> Result<Self, String> {
        let text = plugin.settings.to_string();
        Self::create(plugin, &text, &plugin.settings, LookUps::Honest, world)
            .map_err(|error| format!("it did not start: {}", said(&error)))
    }

    /// An instance with any settings: the text, and what look-ups are answered from.
    pub(super) fn create(
        plugin: &Plugin,
        text: &str,
        settings: &Value,
        look_ups: LookUps,
        world: World,
    ) -> Result<Self, CallError> {
        let context = Box::new(Context::new(&plugin.info.name, settings.clone()));
        let mut host = Box::new(context.host());
        host.log = Some(count_line);
        host.max_log_level = Some(warnings_only);
        if look_ups == LookUps::WrongType {
            host.config_f64 = Some(wrong_f64);
            host.config_i64 = Some(wrong_i64);
            host.config_str = Some(wrong_str);
        }
        let (create, _) = plugin.table.life();
        let mut memory = world.memory();
        let config = put_text(&mut memory, Thing::Settings, text);
        let mut this = std::ptr::null_mut();
        let result = call(memory, world, |error| {
            // SAFETY: the plugin's own function; `host` lives until `destroy`, the rest
            // through the call.
            unsafe { create(&raw const *host, config, &mut this, error) }
        });
        context.created();
        result.1?;
        Ok(Self {
            table: plugin.table,
            info: plugin.info.clone(),
            world,
            this,
            _host: host,
            _context: context,
            took: result.0,
        })
    }

    /// Asks a router.
    pub(super) fn select(&mut self, ask: &Ask) -> Result<Answer, CallError> {
        let Table::Router(table) = self.table else {
            return Err(other_kind());
        };
        let (extra, count) = (self.world.extra(), ask.arms.len());
        let mut memory = self.world.memory();
        let request = ask.lay_out(&mut memory, self.info.caps, extra);
        let cap = count.min(ask.raw.max_arms as usize);
        let mut write = |thing, bytes| memory.room(thing, Access::Write, bytes);
        let choices = write(Thing::Choices, cap * 4).cast::<u32>();
        let marginals = write(Thing::Marginals, count * 8).cast::<f64>();
        let reason = write(Thing::Reason, REASON);
        let out = write(Thing::Decision, size_of::<abi::Decision>() + extra).cast();
        // SAFETY: all four were made with this room just now.
        unsafe {
            (0..cap).for_each(|at| choices.add(at).write(u32::MAX));
            (0..count).for_each(|at| marginals.add(at).write(f64::NAN));
            fill_extra::<abi::Decision>(out, extra);
            out.write(abi::Decision {
                size: (size_of::<abi::Decision>() + extra) as u32,
                mode: 0,
                choices,
                choices_cap: cap as u32,
                choices_len: 0,
                propensity: f64::NAN,
                marginals,
                reason: reason.cast(),
                reason_cap: REASON as u32,
                reason_len: 0,
            });
        }
        let mut answer = Answer::default();
        let (took, result) = call_then(
            memory,
            self.world,
            // SAFETY: `this` is live, and everything it is given lives through the call.
            |error| unsafe { (table.select)(self.this, request, out, error) },
            || {
                // SAFETY: still ours; the plugin wrote plain numbers.
                answer = unsafe { Answer::read(out, choices, cap, marginals, count, reason) };
            },
        );
        self.took = took;
        result.map(|()| answer)
    }

    /// Tells a router what came back; nothing where it has no such function.
    pub(super) fn feedback(&mut self, feedback: &Feedback) -> Result<(), CallError> {
        let Table::Router(table) = self.table else {
            return Err(other_kind());
        };
        let Some(function) = table.feedback else {
            return Ok(());
        };
        let mut memory = self.world.memory();
        let raw = feedback.lay_out(&mut memory, self.info.caps, self.world.extra());
        let (took, result) = call(memory, self.world, |error| {
            // SAFETY: `this` is live, and the feedback lives through the call.
            unsafe { function(self.this, raw, error) }
        });
        self.took = took;
        result
    }

    /// What a router has learnt; empty where it has no such function.
    pub(super) fn snapshot(&mut self) -> Result<Vec<u8>, CallError> {
        let Table::Router(table) = self.table else {
            return Err(other_kind());
        };
        let Some(function) = table.snapshot else {
            return Ok(Vec::new());
        };
        let most = RouterOptions::default().max_snapshot_bytes;
        let mut sink = Sink {
            state: Vec::new(),
            most,
            full: false,
        };
        let mut memory = self.world.memory();
        let writer = abi::Writer {
            size: size_of::<abi::Writer>() as u32,
            reserved: 0,
            ctx: (&raw mut sink).cast(),
            write: Some(take),
        };
        let writer = put_struct(&mut memory, Thing::Writer, writer, self.world.extra());
        let (_, result) = call(memory, self.world, |error| {
            // SAFETY: `this` is live, and the writer and its sink live through the call.
            unsafe { function(self.this, writer, error) }
        });
        if sink.full {
            return Err(CallError {
                status: abi::E_IO,
                message: format!("its snapshot has more than {} MiB", most >> 20),
            });
        }
        result.map(|()| sink.state)
    }

    /// Gives a router learnt state; `None` where it has no such function.
    pub(super) fn restore(&mut self, version: u32, state: &[u8]) -> Option<Result<(), CallError>> {
        let Table::Router(table) = self.table else {
            return Some(Err(other_kind()));
        };
        let function = table.restore?;
        let mut memory = self.world.memory();
        let bytes = abi::Bytes {
            ptr: memory.put(Thing::State, Access::Read, state),
            len: state.len(),
        };
        let (_, result) = call(memory, self.world, |error| {
            // SAFETY: `this` is live, and the state lives through the call.
            unsafe { function(self.this, version, bytes, error) }
        });
        Some(result)
    }

    /// Asks a scorer; the numbers as they were written: value and confidence.
    pub(super) fn score(&mut self, ask: &ScoreAsk<'_>) -> Result<(f64, f64), CallError> {
        let Table::Scorer(table) = self.table else {
            return Err(other_kind());
        };
        let extra = self.world.extra();
        let mut memory = self.world.memory();
        let request = ask.lay_out(&mut memory, extra);
        let out = memory.room(Thing::Score, Access::Write, size_of::<abi::Score>() + extra);
        let out = out.cast::<abi::Score>();
        // SAFETY: it was made with this room just now.
        unsafe {
            fill_extra::<abi::Score>(out, extra);
            out.write(abi::Score {
                size: (size_of::<abi::Score>() + extra) as u32,
                reserved: 0,
                value: f64::NAN,
                confidence: f64::NAN,
            });
        }
        let mut answer = (f64::NAN, f64::NAN);
        let (took, result) = call_then(
            memory,
            self.world,
            // SAFETY: `this` is live, and request and score live through the call.
            |error| unsafe { (table.score)(self.this, request, out, error) },
            || {
                // SAFETY: still ours.
                let score = unsafe { out.read() };
                answer = (score.value, score.confidence);
            },
        );
        self.took = took;
        result.map(|()| answer)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let (_, destroy) = self.table.life();
        // SAFETY: `this` came from `create` of the same table, and this is its last call.
        unsafe { destroy(self.this) };
    }
}

impl Table {
    fn life(&self) -> (abi::CreateFn, abi::DestroyFn) {
        match self {
            Table::Router(table) => (table.create, table.destroy),
            Table::Scorer(table) => (table.create, table.destroy),
        }
    }
}

/// What a router wrote, not yet believed.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub mode: u32,
    pub choices_len: u32,
    pub choices_cap: u32,
    pub choices: Vec<u32>,
    pub propensity: f64,
    pub marginals: Vec<f64>,
    pub reason_len: u32,
    pub reason: Vec<u8>,
}

impl Answer {
    /// # Safety
    /// The pointers are the buffers of a call that has returned, with the room they were
    /// made with.
    unsafe fn read(
        out: *const abi::Decision,
        choices: *const u32,
        cap: usize,
        marginals: *const f64,
        count: usize,
        reason: *const u8,
    ) -> Self {
        // SAFETY: by the caller's promise; lengths that the plugin wrote are cut to the room.
        unsafe {
            let out = out.read();
            let chosen = (out.choices_len as usize).min(cap);
            let note = (out.reason_len as usize).min(REASON);
            Self {
                mode: out.mode,
                choices_len: out.choices_len,
                choices_cap: cap as u32,
                choices: (0..chosen).map(|at| choices.add(at).read()).collect(),
                propensity: out.propensity,
                marginals: (0..count).map(|at| marginals.add(at).read()).collect(),
                reason_len: out.reason_len,
                reason: (0..note).map(|at| reason.add(at).read()).collect(),
            }
        }
    }
}

/// Makes a call with an error struct in the same memory, then gives the memory up.
fn call(
    memory: Memory,
    world: World,
    run: impl FnOnce(*mut abi::Error) -> abi::Status,
) -> (Duration, Result<(), CallError>) {
    call_then(memory, world, run, || ())
}

/// The same, with a look at the outputs before the memory is given up.
fn call_then(
    mut memory: Memory,
    world: World,
    run: impl FnOnce(*mut abi::Error) -> abi::Status,
    read: impl FnOnce(),
) -> (Duration, Result<(), CallError>) {
    let size = size_of::<abi::Error>() + world.extra();
    let error = memory.room(Thing::ErrorStruct, Access::Write, size);
    let error = error.cast::<abi::Error>();
    // SAFETY: it was made with this room just now.
    unsafe {
        error.write(call::error());
        (&raw mut (*error).size).write(size as u32);
    }
    memory.seal();
    let start = Instant::now();
    let status = run(error);
    let took = start.elapsed();
    // SAFETY: still ours.
    let result = call::result(status, unsafe { &*error });
    read();
    memory.retire();
    (took, result)
}

struct Sink {
    state: Vec<u8>,
    most: usize,
    full: bool,
}

unsafe extern "C" fn take(ctx: *mut c_void, ptr: *const u8, len: usize) -> abi::Status {
    // SAFETY: `ctx` is the sink of the `snapshot` call that is running.
    let Some(sink) = (unsafe { ctx.cast::<Sink>().as_mut() }) else {
        return abi::E_INVALID;
    };
    if sink.full || len > sink.most - sink.state.len() {
        sink.full = true;
        return abi::E_IO;
    }
    if len > 0 {
        // SAFETY: the plugin passes `len` readable bytes; where it does not, this test is
        // what finds out.
        let bytes = unsafe { std::slice::from_raw_parts(ptr, len) };
        sink.state.extend_from_slice(bytes);
    }
    abi::OK
}

/// A text of the host's, in memory of its own.
pub(super) fn put_text(memory: &mut Memory, thing: Thing, text: &str) -> abi::Str {
    put_bytes(memory, thing, text.as_bytes())
}

/// Bytes that claim to be a text.
pub(super) fn put_bytes(memory: &mut Memory, thing: Thing, bytes: &[u8]) -> abi::Str {
    abi::Str {
        ptr: memory.put(thing, Access::Read, bytes).cast(),
        len: bytes.len(),
    }
}

/// An input struct, with the further bytes of a newer host behind it. Its `size` is set by
/// the caller to what it claims.
pub(super) fn put_struct<T: abi::HasSize>(
    memory: &mut Memory,
    thing: Thing,
    value: T,
    extra: usize,
) -> *const T {
    let room = memory.room(thing, Access::Read, size_of::<T>() + extra);
    let room = room.cast::<T>();
    // SAFETY: it was made with this room just now; `HasSize` promises that the struct begins
    // with its size.
    unsafe {
        fill_extra::<T>(room, extra);
        room.write(value);
        room.cast::<u32>().write((size_of::<T>() + extra) as u32);
    }
    room
}

/// # Safety
/// `at` has room for a `T` and `extra` bytes.
unsafe fn fill_extra<T>(at: *mut T, extra: usize) {
    // SAFETY: by the caller's promise.
    unsafe { at.add(1).cast::<u8>().write_bytes(0xa5, extra) };
}

fn other_kind() -> CallError {
    CallError {
        status: abi::E_UNSUPPORTED,
        message: "it is no plugin of this kind".to_owned(),
    }
}

/// An error in words, a panic named as one.
pub(super) fn said(error: &CallError) -> String {
    let message = &error.message;
    match error.status {
        abi::E_PANIC if !message.contains("panick") => format!("it panicked: {message}"),
        _ => message.clone(),
    }
}
