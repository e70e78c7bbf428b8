//! The daemon over real sockets, with scripted arms behind a real dispatch and ledger.

#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use futures::StreamExt;
use llmpick_core::{
    Backend, BackendError, Candidate, Decision, DecisionSource, Feedback, Message, Mode, Router,
    RouterError, Score, SelectRequest, Snapshot,
};
use llmpick_daemon::client::{
    ChatCall, ChatDone, ChatEvent, Client, ClientError, TaskCall, TaskStep,
};
use llmpick_daemon::dispatch::{Dispatch, DispatchSettings, Part, Parts, SystemClock};
use llmpick_daemon::ledger::Ledger;
use llmpick_daemon::{App, Paths, ServeError, Server, Settings, SettingsSources};
use llmpick_testkit::{Answer, FakeBackend};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Takes every eligible arm in the order of the pool.
struct InOrder;

impl Router for InOrder {
    fn name(&self) -> &str {
        "in-order"
    }

    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        let eligible = |(_, candidate): &(usize, &Candidate)| candidate.eligible;
        let arms = request.candidates.iter().enumerate().filter(eligible);
        let choices: Vec<u32> = arms
            .map(|(index, _)| index as u32)
            .take(request.max_arms as usize)
            .collect();
        if choices.is_empty() {
            return Err(RouterError::NoEligibleArm);
        }
        Ok(Decision {
            choices,
            mode: request
                .allowed_modes
                .first()
                .copied()
                .unwrap_or(Mode::Single),
            propensity: 1.0,
            marginals: Vec::new(),
            reason: "in order".to_owned(),
            source: DecisionSource::Router,
        })
    }

    fn feedback(&mut self, _: &Feedback) -> Result<(), RouterError> {
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        Ok(Snapshot {
            version: 1,
            state: Vec::new(),
        })
    }

    fn restore(&mut self, _: &Snapshot) -> Result<(), RouterError> {
        Ok(())
    }
}

/// A daemon that runs, on a folder of its own.
struct Daemon {
    folder: TempDir,
    url: String,
    client: Client,
    dispatch: Arc<Dispatch>,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), ServeError>>>,
}

fn settings(folder: &TempDir, flags: &[(&str, &str)]) -> Settings {
    let root = Utf8PathBuf::from_path_buf(folder.path().to_path_buf()).unwrap();
    let given = flags
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let sources = SettingsSources {
        overrides: [("server.tcp".to_owned(), "127.0.0.1:0".to_owned())]
            .into_iter()
            .chain(given)
            .collect(),
        directory: root.clone(),
        system_file: root.join("none.toml"),
        ..SettingsSources::default()
    };
    Settings::load_with(sources, Paths::below(root.join("h"))).unwrap()
}

fn app(settings: Settings, arms: Vec<Arc<dyn Backend>>) -> App {
    let ledger = Arc::new(Ledger::open_in_memory().unwrap());
    let dispatch = Dispatch::new(Parts {
        ledger: Arc::clone(&ledger),
        arms,
        router: Box::new(InOrder),
        scorers: llmpick_score::all(),
        settings: DispatchSettings {
            max_arms: 1,
            ..DispatchSettings::default()
        },
        snapshot_dir: None,
        clock: Arc::new(SystemClock::new()),
    })
    .unwrap();
    App::with_dispatch(settings, ledger, dispatch).unwrap()
}

impl Daemon {
    async fn start(arms: Vec<Arc<dyn Backend>>) -> Self {
        Self::start_with(arms, &[]).await
    }

    async fn start_with(arms: Vec<Arc<dyn Backend>>, flags: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let settings = settings(&folder, flags);
        let socket = settings.server.socket.clone();
        let app = app(settings, arms);
        let dispatch = Arc::clone(app.dispatch());
        let server = Server::bind(app).await.unwrap();
        let url = format!("http://{}", server.tcp_address().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let client = Client::connect(&socket).await.unwrap();
        Self {
            folder,
            url,
            client,
            dispatch,
            stop: Some(stop),
            running: Some(running),
        }
    }

    async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let http = reqwest::Client::new();
        http.post(format!("{}{path}", self.url))
            .json(body)
            .send()
            .await
            .unwrap()
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let response = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    async fn chat(&self, extra: Value) -> reqwest::Response {
        self.post("/v1/chat/completions", &body(extra)).await
    }

    /// Status and error object of a chat that is refused.
    async fn refused(&self, extra: Value) -> (u16, Value) {
        let response = self.chat(extra).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        assert!(body["error"]["message"].is_string(), "{body}");
        (status, body["error"].clone())
    }

    async fn events(&self, extra: Value) -> Vec<Value> {
        let mut extra = extra;
        extra["stream"] = json!(true);
        let text = self.chat(extra).await.text().await.unwrap();
        let mut lines: Vec<&str> = text.split("\n\n").filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.pop(), Some("data: [DONE]"));
        let parse =
            |line: &str| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap();
        lines.into_iter().map(parse).collect()
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.running.take().unwrap().await.unwrap().unwrap();
    }
}

fn body(extra: Value) -> Value {
    let mut body =
        json!({"model": "auto", "messages": [{"role": "user", "content": "what is it"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn arm(id: &str, text: &str) -> Arc<FakeBackend> {
    Arc::new(FakeBackend::new(id, Answer::text(text)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_has_every_key_a_client_reads() {
    let daemon = Daemon::start(vec![arm("small", "It is a fish")]).await;
    let response = daemon.chat(json!({})).await;
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(headers["x-llmpick-model"], "small");
    assert_eq!(headers["x-llmpick-route-id"], "r1");
    let cost: f64 = headers["x-llmpick-cost"].to_str().unwrap().parse().unwrap();
    assert!(cost > 0.0);
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "small");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "It is a fish");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    assert_eq!(
        answer["usage"]["total_tokens"].as_u64(),
        Some(4 + answer["usage"]["prompt_tokens"].as_u64().unwrap())
    );
    // Required although null.
    for (object, key) in [
        (&answer, "system_fingerprint"),
        (choice, "logprobs"),
        (&choice["message"], "refusal"),
    ] {
        assert_eq!(object.get(key), Some(&Value::Null), "{key}");
    }
    assert_eq!(answer["llmpick"]["route_id"], "r1");
    assert_eq!(answer["llmpick"]["cost_usd"].as_f64(), Some(cost));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_the_whole_answer_in_order() {
    let daemon = Daemon::start(vec![arm("small", "It is a fish")]).await;
    let events = daemon.events(json!({})).await;
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let texts: Vec<&str> = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(texts.concat(), "It is a fish");
    let roles = events
        .iter()
        .filter(|event| event["choices"][0]["delta"].get("role").is_some());
    assert_eq!(roles.count(), 1);
    let id = &events[0]["id"];
    assert!(
        events
            .iter()
            .all(|event| &event["id"] == id && event["model"] == "small")
    );
    let reasons: Vec<&Value> = events
        .iter()
        .filter(|event| !event["choices"][0]["finish_reason"].is_null())
        .collect();
    assert_eq!(reasons.len(), 1);
    assert_eq!(reasons[0]["choices"][0]["delta"], json!({}));
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    assert_eq!(events.last().unwrap()["llmpick"]["route_id"], "r1");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_closes_the_stream_where_it_is_asked_for() {
    let daemon = Daemon::start(vec![arm("small", "a b")]).await;
    let events = daemon
        .events(json!({"stream_options": {"include_usage": true}}))
        .await;
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 2);
    assert!(
        before
            .iter()
            .all(|event| event.get("usage") == Some(&Value::Null))
    );
    let (status, _) = daemon
        .refused(json!({"stream_options": {"include_usage": true}}))
        .await;
    assert_eq!(status, 400);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_come_with_their_tokens() {
    let daemon = Daemon::start(vec![arm("small", "a b")]).await;
    let answer: Value = daemon
        .chat(json!({"logprobs": true}))
        .await
        .json()
        .await
        .unwrap();
    let tokens = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
        .clone();
    let text: String = tokens
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!((text.as_str(), tokens.len()), ("a b", 2));
    assert!((tokens[0]["logprob"].as_f64().unwrap() + 0.1).abs() < 1e-6);
    let events = daemon.events(json!({"logprobs": true})).await;
    let streamed: usize = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .map(Vec::len)
        .sum();
    assert_eq!(streamed, 2);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_reach_the_arm() {
    let small = arm("small", "a b");
    let daemon = Daemon::start(vec![small.clone()]).await;
    daemon.chat(json!({
        "temperature": 0, "top_p": 0.5, "seed": 9, "max_completion_tokens": 1, "stop": ["x"],
        "messages": [{"role": "developer", "content": "be short"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    })).await;
    let call = small.calls().pop().unwrap();
    assert_eq!(
        call.prompt,
        llmpick_core::Prompt::Chat(vec![Message::system("be short"), Message::user("hi")])
    );
    assert_eq!(
        (
            call.sampling.temperature,
            call.sampling.top_p,
            call.sampling.seed
        ),
        (0.0, 0.5, 9)
    );
    assert_eq!(
        (call.max_tokens, call.stop),
        (Some(1), vec!["x".to_owned()])
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_pins_and_an_unknown_one_is_a_404() {
    let daemon = Daemon::start(vec![arm("small", "s"), arm("far/large", "l")]).await;
    let answer: Value = daemon
        .chat(json!({"model": "far/large"}))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(answer["model"], "far/large");
    // A name of no model, and a path, which is no name over HTTP.
    for name in ["no-such-model", "/etc/passwd", "../x.gguf"] {
        let (status, error) = daemon.refused(json!({"model": name})).await;
        assert_eq!(
            (status, error["code"].as_str()),
            (404, Some("model_not_found")),
            "{name}"
        );
    }
    let (status, models) = daemon.get("/v1/models").await;
    let ids: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        (status.as_u16(), ids),
        (200, vec!["auto", "small", "far/large"])
    );
    assert_eq!(
        daemon.get("/v1/models/far/large").await.1["object"],
        "model"
    );
    assert_eq!(daemon.get("/v1/models/nobody").await.0, 404);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_beyond_the_context_is_a_400_with_its_figures() {
    let small = FakeBackend::new("small", Answer::text("s")).context_tokens(8);
    let daemon = Daemon::start(vec![Arc::new(small)]).await;
    let long = json!({"messages": [{"role": "user", "content": vec!["word"; 20].join(" ")}], "stream": true});
    let (status, error) = daemon.refused(long).await;
    assert_eq!(
        (status, error["code"].as_str()),
        (400, Some("context_length_exceeded"))
    );
    assert_eq!(
        (&error["n_prompt_tokens"], &error["n_ctx"]),
        (&json!(20), &json!(8))
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_arm_takes_over_before_the_first_word() {
    let broken = FakeBackend::new(
        "broken",
        Answer::refusal(|| BackendError::Provider {
            status: 500,
            message: "down".into(),
        }),
    );
    let daemon = Daemon::start(vec![Arc::new(broken), arm("small", "here")]).await;
    let answer: Value = daemon
        .chat(json!({"llmpick": {"max_arms": 2}}))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(answer["model"], "small");
    assert_eq!(answer["llmpick"]["attempts"], 2);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_answer_ends_in_an_error_object() {
    let cut =
        Answer::text("one two three").failing_after(2, || BackendError::Transport("gone".into()));
    let daemon = Daemon::start(vec![Arc::new(FakeBackend::new("cut", cut))]).await;
    let events = daemon.events(json!({})).await;
    let error = events.last().unwrap();
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("cut short"),
        "{error}"
    );
    assert!(
        events
            .iter()
            .all(|event| event["choices"][0]["finish_reason"].is_null())
    );
    let (status, _) = daemon.refused(json!({})).await;
    assert_eq!(status, 502);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_arms_have_their_status() {
    type Make = fn() -> BackendError;
    let cases: [(Make, u16); 6] = [
        (|| BackendError::InvalidRequest("odd".into()), 400),
        (|| BackendError::Unsupported("colours"), 400),
        (|| BackendError::Busy { waiting: 9 }, 429),
        (|| BackendError::Load("broken file".into()), 503),
        (|| BackendError::Timeout(Duration::from_secs(1)), 504),
        (|| BackendError::Internal("oops".into()), 500),
    ];
    for (make, want) in cases {
        let daemon =
            Daemon::start(vec![Arc::new(FakeBackend::new("a", Answer::refusal(make)))]).await;
        let (status, _) = daemon.refused(json!({})).await;
        assert_eq!(status, want);
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_place() {
    let endless = Arc::new(FakeBackend::new(
        "slow",
        Answer::text("one two three").hanging_after(1),
    ));
    let silent = Arc::new(FakeBackend::new(
        "silent",
        Answer::text("x").hanging_after(0),
    ));
    let arms: Vec<Arc<dyn Backend>> = vec![endless.clone(), silent.clone()];
    let daemon = Daemon::start_with(arms, &[("server.max_requests", "1")]).await;
    // In the midst of an answer.
    let mut response = daemon.chat(json!({"model": "slow", "stream": true})).await;
    response.chunk().await.unwrap();
    let (status, _) = daemon.refused(json!({"model": "slow"})).await;
    assert_eq!(status, 429, "the one place is taken");
    drop(response);
    until(|| endless.cancelled() == 1).await;
    // Before its first word, streamed and not.
    for stream in [true, false] {
        let before = silent.cancelled();
        let waiting = reqwest::Client::new()
            .post(format!("{}/v1/chat/completions", daemon.url))
            .json(&body(json!({"model": "silent", "stream": stream})))
            .timeout(Duration::from_millis(300))
            .send()
            .await;
        assert!(waiting.is_err());
        until(|| silent.cancelled() == before + 1).await;
    }
    daemon.stop().await;
}

/// Waits for what happens in another task; never long, and the test fails if it never comes.
async fn until(happened: impl Fn() -> bool) {
    for _ in 0..1000 {
        if happened() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grade_is_taken_and_the_route_explains_itself() {
    let daemon = Daemon::start(vec![arm("small", "s")]).await;
    assert_eq!(daemon.get("/llmpick/v1/routes/last").await.0, 404);
    daemon
        .chat(json!({"llmpick": {"context": "fishing", "session": "me"}}))
        .await
        .text()
        .await
        .unwrap();
    let feedback = daemon
        .post(
            "/llmpick/v1/feedback",
            &json!({"route_id": "r1", "score": 0.25}),
        )
        .await;
    assert_eq!(feedback.status(), 200);
    let (_, route) = daemon.get("/llmpick/v1/routes/last").await;
    assert_eq!(
        (&route["id"], &route["context"], &route["session"]),
        (&json!("r1"), &json!("fishing"), &json!("me"))
    );
    assert_eq!(route["calls"][0]["user_score"], 0.25);
    let (_, arms) = daemon.get("/llmpick/v1/arms").await;
    assert_eq!(arms["arms"][0]["stats"]["pulls"], 1);
    for (body, want) in [
        (json!({"route_id": "r1", "score": 1.5}), 400),
        (json!({"route_id": "r1"}), 400),
        (json!({"route_id": "fish", "score": 1}), 400),
        (json!({"score": 1}), 400),
        (json!({"route_id": "r1", "score": 1, "colour": "red"}), 400),
        (json!({"route_id": "r99", "score": 1}), 404),
    ] {
        assert_eq!(
            daemon.post("/llmpick/v1/feedback", &body).await.status(),
            want,
            "{body}"
        );
    }
    assert_eq!(daemon.get("/llmpick/v1/routes/r99").await.0, 404);
    assert_eq!(daemon.get("/llmpick/v1/routes/fish").await.0, 400);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_get_error_objects() {
    let daemon =
        Daemon::start_with(vec![arm("small", "s")], &[("server.body_limit", "2KiB")]).await;
    let http = reqwest::Client::new();
    let chat = format!("{}/v1/chat/completions", daemon.url);
    let responses = [
        (http.post(&chat).body("{").send().await, 400),
        (http.post(&chat).body("[1]").send().await, 400),
        (http.post(&chat).body(vec![b'x'; 4096]).send().await, 413),
        (http.get(&chat).send().await, 405),
        (
            http.get(format!("{}/v1/nothing", daemon.url)).send().await,
            404,
        ),
        (
            http.get(format!("{}/health", daemon.url))
                .header("host", "evil.example")
                .send()
                .await,
            403,
        ),
        (
            http.get(format!("{}/health", daemon.url))
                .header("origin", "http://evil.example")
                .send()
                .await,
            403,
        ),
    ];
    for (response, want) in responses {
        let response = response.unwrap();
        assert_eq!(response.status().as_u16(), want, "{}", response.url());
        let body: Value = response.json().await.unwrap();
        assert!(body["error"]["message"].is_string(), "{body}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_guards_tcp_and_not_the_socket() {
    let folder = TempDir::new().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "sk-ours\n").unwrap();
    let flags = [("server.api_key_file", key.to_str().unwrap())];
    let daemon = Daemon::start_with(vec![arm("small", "s")], &flags).await;
    let url = format!("{}/v1/models", daemon.url);
    let http = reqwest::Client::new();
    let without = http.get(&url).send().await.unwrap();
    assert_eq!(without.status(), 401);
    assert!(without.json::<Value>().await.unwrap()["error"]["message"].is_string());
    assert_eq!(
        http.get(&url)
            .bearer_auth("sk-theirs")
            .send()
            .await
            .unwrap()
            .status(),
        401
    );
    assert_eq!(
        http.get(&url)
            .bearer_auth("sk-ours")
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(
        http.get(&url)
            .header("x-api-key", "sk-ours")
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(daemon.get("/health").await.0, 200);
    assert_eq!(daemon.client.models().await.unwrap(), ["auto", "small"]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_address_needs_a_key() {
    let folder = TempDir::new().unwrap();
    let app = app(
        settings(&folder, &[("server.tcp", "0.0.0.0:0")]),
        vec![arm("small", "s")],
    );
    assert!(matches!(
        Server::bind(app).await,
        Err(ServeError::Public(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_ours_alone() {
    let daemon = Daemon::start(vec![arm("small", "s")]).await;
    let socket = settings(&daemon.folder, &[]).server.socket;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A second daemon says who is there already, and leaves the first one alone.
    let second = app(settings(&daemon.folder, &[]), vec![arm("small", "s")]);
    assert!(matches!(
        Server::bind(second).await,
        Err(ServeError::AlreadyRunning { .. })
    ));
    assert!(Client::connect(&socket).await.is_some());
    let folder = &settings(&daemon.folder, &[]);
    daemon.stop().await;
    assert!(!socket.exists(), "the socket goes with its daemon");
    // What is left of a daemon that died is replaced; a file of another kind is not.
    drop(std::os::unix::net::UnixListener::bind(&socket));
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    if !socket.exists() {
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    }
    let third = Server::bind(app(folder.clone(), vec![arm("small", "s")]))
        .await
        .unwrap();
    drop(third);
    std::fs::write(&socket, "a diary").unwrap();
    let fourth = Server::bind(app(folder.clone(), vec![arm("small", "s")])).await;
    assert!(matches!(fourth, Err(ServeError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "a diary");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_answer_is_ended_before_the_daemon() {
    let slow =
        Answer::text("one two three four").delays(Duration::ZERO, Duration::from_millis(100));
    let daemon = Daemon::start(vec![Arc::new(FakeBackend::new("slow", slow))]).await;
    let mut response = daemon.chat(json!({"stream": true})).await;
    response.chunk().await.unwrap();
    let dispatch = Arc::clone(&daemon.dispatch);
    let stopping = tokio::spawn(daemon.stop());
    let mut rest = String::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        rest.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(
        rest.ends_with("data: [DONE]\n\n") && rest.contains("four"),
        "{rest}"
    );
    stopping.await.unwrap();
    assert!(dispatch.last_route().unwrap().unwrap().answered.is_some());
}

fn call(text: &str) -> ChatCall {
    ChatCall {
        messages: vec![Message::user(text)],
        context: "tests".to_owned(),
        ..ChatCall::default()
    }
}

async fn hear(client: &Client, call: &ChatCall) -> Result<(String, ChatDone), ClientError> {
    let mut events = client.chat(call).await?;
    let mut text = String::new();
    while let Some(event) = events.next().await {
        match event? {
            ChatEvent::Text(piece) => text.push_str(&piece),
            ChatEvent::Done(done) => return Ok((text, done)),
        }
    }
    panic!("the stream ended without its end")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_talks_over_the_socket() {
    let small = arm("small", "It is «Zürich»");
    let daemon = Daemon::start(vec![small.clone(), arm("large", "l")]).await;
    let asked = ChatCall {
        sampling: llmpick_core::Sampling {
            seed: u64::MAX - 4,
            temperature: 0.5,
            ..Default::default()
        },
        max_tokens: Some(7),
        mode: Some(Mode::AnyWin),
        max_arms: Some(2),
        max_cost: Some(1.0),
        reference: Some("Zürich".to_owned()),
        scorer: Some("exact".to_owned()),
        ..call("Where?")
    };
    let (text, done) = hear(&daemon.client, &asked).await.unwrap();
    assert_eq!(
        (text.as_str(), done.model.as_str()),
        ("It is «Zürich»", "small")
    );
    assert_eq!(done.usage.completion_tokens, 3);
    assert!(done.cost_usd > 0.0 && done.latency_ms > 0.0 && done.score.is_some());
    let heard = small.calls().pop().unwrap();
    assert_eq!(
        (
            heard.sampling.seed,
            heard.sampling.temperature,
            heard.max_tokens
        ),
        (u64::MAX - 4, 0.5, Some(7))
    );
    daemon
        .client
        .feedback(done.route_id, Score::new(1.0).unwrap())
        .await
        .unwrap();
    let refusal = hear(
        &daemon.client,
        &ChatCall {
            model: Some("nobody".to_owned()),
            ..call("x")
        },
    )
    .await;
    assert!(
        matches!(refusal, Err(ClientError::Refused { status: 404, .. })),
        "{refusal:?}"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_there_is_no_client() {
    let folder = TempDir::new().unwrap();
    assert!(
        Client::connect(&settings(&folder, &[]).server.socket)
            .await
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_llmpick_is_a_remote_arm() {
    use llmpick_core::{Arm, ArmId, Locality, Price};
    let upstream = Daemon::start(vec![arm("small", "from afar")]).await;
    let socket = settings(&upstream.folder, &[]).server.socket;
    for base_url in [format!("{}/v1", upstream.url), format!("unix:{socket}")] {
        let description = Arm {
            id: ArmId::new("far").unwrap(),
            locality: Locality::Remote,
            context_tokens: 4096,
            price: Price::PerToken {
                input_usd: 10.0,
                output_usd: 1_000.0,
            },
        };
        let options = llmpick_remote::OpenAiOptions {
            base_url,
            model: "small".to_owned(),
            api_key: None,
            unavailable: None,
            timeout: Duration::from_secs(10),
            extended_sampling: true,
        };
        let far: Arc<dyn Backend> =
            Arc::new(llmpick_remote::OpenAi::new(description, options).unwrap());
        let daemon = Daemon::start(vec![far]).await;
        let (text, done) = hear(&daemon.client, &call("one two three")).await.unwrap();
        assert_eq!((text.as_str(), done.model.as_str()), ("from afar", "far"));
        // 3 prompt tokens and 2 of the answer, at the price of the settings.
        assert!(
            (done.cost_usd - (3.0 * 10.0 + 2.0 * 1_000.0) / 1e6).abs() < 1e-12,
            "{}",
            done.cost_usd
        );
        assert!(done.score.is_some(), "log-probabilities came through");
        daemon.stop().await;
    }
    upstream.stop().await;
}

/// Answers with the last word it was told.
fn echo(name: &str) -> Arc<dyn Backend> {
    Arc::new(FakeBackend::replying(name, |request| {
        let text = request.prompt.text();
        Answer::text(text.split_whitespace().last().unwrap_or_default())
    }))
}

/// A task of two parts, the second of which is right only if `right` is what it says.
fn two_parts(mode: &str, right: &str) -> Value {
    json!({
        "messages": [{"role": "system", "content": "Be brief."}],
        "parts": [
            {"name": "one", "prompt": "say one", "reference": "one", "scorer": "exact"},
            {"name": "two", "messages": [{"role": "user", "content": "say two"}], "reference": right},
        ],
        "temperature": 0,
        "llmpick": {"mode": mode, "max_arms": 2, "scorer": "exact"},
    })
}

#[tokio::test]
async fn parts_are_dealt_and_reported() {
    let daemon = Daemon::start(vec![echo("a"), echo("b")]).await;
    let path = "/llmpick/v1/task";
    let response = daemon.post(path, &two_parts("sum_up", "no")).await;
    assert_eq!(response.status(), StatusCode::OK);
    let report: Value = response.json().await.unwrap();
    assert_eq!(report["success"], true, "{report}");
    assert_eq!(report["score_sum"], 1.0);
    assert_eq!(report["arms"], json!(["a", "b"]));
    let part = &report["parts"][1];
    assert_eq!(
        (&part["name"], &part["text"]),
        (&json!("two"), &json!("two"))
    );
    assert_eq!(
        (&part["model"], &part["accepted"]),
        (&json!("b"), &json!(false))
    );
    let route = report["route_id"].as_str().unwrap();
    let (_, record) = daemon.get(&format!("/llmpick/v1/routes/{route}")).await;
    assert_eq!(record["parts"][0]["name"], "one", "{record}");
    assert_eq!(record["calls"][1]["part"], 1, "{record}");

    // The same in all_in is a failure that names the part, with what there is beside it.
    let response = daemon.post(path, &two_parts("all_in", "no")).await;
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let body: Value = response.json().await.unwrap();
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("part `two` scored 0.000"), "{body}");
    assert_eq!(body["task"]["parts"][0]["text"], "one");
    let response = daemon.post(path, &two_parts("all_in", "two")).await;
    assert_eq!(response.status(), StatusCode::OK);

    // Our own client, in events over the socket.
    let part = |name: &str| Part {
        name: name.to_owned(),
        messages: vec![Message::user(format!("say {name}"))],
        reference: None,
        scorer: None,
    };
    let call = TaskCall {
        parts: vec![part("x"), part("y"), part("z")],
        mode: Some(Mode::AllIn),
        max_arms: Some(2),
        ..TaskCall::default()
    };
    let steps: Vec<_> = daemon.client.task(&call).await.unwrap().collect().await;
    let steps: Vec<TaskStep> = steps.into_iter().map(Result::unwrap).collect();
    let count = |wanted: fn(&TaskStep) -> bool| steps.iter().filter(|step| wanted(step)).count();
    assert_eq!(count(|step| matches!(step, TaskStep::Started { .. })), 3);
    assert_eq!(count(|step| matches!(step, TaskStep::Part(_))), 3);
    let Some(TaskStep::Done(report)) = steps.last() else {
        panic!("{steps:?}")
    };
    assert!(report.success);
    assert_eq!(report.parts[2].text, "z");
    let refused = TaskCall {
        scorer: Some("vibes".to_owned()),
        ..call
    };
    let Err(ClientError::Refused { status: 400, .. }) = daemon.client.task(&refused).await else {
        panic!("there is no such scorer")
    };
    daemon.stop().await;
}

#[tokio::test]
async fn parts_that_cannot_be_read_are_refused() {
    let daemon = Daemon::start(vec![echo("a")]).await;
    let part = json!({"name": "a", "prompt": "hi"});
    for (body, names) in [
        (json!({}), "`parts` has to be a list"),
        (json!({"parts": []}), "`parts` has to be a list"),
        (
            json!({"parts": [{"name": "a"}]}),
            "`parts[0]` needs either a `prompt` or `messages`",
        ),
        (
            json!({"parts": [{"prompt": "a"}]}),
            "`parts[0]` needs a `name`",
        ),
        (
            json!({"parts": [part, {"name": "b", "prompt": "c", "x": 1}]}),
            "`parts[1]` has the field `x`",
        ),
        (json!({"parts": [part, part]}), "two parts are named `a`"),
        (
            json!({"parts": [part], "llmpick": {"mode": "single"}}),
            "sum_up or all_in",
        ),
        (
            json!({"parts": [part], "llmpick": {"min_score": 2}}),
            "`llmpick.min_score`",
        ),
        (
            json!({"parts": [part], "n": 2}),
            "the field `n` is not known",
        ),
    ] {
        let response = daemon.post("/llmpick/v1/task", &body).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
        let told: Value = response.json().await.unwrap();
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains(names), "{message}");
    }
    let (status, told) = daemon.refused(json!({"llmpick": {"mode": "all_in"}})).await;
    assert_eq!(
        (status, told["param"].as_str()),
        (400, Some("llmpick.mode"))
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_a_task_stops_its_parts() {
    let hangs = Arc::new(FakeBackend::new("a", Answer::text("one").hanging_after(0)).remote());
    let daemon = Daemon::start(vec![hangs.clone()]).await;
    let part = |name: &str| Part {
        name: name.to_owned(),
        messages: vec![Message::user("hi")],
        reference: None,
        scorer: None,
    };
    let call = TaskCall {
        parts: vec![part("x"), part("y")],
        ..TaskCall::default()
    };
    let mut steps = daemon.client.task(&call).await.unwrap();
    for _ in 0..2 {
        let step = steps.next().await.unwrap().unwrap();
        assert!(matches!(step, TaskStep::Started { .. }), "{step:?}");
    }
    while hangs.state().inflight < 2 {
        tokio::task::yield_now().await;
    }
    drop(steps);
    while hangs.cancelled() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let dispatch = Arc::clone(&daemon.dispatch);
    daemon.stop().await;
    let record = dispatch.last_route().unwrap().unwrap();
    assert_eq!(format!("{:?}", record.status), "Cancelled");
}
