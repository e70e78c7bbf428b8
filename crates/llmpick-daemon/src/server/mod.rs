//! The daemon: HTTP over a unix socket and TCP.

mod chat;
mod error;
mod guard;
mod plugins;
mod records;
mod reply;
mod request;
mod schedule;
mod socket;
mod task;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use camino::Utf8PathBuf;
use llmpick_remote::Secret;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::{info, warn};

use crate::App;
use crate::scheduling::Sessions;
use crate::settings::read_secret;
use error::ApiError;
use guard::Guard;
use socket::OwnSocket;

/// How long running answers may take to end after we were told to stop.
const DRAIN: Duration = Duration::from_secs(20);

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another daemon answers there.
    #[error("listen on `{path}`: another llmpick answers there already")]
    AlreadyRunning {
        /// The socket.
        path: Utf8PathBuf,
    },
    /// Something else has that name.
    #[error("listen on `{path}`: there is a file of that name which is no socket")]
    NotASocket {
        /// The file.
        path: Utf8PathBuf,
    },
    /// The socket cannot be made.
    #[error("listen on `{path}`")]
    Socket {
        /// The socket.
        path: Utf8PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The port cannot be had.
    #[error("listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Others could reach it, and there is no key.
    #[error(
        "listen on {0}: others can reach this address, so it needs a key: set server.api_key_file"
    )]
    Public(SocketAddr),
    /// The key cannot be read.
    #[error("read the key of server.api_key_file: {0}")]
    Key(String),
    /// A listener broke.
    #[error("serve")]
    Io(#[source] std::io::Error),
}

/// What the handlers share.
pub(crate) struct Serving {
    pub(crate) app: App,
    slots: Arc<Semaphore>,
    /// What is drawn for others, where the settings want that.
    pub(crate) sessions: Option<Mutex<Sessions>>,
    /// Seconds since 1970.
    started: u64,
}

impl Serving {
    /// A place for one answer, or 429.
    fn admit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            let most = self.app.settings().server.max_requests;
            ApiError::busy(format!("{most} requests are being answered already"))
        })
    }
}

/// A daemon that has its addresses and does not answer yet.
pub struct Server {
    serving: Arc<Serving>,
    socket: OwnSocket,
    tcp: Option<(TcpListener, Guard)>,
}

/// Serves until SIGINT or SIGTERM, then ends running answers, saves what was learnt and
/// takes the socket away. A second signal ends at once.
pub async fn serve(app: App) -> Result<(), ServeError> {
    let server = Server::bind(app).await?;
    server.run(stop_signal()).await
}

impl Server {
    /// Takes the addresses of the settings.
    pub async fn bind(app: App) -> Result<Self, ServeError> {
        let settings = app.settings().server.clone();
        let key = match &settings.api_key_file {
            None => None,
            Some(path) => Some(read_secret(path).map_err(ServeError::Key)?),
        };
        // The port first: where it is taken, no socket appears and goes away again.
        let tcp = match settings.tcp {
            None => None,
            Some(address) => Some(bind_tcp(address, key).await?),
        };
        let socket = socket::bind(&settings.socket).await?;
        let serving = Arc::new(Serving {
            slots: Arc::new(Semaphore::new(settings.max_requests)),
            sessions: app
                .settings()
                .scheduler
                .enabled
                .then(|| Mutex::new(Sessions::new(app.settings().scheduler.sessions))),
            app,
            started: chat::now(),
        });
        Ok(Self {
            serving,
            socket,
            tcp,
        })
    }

    /// Where TCP clients find us; the port is the real one where the settings said 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|(_, guard)| guard.address)
    }

    /// Answers until `stop` is ready.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let (stopping, stopped) = watch::channel(false);
        let routes = routes(&self.serving);
        let mut listeners = tokio::task::JoinSet::new();
        if let Some(listener) = self.socket.listener.take() {
            listeners.spawn(on_unix(listener, routes.clone(), stopped.clone()));
        }
        if let Some((listener, guard)) = self.tcp.take() {
            info!(address = %guard.address, "listening");
            let routes = routes.layer(middleware::from_fn_with_state(
                Arc::new(guard),
                guard::check,
            ));
            listeners.spawn(on_tcp(listener, routes, stopped));
        }
        let fresh = tokio::spawn(plugins::keep_fresh(Arc::clone(&self.serving)));
        let broken = tokio::select! {
            () = stop => None,
            ended = listeners.join_next() => ended,
        };
        fresh.abort();
        info!("stopping, running answers are ended first");
        // Nobody listens where all listeners broke; then there is nobody to tell.
        let _ = stopping.send(true);
        let drained = tokio::time::timeout(DRAIN, async {
            while listeners.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            warn!(after = ?DRAIN, "answers were cut off");
            listeners.shutdown().await;
        }
        self.serving.app.close().await;
        match broken {
            Some(Ok(Err(source))) => Err(ServeError::Io(source)),
            _ => Ok(()),
        }
    }
}

async fn bind_tcp(
    address: SocketAddr,
    key: Option<Secret>,
) -> Result<(TcpListener, Guard), ServeError> {
    if !address.ip().is_loopback() && key.is_none() {
        return Err(ServeError::Public(address));
    }
    let failed = |source| ServeError::Tcp { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, Guard { key, address }))
}

async fn on_unix(
    listener: UnixListener,
    routes: Router,
    stopped: watch::Receiver<bool>,
) -> std::io::Result<()> {
    axum::serve(listener, routes)
        .with_graceful_shutdown(told(stopped))
        .await
}

async fn on_tcp(
    listener: TcpListener,
    routes: Router,
    stopped: watch::Receiver<bool>,
) -> std::io::Result<()> {
    use axum::serve::ListenerExt;
    // Tokens are small and late ones are noticed.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, routes)
        .with_graceful_shutdown(told(stopped))
        .await
}

async fn told(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a reason to stop as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn routes(serving: &Arc<Serving>) -> Router {
    let limit = serving.app.settings().server.body_limit;
    Router::new()
        .route("/health", get(records::health))
        .route("/v1/models", get(records::models))
        .route("/v1/models/{*id}", get(records::model))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/llmpick/v1/task", post(task::task))
        .route("/llmpick/v1/feedback", post(records::feedback))
        .route("/llmpick/v1/routes/{id}", get(records::route))
        .route("/llmpick/v1/arms", get(records::arms))
        .route("/llmpick/v1/arms/reload", post(records::reload_arms))
        .route("/llmpick/v1/plugins", get(plugins::status))
        .route("/llmpick/v1/plugins/reload", post(plugins::reload))
        .route("/llmpick/v1/schedule", post(schedule::schedule))
        .fallback(nothing_here)
        .method_not_allowed_fallback(|| async { ApiError::method() })
        .layer(DefaultBodyLimit::max(limit))
        .layer(middleware::from_fn_with_state(
            Arc::clone(serving),
            in_our_words,
        ))
        .with_state(Arc::clone(serving))
}

async fn nothing_here(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    ApiError::not_found(format!("there is nothing at `{path}`"))
}

/// The one refusal that the framework words itself gets an error object like all others.
async fn in_our_words(
    State(serving): State<Arc<Serving>>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::too_large(serving.app.settings().server.body_limit).into_response();
    }
    response
}

/// SIGINT or SIGTERM; the next one ends the process without further ado.
async fn stop_signal() {
    one_signal().await;
    tokio::spawn(async {
        one_signal().await;
        std::process::exit(130);
    });
}

async fn one_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            // Without a handler the default action ends the process, which is what is wanted.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}
