//! The router's library is replaced under a daemon that serves, by real builds of real
//! libraries.

#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use futures::StreamExt;
use llmpick_core::{Backend, Message, Score};
use llmpick_daemon::client::{ChatCall, ChatEvent, Client, ClientError};
use llmpick_daemon::dispatch::Dispatch;
use llmpick_daemon::{App, AppOptions, Paths, Server, Settings, SettingsSources, plugins};
use llmpick_testkit::{Answer, FakeBackend};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;

/// Builds `moody`, which chooses the best arm it has heard of, over whatever is at `path`.
fn build(path: &Utf8Path, flags: &[&str]) {
    build_of("moody.c", path, flags);
}

fn build_of(source: &str, path: &Utf8Path, flags: &[&str]) {
    let root = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let fresh = path.with_extension("new");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-I"])
        .arg(root.join("crates/llmpick-plugin-abi/include"))
        .args(flags)
        .arg("-o")
        .arg(&fresh)
        .arg(root.join("tests/plugins").join(source))
        .arg("-lm")
        .output()
        .expect("a C compiler named `cc` is needed for the fixtures");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    std::fs::rename(fresh, path).unwrap();
}

struct Daemon {
    _folder: TempDir,
    library: Utf8PathBuf,
    settings: Settings,
    client: Client,
    dispatch: Arc<Dispatch>,
    _stop: oneshot::Sender<()>,
}

impl Daemon {
    async fn start(flags: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_path_buf()).unwrap();
        let library = root.join("moody.so");
        build(&library, &[]);
        let own = [("server.tcp", ""), ("router.plugin", library.as_str())];
        let given = own.iter().chain(flags);
        let sources = SettingsSources {
            overrides: given
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            directory: root.clone(),
            system_file: root.join("none.toml"),
            ..SettingsSources::default()
        };
        let settings = Settings::load_with(sources, Paths::below(root.join("h"))).unwrap();
        let app = App::open(settings.clone(), AppOptions::default()).unwrap();
        let dispatch = Arc::clone(app.dispatch());
        let arm = |id| Arc::new(FakeBackend::new(id, Answer::text("so it is"))) as Arc<dyn Backend>;
        dispatch.set_arms(vec![arm("a"), arm("b")]).unwrap();
        let server = Server::bind(app).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let client = Client::connect(&settings.server.socket).await.unwrap();
        Self {
            _folder: folder,
            library,
            settings,
            client,
            dispatch,
            _stop: stop,
        }
    }

    /// Asks for a model and grades the answer, if so wanted. Answers which arm it was and why.
    async fn ask(&self, model: &str, grade: Option<f64>) -> (String, String) {
        let call = ChatCall {
            model: Some(model.to_owned()),
            messages: vec![Message::user("is it so?")],
            ..ChatCall::default()
        };
        let mut events = self.client.chat(&call).await.unwrap();
        let mut done = None;
        while let Some(event) = events.next().await {
            if let ChatEvent::Done(end) = event.unwrap() {
                done = Some(end);
            }
        }
        let done = done.unwrap();
        if let Some(grade) = grade {
            let score = Score::new(grade).unwrap();
            self.client.feedback(done.route_id, score).await.unwrap();
        }
        let record = self.dispatch.route_record(done.route_id).unwrap();
        (done.model, record.decision.unwrap().reason)
    }

    /// Teaches it that `b` is the better one, which no fresh instance would choose first.
    async fn teach(&self) {
        assert_eq!(self.auto().await, ("a".to_owned(), "best".to_owned()));
        self.ask("a", Some(0.2)).await;
        self.ask("b", Some(0.9)).await;
        assert_eq!(self.auto().await, ("b".to_owned(), "best".to_owned()));
    }

    async fn auto(&self) -> (String, String) {
        self.ask("auto", None).await
    }

    async fn refused(&self) -> String {
        match self.client.reload_plugin().await {
            Err(ClientError::Refused {
                status: 409,
                message,
                ..
            }) => message,
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn reload(&self) -> Value {
        self.client.reload_plugin().await.unwrap()
    }

    fn trust(&self) -> String {
        let pin = plugins::lock(&self.settings).trust(&self.library).unwrap();
        pin.sha256
    }

    /// Waits until another build decides.
    async fn until(&self, reason: &str) -> String {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let (arm, why) = self.auto().await;
            if why == reason {
                return arm;
            }
            assert!(Instant::now() < end, "still `{why}`");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_command_with_what_was_learnt_and_only_what_is_trusted() {
    let daemon = Daemon::start(&[]).await;
    daemon.teach().await;
    let first = daemon.client.plugins().await.unwrap()["sha256"].clone();
    let best = |reason: &str| ("b".to_owned(), reason.to_owned());

    // Another build, which nobody has trusted yet.
    build(&daemon.library, &["-DREASON=\"newer\""]);
    let refused = daemon.refused().await;
    assert!(
        refused.contains("it changed since it was trusted"),
        "{refused}"
    );
    assert!(refused.contains("llmpick plugin trust"), "{refused}");
    assert_eq!(daemon.auto().await, best("best"), "the old one goes on");
    let second = daemon.trust();
    let reloaded = daemon.reload().await;
    assert_eq!(reloaded["kept"], true, "{reloaded}");
    assert_eq!(
        (&reloaded["before"], &reloaded["sha256"]),
        (&first, &second.into())
    );
    assert_eq!(daemon.auto().await, best("newer"), "with what was learnt");

    // One that does not read the old state learns it from the ledger.
    build(
        &daemon.library,
        &["-DREASON=\"newest\"", "-DSTATE_VERSION=2"],
    );
    daemon.trust();
    let reloaded = daemon.reload().await;
    assert_eq!(reloaded["kept"], false, "{reloaded}");
    assert!(reloaded["replayed"].as_u64().unwrap() >= 4, "{reloaded}");
    let reason = reloaded["reason"].as_str().unwrap();
    assert!(reason.contains("it has version 1"), "{reason}");
    assert_eq!(daemon.auto().await, best("newest"));

    // What cannot be used changes nothing: no module, no start, no hand-over.
    let broken: [(&str, &[&str], &str); 3] = [
        (
            "module.c",
            &["-DFAULT=WRONG_MAGIC"],
            "does not return an llmpick module",
        ),
        (
            "moody.c",
            &["-DREASON=\"x\"", "-DNEVER_STARTS"],
            "start plugin `moody`",
        ),
        (
            "moody.c",
            &["-DREASON=\"x\"", "-DSTATE_VERSION=2", "-DBREAKS_OVER_STATE"],
            "the old one goes on",
        ),
    ];
    for (source, flags, expected) in broken {
        build_of(source, &daemon.library, flags);
        daemon.trust();
        let refused = daemon.refused().await;
        assert!(refused.contains(expected), "{refused}");
        assert_eq!(daemon.auto().await, best("newest"), "{expected}");
    }
    assert_eq!(daemon.client.plugins().await.unwrap()["fault"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_file_changes_and_on_sighup() {
    let flags = [("plugins.watch", "true"), ("plugins.pin", "false")];
    let daemon = Daemon::start(&flags).await;
    daemon.teach().await;
    build(&daemon.library, &["-DREASON=\"seen\""]);
    assert_eq!(daemon.until("seen").await, "b");

    let daemon = Daemon::start(&[("plugins.pin", "false")]).await;
    daemon.teach().await;
    build(&daemon.library, &["-DREASON=\"told\""]);
    assert_eq!(daemon.auto().await.1, "best", "nobody said anything yet");
    let own = std::process::id().to_string();
    let sent = Command::new("kill").args(["-HUP", &own]).status().unwrap();
    assert!(sent.success());
    assert_eq!(daemon.until("told").await, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_its_router_gets_it_by_a_reload() {
    let folder = TempDir::new().unwrap();
    let root = Utf8PathBuf::from_path_buf(folder.path().to_path_buf()).unwrap();
    let library = root.join("late.so");
    let sources = SettingsSources {
        overrides: vec![("router.plugin".to_owned(), library.to_string())],
        directory: root.clone(),
        system_file: root.join("none.toml"),
        ..SettingsSources::default()
    };
    let settings = Settings::load_with(sources, Paths::below(root.join("h"))).unwrap();
    let tolerant = AppOptions {
        tolerate_plugin: true,
    };
    let app = App::open(settings, tolerant).unwrap();
    assert!(app.router_fault().unwrap().contains("late.so"));
    assert!(app.reload_router().is_err());
    build(&library, &[]);
    let reloaded = app.reload_router().unwrap();
    assert_eq!((reloaded.router.as_str(), reloaded.before), ("moody", None));
    assert!(!reloaded.kept && reloaded.replayed == 0);
    assert_eq!(
        (app.router_fault(), app.router_sha256()),
        (None, Some(reloaded.sha256))
    );
}
