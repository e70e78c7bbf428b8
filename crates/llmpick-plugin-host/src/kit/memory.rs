//! Memory that is handed to a plugin: plain, or strict.
//!
//! Strict memory gives each thing pages of its own that end at a page nobody may touch;
//! inputs may only be read, and after the call nobody may touch them either. A plugin that
//! steps over any of these lines gets a SIGSEGV there and then, and the handler of
//! [`watch_faults`] says which line it was.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicUsize, Ordering};

/// What lies in a piece of memory, for the sentence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Thing {
    Request,
    Candidates,
    Id,
    Text,
    Features,
    Decision,
    Choices,
    Marginals,
    Reason,
    ErrorStruct,
    Feedback,
    Writer,
    State,
    Score,
    Settings,
}

/// In the order of [`Thing`]; no quotes, since the handler writes them into JSON as they are.
const WORDS: [&str; 15] = [
    "the request",
    "the candidates",
    "the id of an arm",
    "a text of the request",
    "the features",
    "the decision",
    "choices (room for choices_cap indexes)",
    "marginals (one per candidate)",
    "reason (room for reason_cap bytes)",
    "the error struct",
    "the feedback",
    "the writer",
    "the state",
    "the score",
    "the settings",
];

/// Whether a plugin may write there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// The memory of one call.
pub(super) enum Memory {
    /// Ordinary memory. Blocks of eight bytes, so that everything is aligned.
    Plain(Vec<Vec<u64>>),
    /// Guarded pages.
    Strict(Vec<Pages>),
}

impl Memory {
    /// Room for `bytes` bytes, zeroed, aligned to eight where `bytes` is a multiple of that.
    /// It stays valid until [`retire`](Self::retire).
    pub(super) fn room(&mut self, thing: Thing, access: Access, bytes: usize) -> *mut u8 {
        match self {
            Memory::Plain(blocks) => {
                blocks.push(vec![0; bytes.div_ceil(8)]);
                blocks
                    .last_mut()
                    .map_or(std::ptr::null_mut(), |block| block.as_mut_ptr().cast())
            }
            Memory::Strict(pages) => {
                let new = Pages::new(thing, access, bytes);
                let start = new.start;
                pages.push(new);
                start
            }
        }
    }

    /// Copies values to a place of their own.
    pub(super) fn put<T: Copy>(&mut self, thing: Thing, access: Access, values: &[T]) -> *mut T {
        let room = self.room(thing, access, size_of_val(values)).cast::<T>();
        // SAFETY: `room` has as many bytes, aligned to eight, which is enough for every type
        // of the header; the places do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), room, values.len()) };
        room
    }

    /// From here on, inputs may only be read.
    pub(super) fn seal(&self) {
        if let Memory::Strict(pages) = self {
            pages.iter().for_each(Pages::seal);
        }
    }

    /// The call is over: nothing of it may be touched any more, by us neither.
    pub(super) fn retire(self) {
        if let Memory::Strict(pages) = self {
            pages.iter().for_each(Pages::retire);
        }
    }
}

/// Pages with a guard behind them. Never unmapped: another mapping at the same address would
/// hide a late access.
pub(super) struct Pages {
    base: *mut u8,
    /// Bytes before the guard.
    length: usize,
    /// Where the thing begins; it ends at the guard.
    start: *mut u8,
    access: Access,
    region: Option<&'static Region>,
}

impl Pages {
    fn new(thing: Thing, access: Access, bytes: usize) -> Self {
        let page = page_size();
        let length = bytes.div_ceil(page) * page;
        // SAFETY: a fresh anonymous mapping; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length + page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert!(base != libc::MAP_FAILED, "the system gave no memory");
        let base = base.cast::<u8>();
        // SAFETY: `length` bytes of the mapping come before the guard, of which the thing is
        // the last `bytes`.
        let (guard, start) = unsafe { (base.add(length), base.add(length - bytes)) };
        protect(guard, page, libc::PROT_NONE);
        Self {
            base,
            length,
            start,
            access,
            region: Region::register(thing, base as usize, guard as usize, page),
        }
    }

    fn seal(&self) {
        if self.access == Access::Read {
            protect(self.base, self.length, libc::PROT_READ);
        }
    }

    fn retire(&self) {
        protect(self.base, self.length, libc::PROT_NONE);
        if let Some(region) = self.region {
            region.retired.store(1, Ordering::Release);
        }
    }
}

fn protect(at: *mut u8, length: usize, rights: c_int) {
    if length == 0 {
        return;
    }
    // SAFETY: whole pages of a mapping of ours, on which no reference of Rust's lives.
    let status = unsafe { libc::mprotect(at.cast(), length, rights) };
    assert_eq!(status, 0, "the system did not protect memory");
}

fn page_size() -> usize {
    // SAFETY: a question without preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// What the signal handler knows of a mapping; all atomics, since it may come at any time.
struct Region {
    thing: AtomicU8,
    start: AtomicUsize,
    guard: AtomicUsize,
    end: AtomicUsize,
    retired: AtomicU8,
}

const MOST_REGIONS: usize = 16_384;
static REGIONS: [Region; MOST_REGIONS] = [const {
    Region {
        thing: AtomicU8::new(0),
        start: AtomicUsize::new(0),
        guard: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        retired: AtomicU8::new(0),
    }
}; MOST_REGIONS];
static USED: AtomicUsize = AtomicUsize::new(0);
/// Where the handler writes; below zero for nowhere.
static CHANNEL: AtomicI32 = AtomicI32::new(-1);

impl Region {
    /// `None` once the table is full: then a fault there has no sentence of its own.
    fn register(thing: Thing, start: usize, guard: usize, page: usize) -> Option<&'static Self> {
        let region = REGIONS.get(USED.fetch_add(1, Ordering::AcqRel))?;
        region.thing.store(thing as u8, Ordering::Release);
        region.guard.store(guard, Ordering::Release);
        region.end.store(guard + page, Ordering::Release);
        region.start.store(start, Ordering::Release);
        Some(region)
    }

    /// What an access at `address` did wrong: words before and after the thing's.
    fn wrong(&self, address: usize) -> Option<(&'static str, &'static str)> {
        let start = self.start.load(Ordering::Acquire);
        if start == 0 || !(start..self.end.load(Ordering::Acquire)).contains(&address) {
            return None;
        }
        Some(if address >= self.guard.load(Ordering::Acquire) {
            ("it went past the end of ", "")
        } else if self.retired.load(Ordering::Acquire) != 0 {
            ("it used ", " after the call had returned")
        } else {
            ("it wrote to ", ", which it may only read")
        })
    }
}

/// From here on, a SIGSEGV or SIGBUS on registered memory writes a line of the kit's protocol
/// to `channel` before it ends the process.
pub(super) fn watch_faults(channel: c_int) {
    CHANNEL.store(channel, Ordering::Release);
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: all bytes zero is a valid `sigaction`; the handler has the type that
        // SA_SIGINFO asks for and does only what a handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction =
                on_fault as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Only loads of atomics, `write` and `raise`: all are allowed in a handler.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let used = USED.load(Ordering::Acquire).min(MOST_REGIONS);
    // Newest first: a retired mapping never shares its address with a newer one, but the
    // newest is the likeliest.
    let found = REGIONS[..used]
        .iter()
        .rev()
        .find_map(|region| region.wrong(address).map(|words| (region, words)));
    if let Some((region, words)) = found {
        report(region, words);
    }
    // SA_RESETHAND took this handler away, so that the signal, delivered as soon as this
    // returns, ends the process: also where somebody sent it, and no access repeats itself.
    // SAFETY: `raise` may be called from a handler.
    unsafe { libc::raise(signal) };
}

/// Writes the line; called by the handler.
fn report(region: &Region, (before, after): (&str, &str)) {
    let thing = usize::from(region.thing.load(Ordering::Acquire));
    let words = WORDS.get(thing).copied().unwrap_or_default();
    for text in [
        "\n",
        super::child::MARK,
        "{\"fault\":\"",
        before,
        words,
        after,
        "\"}\n",
    ] {
        // SAFETY: `write` is safe in a handler, and the text is static. Nobody can be told
        // where it fails.
        unsafe {
            libc::write(
                CHANNEL.load(Ordering::Acquire),
                text.as_ptr().cast(),
                text.len(),
            )
        };
    }
}
