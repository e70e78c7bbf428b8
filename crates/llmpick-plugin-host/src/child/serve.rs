//! The child's end: one plugin, called through its header as everywhere, for whoever asks on
//! the socket that is our stdin.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use llmpick_plugin_abi as abi;
use serde_json::Value;

use super::wire::{Garbled, HEAD, In, Out, op};
use crate::PluginKind;
use crate::call::CallError;
use crate::instance::{RouterInstance, ScorerInstance};
use crate::library::{Loaded, Table, digest, load_bytes};

/// Answers until nobody asks any more, and ends the process.
pub(super) fn run(parent: Option<u32>) -> ! {
    die_with(parent);
    let code = match take_socket() {
        Ok(socket) => serve(socket),
        Err(_) => 1,
    };
    // SAFETY: ends the process; what the plugin wanted done at its end it said in `destroy`.
    unsafe { libc::_exit(code) }
}

fn serve(mut socket: UnixStream) -> i32 {
    let (mut server, mut out) = (Server::default(), Out::default());
    let mut body = Vec::new();
    while let Some(code) = read_frame(&mut socket, &mut body) {
        server.answer(code, &body, &mut out);
        if socket.write_all(out.end()).is_err() {
            break;
        }
    }
    0
}

fn read_frame(socket: &mut UnixStream, body: &mut Vec<u8>) -> Option<u32> {
    let mut head = [0; HEAD];
    socket.read_exact(&mut head).ok()?;
    let mut head = In(&head);
    let (length, code) = (head.u32().ok()?, head.u32().ok()?);
    body.resize(length as usize, 0);
    socket.read_exact(body).ok()?;
    Some(code)
}

#[derive(Default)]
struct Server {
    loaded: Option<Arc<Loaded>>,
    router: Option<RouterInstance>,
    scorer: Option<ScorerInstance>,
    max_snapshot: usize,
}

impl Server {
    /// Leaves the answer's frame in `out`.
    fn answer(&mut self, code: u32, body: &[u8], out: &mut Out) {
        out.begin(abi::OK as u32);
        if let Err(error) = self.run(code, In(body), out) {
            out.begin(error.status as u32).text(&error.message);
        }
    }

    fn run(&mut self, code: u32, mut body: In<'_>, out: &mut Out) -> Result<(), CallError> {
        match code {
            op::LOAD => {
                let bytes = body.bytes()?;
                let loaded = load_bytes(bytes, &digest(bytes));
                let loaded = loaded.map_err(|error| failed(error.to_string()))?;
                let facts = serde_json::to_string(&*loaded.facts);
                out.text(&facts.map_err(|error| failed(error.to_string()))?);
                self.loaded = Some(loaded);
            }
            op::CREATE => {
                let keeps_state = self.create(body)?;
                out.flag(keeps_state);
            }
            op::SELECT => {
                let (request, budget) = body.request()?;
                let raw = self.router()?.select(&request.borrow(), budget)?;
                out.decision(&raw);
            }
            op::FEEDBACK => self.router()?.feedback(&body.feedback()?)?,
            op::SNAPSHOT => {
                let most = self.max_snapshot;
                let snapshot = self.router()?.snapshot(most)?;
                out.u32(snapshot.version).bytes(&snapshot.state);
            }
            op::RESTORE => {
                let (version, state) = (body.u32()?, body.bytes()?.to_vec());
                self.router()?
                    .restore(&llmpick_core::Snapshot { version, state })?;
            }
            op::SCORE => {
                let (outcome, budget) = body.outcome()?;
                let scorer = self.scorer.as_mut().ok_or_else(no_instance)?;
                out.f64(scorer.score(&outcome, budget)?);
            }
            op::DESTROY => (self.router, self.scorer) = (None, None),
            code => return Err(failed(format!("operation {code} is not known"))),
        }
        Ok(())
    }

    fn create(&mut self, mut body: In<'_>) -> Result<bool, CallError> {
        let kind = match body.u32()? {
            abi::KIND_ROUTER => PluginKind::Router,
            _ => PluginKind::Scorer,
        };
        let (name, config) = (body.text()?, body.text()?);
        let config: Value =
            serde_json::from_str(config).map_err(|error| failed(error.to_string()))?;
        crate::context::log_to_parent(body.u32()?);
        self.max_snapshot = usize::try_from(body.u64()?).unwrap_or(usize::MAX);
        let loaded = self.loaded.as_ref().ok_or_else(no_instance)?;
        let wanted = |p: &&crate::PluginInfo| p.kind == kind && p.name == name;
        let plugins = loaded.facts.plugins.iter();
        let (info, table) = plugins
            .zip(&loaded.tables)
            .find(|(info, _)| wanted(info))
            .ok_or_else(|| failed(format!("there is no {kind} `{name}`")))?;
        match *table {
            Table::Router(table) => {
                self.router = Some(RouterInstance::create(info, table, &config)?);
                Ok(table.snapshot.is_some())
            }
            Table::Scorer(table) => {
                self.scorer = Some(ScorerInstance::create(info, table, &config)?);
                Ok(false)
            }
        }
    }

    fn router(&mut self) -> Result<&mut RouterInstance, CallError> {
        self.router.as_mut().ok_or_else(no_instance)
    }
}

impl From<Garbled> for CallError {
    fn from(Garbled: Garbled) -> Self {
        failed("the request is garbled".to_owned())
    }
}

fn failed(message: String) -> CallError {
    CallError {
        status: abi::E_INTERNAL,
        message,
    }
}

fn no_instance() -> CallError {
    failed("there is no instance yet".to_owned())
}

/// Ends with the process that started us, leaves no core file, and has nothing open but the
/// three standard descriptors.
fn die_with(parent: Option<u32>) {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: plain system calls on our own process; nothing else runs in it yet.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        // Where the kernel does not know it, descriptors were closed on exec all the same.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32);
        let alive = u32::try_from(libc::getppid()).ok() == parent;
        if !alive {
            // It died before we could ask to die with it.
            libc::_exit(1);
        }
    }
}

/// Moves the socket away from stdin, where the plugin's code might read from it.
fn take_socket() -> std::io::Result<UnixStream> {
    // SAFETY: stdin is open, or the result says that it is not.
    let descriptor = unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3) };
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let socket = unsafe { UnixStream::from_raw_fd(descriptor) };
    let nothing = File::open("/dev/null")?;
    // SAFETY: both are open; nothing in this process uses stdin.
    if unsafe { libc::dup2(nothing.as_raw_fd(), 0) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(socket)
}
