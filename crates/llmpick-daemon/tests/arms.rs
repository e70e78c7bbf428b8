//! Arms come, go and change their price under a daemon that serves: remote ones behind real
//! sockets, local ones from real files.

#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

#[allow(dead_code, reason = "shared with the engine's tests")]
#[path = "../../llmpick-engine/tests/common/tiny.rs"]
mod tiny;

use std::convert::Infallible;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::sse::{Event, Sse};
use axum::routing::post;
use camino::{Utf8Path, Utf8PathBuf};
use futures::{StreamExt, stream};
use llmpick_core::{
    Event as Written, FinishReason, GenerateRequest, Message, Price, Prompt, Sampling, Score,
};
use llmpick_daemon::client::{ChatCall, ChatDone, ChatEvent, ChatStream, Client, ClientError};
use llmpick_daemon::dispatch::{Dispatch, StatsFilter};
use llmpick_daemon::ledger::RouteRecord;
use llmpick_daemon::{App, AppError, AppOptions, Paths, Server, Settings, SettingsSources};
use serde_json::{Value, json};
use tempfile::TempDir;
use tiny::Tiny;
use tokio::sync::{Notify, oneshot};

/// A provider that answers "so", waits if it is told to, and goes on.
struct Provider {
    base_url: String,
    /// Lets an answer to "slowly" go on.
    go_on: Arc<Notify>,
}

const TOKENS: u32 = 50;

impl Provider {
    async fn start() -> Self {
        let go_on = Arc::new(Notify::new());
        let gate = Arc::clone(&go_on);
        let answer = move |axum::Json(body): axum::Json<Value>| {
            let slowly = body["messages"].to_string().contains("slowly");
            let gate = Arc::clone(&gate);
            let chunk = |text: &str| json!({"choices": [{"index": 0, "delta": {"content": text}}]});
            let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
            let usage = json!({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": TOKENS, "total_tokens": 60}});
            let parts = [chunk("so"), chunk(" it is"), end, usage].map(|part| part.to_string());
            let parts = parts.into_iter().chain(["[DONE]".to_owned()]).enumerate();
            let events = stream::iter(parts).then(move |(index, part)| {
                let gate = Arc::clone(&gate);
                async move {
                    if slowly && index == 1 {
                        gate.notified().await;
                    }
                    Ok::<_, Infallible>(Event::default().data(part))
                }
            });
            async move { Sse::new(events) }
        };
        let routes = axum::Router::new().route("/v1/chat/completions", post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { base_url, go_on }
    }

    /// It as an arm in the settings; a price in dollars per million completion tokens.
    fn arm(&self, name: &str, usd: f64) -> String {
        format!(
            "[[remote]]\nname = \"{name}\"\nbase_url = \"{}\"\nmodel = \"m\"\n\
             output_usd_per_mtok = {usd}\n",
            self.base_url
        )
    }
}

/// `moody` chooses the best arm it has heard of.
fn build_moody(root: &Utf8Path) -> Utf8PathBuf {
    let source = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let library = root.join("moody.so");
    let built = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-I"])
        .arg(source.join("crates/llmpick-plugin-abi/include"))
        .arg("-o")
        .arg(&library)
        .arg(source.join("tests/plugins/moody.c"))
        .arg("-lm")
        .status()
        .expect("a C compiler named `cc` is needed for the fixtures");
    assert!(built.success());
    library
}

fn root(folder: &TempDir) -> Utf8PathBuf {
    Utf8PathBuf::from_path_buf(folder.path().to_path_buf()).unwrap()
}

fn write_settings(root: &Utf8Path, text: &str) {
    let file = Paths::below(root.join("h")).config_file();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text).unwrap();
}

fn open(root: &Utf8Path, flags: &[(&str, &str)]) -> App {
    let sources = SettingsSources {
        overrides: flags
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        directory: root.to_owned(),
        system_file: root.join("none.toml"),
        ..SettingsSources::default()
    };
    let settings = Settings::load_with(sources, Paths::below(root.join("h"))).unwrap();
    let tolerant = AppOptions {
        tolerate_plugin: true,
    };
    App::open(settings, tolerant).unwrap()
}

struct Daemon {
    root: Utf8PathBuf,
    client: Client,
    dispatch: Arc<Dispatch>,
    _folder: TempDir,
    _stop: oneshot::Sender<()>,
}

impl Daemon {
    async fn start(remotes: &[String]) -> Self {
        let folder = TempDir::new().unwrap();
        let root = root(&folder);
        let library = build_moody(&root);
        write_settings(&root, &settings_of(remotes));
        let flags = [("server.tcp", ""), ("router.plugin", library.as_str())];
        let app = open(&root, &flags);
        assert_eq!(app.router_fault(), None);
        let socket = app.settings().server.socket.clone();
        let dispatch = Arc::clone(app.dispatch());
        let server = Server::bind(app).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let client = Client::connect(&socket).await.unwrap();
        Self {
            root,
            client,
            dispatch,
            _folder: folder,
            _stop: stop,
        }
    }

    async fn stream(&self, model: &str, prompt: &str) -> Result<ChatStream, ClientError> {
        let call = ChatCall {
            model: Some(model.to_owned()),
            messages: vec![Message::user(prompt)],
            ..ChatCall::default()
        };
        self.client.chat(&call).await
    }

    async fn ask(&self, model: &str) -> (ChatDone, RouteRecord) {
        let (text, done) = finish(self.stream(model, "is it?").await.unwrap()).await;
        assert_eq!(text, "so it is");
        let record = self.dispatch.route_record(done.route_id).unwrap();
        (done, record)
    }

    async fn teach(&self, model: &str, grade: f64) {
        let (done, _) = self.ask(model).await;
        let score = Score::new(grade).unwrap();
        self.client.feedback(done.route_id, score).await.unwrap();
    }

    async fn reload(&self, remotes: &[String]) -> Value {
        write_settings(&self.root, &settings_of(remotes));
        self.client.reload_arms().await.unwrap()
    }

    async fn refused(&self, text: &str) -> String {
        write_settings(&self.root, text);
        match self.client.reload_arms().await {
            Err(ClientError::Refused {
                status: 409,
                message,
                ..
            }) => message,
            other => panic!("not refused: {other:?}"),
        }
    }
}

fn settings_of(remotes: &[String]) -> String {
    format!("[pool]\narms = []\n{}", remotes.concat())
}

/// The rest of an answer.
async fn finish(mut events: ChatStream) -> (String, ChatDone) {
    let mut text = String::new();
    while let Some(event) = events.next().await {
        match event.unwrap() {
            ChatEvent::Text(more) => text.push_str(&more),
            ChatEvent::Done(done) => return (text, done),
        }
    }
    panic!("no end after `{text}`");
}

fn names(record: &RouteRecord) -> Vec<String> {
    let candidates = record.candidates.iter();
    candidates
        .map(|known| known.candidate.id.to_string())
        .collect()
}

fn est_cost(record: &RouteRecord, arm: &str) -> f64 {
    let mut candidates = record.candidates.iter().map(|known| &known.candidate);
    candidates.find(|c| c.id.as_str() == arm).unwrap().est_cost
}

#[tokio::test(flavor = "multi_thread")]
async fn remotes_come_change_their_price_go_and_come_back_with_what_was_learnt() {
    let provider = Provider::start().await;
    let near = provider.arm("near", 1.0);
    let far = |usd| provider.arm("far", usd);
    let daemon = Daemon::start(std::slice::from_ref(&near)).await;
    daemon.teach("near", 0.4).await;
    assert_eq!(names(&daemon.ask("auto").await.1), ["near"]);

    // Another arm in the file is nobody's before the word is said, and everybody's after.
    write_settings(&daemon.root, &settings_of(&[near.clone(), far(2.0)]));
    assert!(daemon.stream("far", "?").await.is_err());
    let reloaded = daemon.reload(&[near.clone(), far(2.0)]).await;
    assert_eq!(reloaded["arms"], json!(["near", "far"]));
    assert_eq!(reloaded["added"], json!(["far"]));
    assert_eq!(reloaded["changed"], json!([]));
    assert_eq!(reloaded["needs_restart"], json!([]));
    daemon.teach("far", 0.9).await;
    let (done, before) = daemon.ask("auto").await;
    assert_eq!(done.model, "far");
    assert_eq!(names(&before), ["near", "far"]);

    // Another price, while an answer at the old one is being written.
    let mut running = daemon.stream("far", "slowly").await.unwrap();
    let first = running.next().await.unwrap().unwrap();
    assert!(matches!(first, ChatEvent::Text(text) if text == "so"));
    let reloaded = daemon.reload(&[near.clone(), far(20.0)]).await;
    assert_eq!(reloaded["repriced"], json!(["far"]));
    assert_eq!(reloaded["changed"], json!([]), "the same connection");
    let (done, after) = daemon.ask("auto").await;
    let ratio = est_cost(&after, "far") / est_cost(&before, "far");
    assert!((ratio - 10.0).abs() < 1e-9, "{ratio}");
    assert_eq!(est_cost(&after, "near"), est_cost(&before, "near"));
    let bill = |usd: f64| f64::from(TOKENS) * usd / 1e6;
    assert!((done.cost_usd - bill(20.0)).abs() < 1e-12, "{done:?}");

    // What cannot be read changes nothing, and is told with its place.
    let refused = daemon
        .refused("[pool]\narms = []\n[router]\nmax_arms = 0\n")
        .await;
    assert!(refused.contains("line 4"), "{refused}");
    assert!(refused.contains("the old arms go on"), "{refused}");
    assert_eq!(daemon.ask("auto").await.0.model, "far");

    // Gone, with one answer still on its way.
    let reloaded = daemon.reload(std::slice::from_ref(&near)).await;
    assert_eq!(reloaded["removed"], json!(["far"]));
    let (done, record) = daemon.ask("auto").await;
    assert_eq!(
        (done.model.as_str(), names(&record)),
        ("near", vec!["near".to_owned()])
    );
    provider.go_on.notify_one();
    let (text, done) = finish(running).await;
    assert_eq!((text.as_str(), done.model.as_str()), (" it is", "far"));
    assert!(
        (done.cost_usd - bill(2.0)).abs() < 1e-12,
        "the price it began with: {done:?}"
    );
    let stats = daemon.dispatch.stats(&StatsFilter::default()).unwrap();
    assert!(stats.iter().any(|stats| stats.arm.as_str() == "far"));

    // Back by the signal, and at once the best again: nobody forgot it.
    let text = settings_of(&[near, far(2.0)]).replace("[pool]", "[router]\nseed = 7\n[pool]");
    write_settings(&daemon.root, &text);
    let own = std::process::id().to_string();
    let sent = Command::new("kill").args(["-HUP", &own]).status().unwrap();
    assert!(sent.success());
    let end = Instant::now() + Duration::from_secs(30);
    while daemon.dispatch.arms().len() < 2 {
        assert!(Instant::now() < end, "the signal was not heard");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.ask("auto").await.0.model, "far");
    let reloaded = daemon.client.reload_arms().await.unwrap();
    for nothing in ["added", "removed", "repriced", "changed"] {
        assert_eq!(reloaded[nothing], json!([]), "{nothing}");
    }
    assert_eq!(reloaded["needs_restart"], json!(["router.seed"]));
}

fn pool(arms: &[&Utf8Path], compute: &str) -> String {
    format!("[pool]\narms = {arms:?}\n[compute]\nthreads = 1\n{compute}")
}

fn write_model(root: &Utf8Path, architecture: &'static str) -> Utf8PathBuf {
    let path = Tiny::new(architecture).write(root.as_std_path());
    Utf8PathBuf::from_path_buf(path).unwrap()
}

fn is_warm(app: &App, arm: &str) -> bool {
    app.arm(arm).unwrap().state().warm
}

#[tokio::test(flavor = "multi_thread")]
async fn loaded_weights_stay_where_only_the_price_changed() {
    let folder = TempDir::new().unwrap();
    let root = root(&folder);
    let model = write_model(&root, "llama");
    let other = write_model(&root, "qwen2");
    write_settings(&root, &pool(&[&model], "usd_per_hour = 1"));
    let app = open(&root, &[]);
    let before = app.arm("llama").unwrap();
    before.warm_up().await.unwrap();

    write_settings(&root, &pool(&[&model], "usd_per_hour = 3"));
    let reloaded = app.reload_arms().unwrap();
    assert_eq!((reloaded.repriced.len(), reloaded.changed.len()), (1, 0));
    let after = app.arm("llama").unwrap();
    assert_eq!(after.arm().price, Price::PerHour { usd: 3.0 });
    assert_eq!(before.arm().price, Price::PerHour { usd: 1.0 });
    assert_eq!(after.arm().context_tokens, before.arm().context_tokens);
    assert!(is_warm(&app, "llama"));
    // Back at the first price it is the first object.
    write_settings(&root, &pool(&[&model], "usd_per_hour = 1"));
    app.reload_arms().unwrap();
    assert!(Arc::ptr_eq(&app.arm("llama").unwrap(), &before));

    // A model from outside of the pool is loaded already when it joins.
    app.local_backend(other.as_str())
        .unwrap()
        .warm_up()
        .await
        .unwrap();
    write_settings(&root, &pool(&[&model, &other], "usd_per_hour = 3"));
    let reloaded = app.reload_arms().unwrap();
    assert_eq!(reloaded.added.len(), 1);
    let joined = app.arm("qwen2").unwrap();
    assert_eq!(joined.arm().price, Price::PerHour { usd: 3.0 });
    assert!(is_warm(&app, "qwen2") && is_warm(&app, "llama"));

    // Run another way, it is loaded anew.
    write_settings(&root, &pool(&[&model], "max_context = 64"));
    let reloaded = app.reload_arms().unwrap();
    assert_eq!((reloaded.removed.len(), reloaded.changed.len()), (1, 1));
    assert!(!is_warm(&app, "llama"));
    assert_eq!(app.arm("llama").unwrap().arm().context_tokens, 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_removed_and_fetched_while_others_serve() {
    let folder = TempDir::new().unwrap();
    let root = root(&folder);
    let (model, other) = (write_model(&root, "llama"), write_model(&root, "qwen2"));
    write_settings(&root, &pool(&[&model, &other], ""));
    let app = open(&root, &[]);
    // Answers that run and wait are written to their ends, though nobody has the arm any more.
    let gone = app.arm("llama").unwrap();
    let request = GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(100),
        ..GenerateRequest::new(Prompt::Text("Once upon a time".to_owned()))
    };
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(gone.generate(request.clone()).await.unwrap());
    }
    std::fs::remove_file(&model).unwrap();
    drop(gone);
    let reloaded = app.reload_arms().unwrap();
    assert_eq!(reloaded.changed.len(), 1, "{reloaded:?}");
    let missing = app.arm("llama").unwrap().state();
    assert!(missing.unavailable.unwrap().contains("llama.gguf"));
    assert_eq!(app.arm("qwen2").unwrap().state().unavailable, None);
    for answer in running {
        let events: Vec<_> = answer.collect().await;
        let Some(Ok(Written::Finish(end))) = events.last() else {
            panic!("cut: {:?}", events.last());
        };
        let whole = end.reason == FinishReason::Stop || end.usage.completion_tokens == 100;
        assert!(whole, "{end:?}");
    }

    write_model(&root, "llama");
    app.reload_arms().unwrap();
    let back = app.arm("llama").unwrap();
    assert_eq!(back.state().unavailable, None);
    back.warm_up().await.unwrap();
    // Another file of the same name is another model.
    std::fs::remove_file(&model).unwrap();
    let tiny = Tiny {
        context: 128,
        ..Tiny::new("llama")
    };
    tiny.write(root.as_std_path());
    let reloaded = app.reload_arms().unwrap();
    assert_eq!(reloaded.changed.len(), 1);
    let state = app.arm("llama").unwrap().state();
    assert!(!state.warm && state.unavailable.is_none());
    assert_eq!(app.arm("llama").unwrap().arm().context_tokens, 128);
}

#[test]
fn settings_that_do_not_go_together_leave_the_pool_as_it_is() {
    let folder = TempDir::new().unwrap();
    let root = root(&folder);
    let model = write_model(&root, "llama");
    write_settings(&root, &pool(&[&model], ""));
    let app = open(&root, &[]);
    let before = app.arm("llama").unwrap();
    // Two files of one name would be two arms of one name.
    std::fs::create_dir(root.join("x")).unwrap();
    let twin = write_model(&root.join("x"), "llama");
    write_settings(&root, &pool(&[&model, &twin], "usd_per_hour = 9"));
    let error = app.reload_arms().unwrap_err();
    assert!(matches!(error, AppError::Dispatch(_)), "{error:?}");
    write_settings(&root, "[pool\n");
    let error = app.reload_arms().unwrap_err();
    assert!(matches!(error, AppError::Settings(_)), "{error:?}");
    assert!(Arc::ptr_eq(&app.arm("llama").unwrap(), &before));
    assert_eq!(app.dispatch().arms().len(), 1);
}
