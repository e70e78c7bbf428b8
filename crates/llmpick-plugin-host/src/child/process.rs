//! Our end: start a child, ask it, notice what became of it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use llmpick_plugin_abi as abi;

use super::ARGUMENT;
use super::wire::{HEAD, In, Out, op};
use crate::call::CallError;
use crate::context::{Journal, LOG_MARK, clean};

/// Most bytes of an answer before a snapshot's size is known.
const SMALL: usize = 16 << 20;
/// How long a dead child may take to be gone.
const BURIAL: Duration = Duration::from_millis(200);
/// How long a child may take to end well when it is needed no more.
const FAREWELL: Duration = Duration::from_millis(200);
/// Variables that a child keeps; others may hold keys.
const KEPT: &[&str] = &[
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "RUST_BACKTRACE",
];

/// A child that answers calls, one at a time.
pub(super) struct Process {
    child: Child,
    socket: UnixStream,
    /// What the socket's timeout is set to.
    timeout: Duration,
    out: Out,
    inbox: Vec<u8>,
    chunk: Vec<u8>,
    most: usize,
    stderr: Stderr,
    /// Why it answers no more.
    lost: Option<String>,
}

/// Why there is no answer.
enum Loss {
    Late,
    Ended,
    Garbled,
}

impl Process {
    /// Starts `program` as a child; `label` names it in the log.
    pub(super) fn start(program: &Path, label: &str) -> std::io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut command = Command::new(program);
        command
            .arg0("llmpick-plugin")
            .arg(ARGUMENT)
            .arg(std::process::id().to_string())
            .env_clear()
            .envs(
                KEPT.iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C at our terminal is for us to act on.
            .process_group(0);
        let mut child = spawn(command)?;
        let stderr = match child.stderr.take() {
            Some(pipe) => Stderr::follow(pipe, label),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        let stderr = stderr.inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Self {
            child,
            socket,
            timeout: Duration::ZERO,
            out: Out::default(),
            inbox: Vec::new(),
            chunk: vec![0; 32 << 10],
            most: SMALL,
            stderr,
            lost: None,
        })
    }

    /// The frame to ask with.
    pub(super) fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    /// Answers may have so many bytes.
    pub(super) fn accept_up_to(&mut self, bytes: usize) {
        self.most = bytes;
    }

    /// Why it answers no more.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Sends the frame and waits for the answer. A child that is late, dead or talks nonsense
    /// is ended, which counts as a panic: another one has to be made.
    pub(super) fn ask(&mut self, deadline: Duration) -> Result<In<'_>, CallError> {
        if let Some(lost) = &self.lost {
            return Err(panicked(lost.clone()));
        }
        match self.exchange(deadline) {
            Ok(code) if code as abi::Status == abi::OK => Ok(In(&self.inbox[HEAD..])),
            Ok(code) => {
                let text = In(&self.inbox[HEAD..]).bytes().unwrap_or_default();
                Err(CallError {
                    status: code as abi::Status,
                    message: clean(&text[..text.len().min(4096)]),
                })
            }
            Err(loss) => Err(self.lose(loss, deadline)),
        }
    }

    /// Ends a child whose answer made no sense.
    pub(super) fn garbled(&mut self) -> CallError {
        self.lose(Loss::Garbled, Duration::ZERO)
    }

    fn exchange(&mut self, deadline: Duration) -> Result<u32, Loss> {
        let end = Instant::now() + deadline;
        self.limit(deadline)?;
        let written = self.socket.write_all(self.out.end());
        written.map_err(|error| loss(&error))?;
        self.inbox.clear();
        loop {
            if let Some(code) = self.whole()? {
                return Ok(code);
            }
            match self.socket.read(&mut self.chunk) {
                Ok(0) => return Err(Loss::Ended),
                Ok(count) => self.inbox.extend_from_slice(&self.chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(loss(&error)),
            }
            if self.whole()?.is_none() {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Loss::Late);
                }
                self.limit(left)?;
            }
        }
    }

    /// The code of a frame that has arrived in full.
    fn whole(&self) -> Result<Option<u32>, Loss> {
        let mut head = In(&self.inbox);
        let (Ok(body), Ok(code)) = (head.u32(), head.u32()) else {
            return Ok(None);
        };
        let (body, here) = (body as usize, self.inbox.len() - HEAD);
        match here.cmp(&body) {
            _ if body > self.most => Err(Loss::Garbled),
            std::cmp::Ordering::Less => Ok(None),
            std::cmp::Ordering::Equal => Ok(Some(code)),
            std::cmp::Ordering::Greater => Err(Loss::Garbled),
        }
    }

    /// Sets the socket's timeouts, which is a call to the kernel, only where they change.
    fn limit(&mut self, timeout: Duration) -> Result<(), Loss> {
        let timeout = timeout.max(Duration::from_millis(1));
        if self.timeout != timeout {
            let set = self
                .socket
                .set_read_timeout(Some(timeout))
                .and_then(|()| self.socket.set_write_timeout(Some(timeout)));
            set.map_err(|_| Loss::Ended)?;
            self.timeout = timeout;
        }
        Ok(())
    }

    fn lose(&mut self, loss: Loss, deadline: Duration) -> CallError {
        let why = match loss {
            Loss::Late => {
                self.kill();
                format!("it did not answer within {deadline:?}")
            }
            Loss::Garbled => {
                self.kill();
                "its process sent what is no answer".to_owned()
            }
            Loss::Ended => {
                let status = self.bury();
                let end = status.map_or("its process hung up".to_owned(), describe);
                match self.stderr.last_words() {
                    words if words.is_empty() => end,
                    words => format!("{end} (it said: {words})"),
                }
            }
        };
        self.lost = Some(why.clone());
        panicked(why)
    }

    /// How it ended, if it did so by itself.
    fn bury(&mut self) -> Option<ExitStatus> {
        let end = Instant::now() + BURIAL;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.kill();
        None
    }

    /// Ends it and whatever it started.
    fn kill(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // SAFETY: it leads a group of its own and was not waited for, so that its number
            // is still its own.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.lost.is_some() {
            return;
        }
        self.out.begin(op::DESTROY);
        let _ = self.exchange(FAREWELL);
        self.kill();
    }
}

fn panicked(message: String) -> CallError {
    CallError {
        status: abi::E_PANIC,
        message,
    }
}

fn loss(error: &std::io::Error) -> Loss {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    match error.kind() {
        TimedOut | WouldBlock => Loss::Late,
        _ => Loss::Ended,
    }
}

fn describe(status: ExitStatus) -> String {
    let signal = match status.signal() {
        Some(libc::SIGSEGV) => "SIGSEGV: it used memory that is not its own",
        Some(libc::SIGABRT) => "SIGABRT: it gave up",
        Some(libc::SIGBUS) => "SIGBUS: it used memory that is not there",
        Some(libc::SIGILL) => "SIGILL: it ran what is no instruction",
        Some(libc::SIGFPE) => "SIGFPE: it divided by zero",
        Some(libc::SIGKILL) => "SIGKILL: somebody ended it, or memory ran out",
        Some(other) => return format!("its process died of signal {other}"),
        None => {
            return format!(
                "it ended its process with code {}",
                status.code().unwrap_or(-1)
            );
        }
    };
    format!("its process died of {signal}")
}

/// Starts a program from a thread that lives as long as we do: a child asks the kernel to be
/// ended with the thread that started it.
fn spawn(command: Command) -> std::io::Result<Child> {
    type Wish = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Wish>>> = OnceLock::new();
    let begin = || {
        let (send, wishes) = channel::<Wish>();
        let serve = move || {
            for (mut command, reply) in wishes {
                let _ = reply.send(command.spawn());
            }
        };
        let thread = std::thread::Builder::new().name("plugin:spawner".to_owned());
        // Without the thread the channel is closed, and every wish fails below.
        let _ = thread.spawn(serve);
        Mutex::new(send)
    };
    let (reply, hear) = channel();
    let spawner = SPAWNER.get_or_init(begin);
    let spawner = spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let gone = || std::io::Error::other("there is no thread to start processes");
    spawner.send((command, reply)).map_err(|_| gone())?;
    hear.recv().map_err(|_| gone())?
}

/// What a child prints: lines of its log, and whatever else.
struct Stderr {
    words: Arc<Mutex<VecDeque<String>>>,
    ended: Receiver<()>,
}

/// Lines that are remembered of what a child prints, and bytes of each.
const WORDS: usize = 3;
const LINE: usize = 400;

impl Stderr {
    fn follow(mut pipe: ChildStderr, label: &str) -> std::io::Result<Self> {
        let words: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let (end, ended) = sync_channel(1);
        let (kept, journal) = (Arc::clone(&words), Journal::new(label));
        let follow = move || {
            let (mut line, mut chunk) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                for &byte in &chunk[..count] {
                    match byte {
                        b'\n' => {
                            take_line(&line, &journal, &kept);
                            line.clear();
                        }
                        byte if line.len() < 4 * LINE => line.push(byte),
                        _ => {}
                    }
                }
            }
            take_line(&line, &journal, &kept);
            let _ = end.send(());
        };
        let thread = std::thread::Builder::new().name("plugin:stderr".to_owned());
        thread.spawn(follow)?;
        Ok(Self { words, ended })
    }

    /// The last lines that were no log, of a child that is dead.
    fn last_words(&self) -> String {
        let _ = self.ended.recv_timeout(Duration::from_millis(50));
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.join("; ")
    }
}

fn take_line(line: &[u8], journal: &Journal, words: &Mutex<VecDeque<String>>) {
    if let [LOG_MARK, level @ b'1'..=b'5', message @ ..] = line {
        return journal.write(u32::from(level - b'0'), &clean(message));
    }
    let line = clean(&line[..line.len().min(LINE)]);
    if line.is_empty() {
        return;
    }
    journal.write(abi::LOG_DEBUG, &line);
    let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
    if words.len() >= WORDS {
        words.pop_front();
    }
    words.push_back(line);
}
