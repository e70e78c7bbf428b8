//! What a plugin may ask of us while it runs: a log that cannot be flooded, a clock, and
//! look-ups in its configuration.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use llmpick_plugin_abi as abi;
use serde_json::Value;
use tracing::level_filters::LevelFilter;

/// Lines a plugin may write at once, and then per second.
const LOG_BURST: f64 = 50.0;
const LOG_PER_SECOND: f64 = 10.0;
/// Bytes of a line that are kept.
const LOG_LINE: usize = 2048;

/// Behind the `ctx` of one instance.
pub(crate) struct Context {
    config: Value,
    creating: AtomicBool,
    start: Instant,
    journal: Journal,
}

impl Context {
    pub(crate) fn new(plugin: &str, config: Value) -> Self {
        Self {
            config,
            creating: AtomicBool::new(true),
            start: Instant::now(),
            journal: Journal::new(plugin),
        }
    }

    /// After `create`: the configuration may not be looked up any more.
    pub(crate) fn created(&self) {
        self.creating.store(false, Ordering::Release);
    }

    /// The struct that a plugin is given; it points to `self`, which must outlive it.
    pub(crate) fn host(&self) -> abi::Host {
        abi::Host {
            size: size_of::<abi::Host>() as u32,
            abi: abi::ABI,
            ctx: std::ptr::from_ref(self).cast_mut().cast(),
            log: Some(log),
            max_log_level: Some(max_log_level),
            now_ns: Some(now_ns),
            config_f64: Some(config_f64),
            config_i64: Some(config_i64),
            config_str: Some(config_str),
        }
    }

    fn look_up(&self, key: abi::Str) -> Result<&Value, abi::Status> {
        if !self.creating.load(Ordering::Acquire) {
            return Err(abi::E_INVALID);
        }
        // SAFETY: the plugin passes a text that it owns for the call.
        let key = unsafe { key.text() }.ok_or(abi::E_INVALID)?;
        key.split('.')
            .try_fold(&self.config, |value, part| value.get(part))
            .filter(|value| !value.is_null())
            .ok_or(abi::E_ABSTAIN)
    }
}

/// Where a plugin's lines go: at most so many of them.
pub(crate) struct Journal {
    plugin: String,
    start: Instant,
    limit: Mutex<LogLimit>,
}

impl Journal {
    pub(crate) fn new(plugin: &str) -> Self {
        Self {
            plugin: plugin.to_owned(),
            start: Instant::now(),
            limit: Mutex::new(LogLimit::default()),
        }
    }

    pub(crate) fn write(&self, level: u32, message: &str) {
        let now = self.start.elapsed().as_secs_f64();
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(dropped) = limit.admit(now) else {
            return;
        };
        drop(limit);
        let plugin = &self.plugin;
        if TO_PARENT.load(Ordering::Relaxed) != NO_PARENT {
            return tell_parent(level, dropped, message);
        }
        if dropped > 0 {
            tracing::warn!(%plugin, dropped, "the plugin logs too much; lines were dropped");
        }
        match level {
            abi::LOG_ERROR => tracing::error!(%plugin, "{message}"),
            abi::LOG_WARN => tracing::warn!(%plugin, "{message}"),
            abi::LOG_INFO => tracing::info!(%plugin, "{message}"),
            abi::LOG_DEBUG => tracing::debug!(%plugin, "{message}"),
            _ => tracing::trace!(%plugin, "{message}"),
        }
    }
}

/// Begins a line on a child's stderr that is a line of the log; the level follows as a digit.
pub(crate) const LOG_MARK: u8 = 1;

const NO_PARENT: u32 = u32::MAX;

/// In a child process: the chattiest level that the parent writes.
static TO_PARENT: AtomicU32 = AtomicU32::new(NO_PARENT);

/// From now on lines go to stderr, for the parent to read.
pub(crate) fn log_to_parent(max_level: u32) {
    TO_PARENT.store(max_level.min(abi::LOG_TRACE), Ordering::Relaxed);
}

/// One line in one write, so that lines of several threads do not mix.
fn tell_parent(level: u32, dropped: u64, message: &str) {
    let level = char::from(b'0' + level.clamp(abi::LOG_ERROR, abi::LOG_TRACE) as u8);
    let mark = char::from(LOG_MARK);
    let mut line = String::new();
    if dropped > 0 {
        line = format!("{mark}2{dropped} lines of its log were dropped\n");
    }
    line.push_str(&format!("{mark}{level}{message}\n"));
    // Nobody is left to be told of a failure.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

/// A bucket that fills with time; each line takes one.
struct LogLimit {
    tokens: f64,
    at: f64,
    dropped: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self {
            tokens: LOG_BURST,
            at: 0.0,
            dropped: 0,
        }
    }
}

impl LogLimit {
    /// `None` to drop the line; otherwise how many were dropped since the last one.
    fn admit(&mut self, now: f64) -> Option<u64> {
        self.tokens = LOG_BURST.min(self.tokens + (now - self.at).max(0.0) * LOG_PER_SECOND);
        self.at = now;
        if self.tokens < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1.0;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// # Safety
/// `ctx` is the one of a live instance.
unsafe fn context<'a>(ctx: *mut c_void) -> Option<&'a Context> {
    // SAFETY: the caller's promise; a NULL is answered with `None`.
    unsafe { ctx.cast_const().cast::<Context>().as_ref() }
}

unsafe extern "C" fn log(ctx: *mut c_void, level: u32, msg: abi::Str) {
    // SAFETY: rule R3: called with our `ctx`, before `destroy` returns.
    let (Some(context), Some(bytes)) = (unsafe { (context(ctx), msg.bytes()) }) else {
        return;
    };
    let line = clean(&bytes[..bytes.len().min(LOG_LINE)]);
    // A subscriber that panics must not unwind into the plugin.
    let _ = catch_unwind(AssertUnwindSafe(|| context.journal.write(level, &line)));
}

unsafe extern "C" fn max_log_level(_ctx: *mut c_void) -> u32 {
    max_level()
}

/// The chattiest level that is written, here or in the parent.
pub(crate) fn max_level() -> u32 {
    match TO_PARENT.load(Ordering::Relaxed) {
        NO_PARENT => {}
        level => return level,
    }
    match LevelFilter::current() {
        LevelFilter::OFF => 0,
        LevelFilter::ERROR => abi::LOG_ERROR,
        LevelFilter::WARN => abi::LOG_WARN,
        LevelFilter::INFO => abi::LOG_INFO,
        LevelFilter::DEBUG => abi::LOG_DEBUG,
        LevelFilter::TRACE => abi::LOG_TRACE,
    }
}

unsafe extern "C" fn now_ns(ctx: *mut c_void) -> u64 {
    // SAFETY: rule R3, as in `log`.
    unsafe { context(ctx) }.map_or(0, |context| context.start.elapsed().as_nanos() as u64)
}

unsafe extern "C" fn config_f64(ctx: *mut c_void, key: abi::Str, out: *mut f64) -> abi::Status {
    // SAFETY: `out` is the plugin's place for one number.
    unsafe { look_up(ctx, key, out, Value::as_f64) }
}

unsafe extern "C" fn config_i64(ctx: *mut c_void, key: abi::Str, out: *mut i64) -> abi::Status {
    // SAFETY: `out` is the plugin's place for one number.
    unsafe { look_up(ctx, key, out, Value::as_i64) }
}

unsafe extern "C" fn config_str(
    ctx: *mut c_void,
    key: abi::Str,
    out: *mut abi::Str,
) -> abi::Status {
    // SAFETY: `out` is the plugin's place for one text, which lives as long as the context.
    unsafe { look_up(ctx, key, out, |value| value.as_str().map(abi::Str::new)) }
}

/// # Safety
/// `ctx` is the one of a live instance, `out` NULL or writable.
unsafe fn look_up<T>(
    ctx: *mut c_void,
    key: abi::Str,
    out: *mut T,
    read: impl Fn(&Value) -> Option<T>,
) -> abi::Status {
    // SAFETY: the caller's promise is passed on.
    let Some(context) = (unsafe { context(ctx) }) else {
        return abi::E_INVALID;
    };
    match context.look_up(key).map(read) {
        Err(status) => status,
        Ok(None) => abi::E_CONFIG,
        Ok(Some(_)) if out.is_null() => abi::E_INVALID,
        Ok(Some(value)) => {
            // SAFETY: not NULL, and the plugin's writable place.
            unsafe { out.write(value) };
            abi::OK
        }
    }
}

/// Text of a plugin, made fit for a log or a terminal: valid UTF-8 in one line.
pub(crate) fn clean(bytes: &[u8]) -> String {
    // Nearly always there is nothing to clean, and a decision waits for it.
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains(char::is_control)
    {
        return text.trim().to_owned();
    }
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut limit = LogLimit::default();
        let at_once = (0..1_000).filter(|_| limit.admit(0.0).is_some()).count();
        assert_eq!(at_once, 50);
        assert_eq!(limit.admit(1.0), Some(950), "a second later some may pass");
        assert_eq!(limit.admit(1.0), Some(0));
    }

    #[test]
    fn a_plugin_cannot_paint_the_terminal() {
        assert_eq!(clean(b" \x1b[31mred\nline\xff"), "[31mred line\u{fffd}");
    }

    #[test]
    fn configuration_is_looked_up_by_dotted_path_and_only_in_create() {
        let config = serde_json::json!({"a": {"b": 1.5, "n": null}, "s": "text"});
        let context = Context::new("test", config);
        let host = context.host();
        let key = abi::Str::new;
        let (mut number, mut whole) = (0.0, 0);
        // SAFETY: the context outlives the calls, and the places are writable.
        unsafe {
            assert_eq!(config_f64(host.ctx, key("a.b"), &mut number), abi::OK);
            assert_eq!(config_i64(host.ctx, key("a.b"), &mut whole), abi::E_CONFIG);
            assert_eq!(
                config_f64(host.ctx, key("a.n"), &mut number),
                abi::E_ABSTAIN
            );
            assert_eq!(
                config_f64(host.ctx, key("a.x"), &mut number),
                abi::E_ABSTAIN
            );
            let mut text = abi::Str::EMPTY;
            assert_eq!(config_str(host.ctx, key("s"), &mut text), abi::OK);
            assert_eq!(text.text(), Some("text"));
            context.created();
            assert_eq!(
                config_f64(host.ctx, key("a.b"), &mut number),
                abi::E_INVALID
            );
        }
        assert_eq!(number, 1.5);
    }
}
