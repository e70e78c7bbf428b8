//! The local–cloud split over real sockets: a dispatch here, a scheduler there, and everything
//! that goes between them on record.

#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8PathBuf;
use llmpick_core::{
    ArmId, Backend, BackendError, ContextKey, Decision, DecisionSource, Feedback, GenerateRequest,
    Mode, Price, Prompt, Router, RouterError, Scheduler, Score, SelectRequest, Snapshot, Usage,
};
use llmpick_daemon::dispatch::{
    Dispatch, DispatchSettings, Measured, Parts, RouteRequest, SystemClock, Target,
};
use llmpick_daemon::ledger::{Ledger, RouteRecord};
use llmpick_daemon::{App, Paths, ServeError, Server, Settings, SettingsSources};
use llmpick_plugin_host::LocalScheduler;
use llmpick_remote::{RemoteScheduler, RemoteSchedulerOptions};
use llmpick_testkit::{Answer, FakeBackend};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const ARMS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Gives marginals only, proportional to what each arm scored so far: two arms of five.
#[derive(Default)]
struct Shares {
    scores: BTreeMap<String, (f64, f64)>,
}

impl Router for Shares {
    fn name(&self) -> &str {
        "shares"
    }

    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        let weight = |id: &ArmId| {
            let known = self.scores.get(id.as_str());
            known.map_or(1.0, |(sum, n)| 0.5 + (sum + 0.5) / (n + 1.0))
        };
        let weights: Vec<f64> = request
            .candidates
            .iter()
            .map(|c| if c.eligible { weight(&c.id) } else { 0.0 })
            .collect();
        let total: f64 = weights.iter().sum();
        let most = f64::from(request.max_arms);
        Ok(Decision {
            choices: Vec::new(),
            mode: request.allowed_modes[0],
            propensity: f64::NAN,
            marginals: weights
                .iter()
                .map(|w| (most * w / total).min(1.0))
                .collect(),
            reason: "shares".to_owned(),
            source: DecisionSource::Router,
        })
    }

    fn feedback(&mut self, feedback: &Feedback) -> Result<(), RouterError> {
        if let Some(score) = feedback.score {
            let known = self.scores.entry(feedback.arm.to_string()).or_default();
            known.0 += score.get();
            known.1 += 1.0;
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        Err(RouterError::State("none".to_owned()))
    }

    fn restore(&mut self, _: &Snapshot) -> Result<(), RouterError> {
        Err(RouterError::State("none".to_owned()))
    }
}

fn dispatch(arms: Vec<Arc<dyn Backend>>, scheduler: Arc<dyn Scheduler>) -> Arc<Dispatch> {
    let dispatch = Dispatch::new(Parts {
        ledger: Arc::new(Ledger::open_in_memory().unwrap()),
        arms,
        router: Box::new(Shares::default()),
        scorers: llmpick_score::all(),
        settings: DispatchSettings {
            base_seed: Some(7),
            modes: vec![Mode::AnyWin],
            max_arms: 2,
            // A busy machine is no reason to fail.
            select_budget: Duration::from_secs(20),
            ..DispatchSettings::default()
        },
        snapshot_dir: None,
        clock: Arc::new(SystemClock::new()),
    })
    .unwrap();
    dispatch.set_scheduler(scheduler);
    dispatch
}

fn pool() -> Vec<Arc<FakeBackend>> {
    let price = Price::PerToken {
        input_usd: 0.0,
        output_usd: PRICE,
    };
    let arm = |id: &str| {
        FakeBackend::new(id, Answer::text("yes"))
            .remote()
            .price(price)
    };
    ARMS.iter().map(|id| Arc::new(arm(id))).collect()
}

fn backends(pool: &[Arc<FakeBackend>]) -> Vec<Arc<dyn Backend>> {
    pool.iter().map(|arm| Arc::clone(arm) as _).collect()
}

fn remote(address: &str, after: u32, tolerance: f64) -> Arc<dyn Scheduler> {
    let options = RemoteSchedulerOptions {
        address: address.to_owned(),
        api_key: None,
        resend_after: after,
        resend_tolerance: tolerance,
    };
    Arc::new(RemoteScheduler::new(options, Arc::new(LocalScheduler)).unwrap())
}

/// Dollars per million tokens, and tokens: a call costs 0.0083717 dollars.
const PRICE: f64 = 8.3717;
const TOKENS: u32 = 1_000;
/// What no byte between the machines may tell.
const SECRETS: [&str; 8] = [
    "heron",
    "marsh",
    "83717",
    "774613",
    "tax-returns",
    "customer-4711",
    "8.37",
    "answer",
];

/// One request after another, with scores that depend on arm and round; `late` rounds pass
/// before anybody learns of a score.
async fn rounds(dispatch: &Arc<Dispatch>, count: u64, late: usize) -> Vec<RouteRecord> {
    let mut records = Vec::new();
    let mut waiting = std::collections::VecDeque::new();
    for round in 0..count {
        let mut meta = RouteRequest::new(GenerateRequest::new(Prompt::Text(
            "where does the heron sleep, in the marsh?".to_owned(),
        )));
        meta.context = ContextKey("tax-returns".to_owned());
        meta.session = "customer-4711".to_owned();
        meta.reference = Some("the answer".to_owned());
        meta.generate.max_tokens = Some(TOKENS);
        let score = move |arm: &str| {
            let place = ARMS.iter().position(|id| *id == arm).unwrap() as u64;
            let luck = (round * 7 + place * 3) % 11;
            Score::new(if luck < 3 + 2 * place {
                0.774_613
            } else {
                0.113_3
            })
            .unwrap()
        };
        let summary = dispatch
            .run_with(meta, |arm| async move {
                Ok::<_, BackendError>(Measured {
                    text: "the answer".to_owned(),
                    usage: Usage {
                        prompt_tokens: 10,
                        cached_tokens: 0,
                        completion_tokens: TOKENS,
                    },
                    latency: Duration::from_millis(5),
                    score: (late == 0).then(|| score(arm.as_str())),
                    ..Measured::default()
                })
            })
            .await
            .unwrap();
        if late > 0 {
            waiting.push_back((summary.route_id, score(summary.arm.as_str())));
            if waiting.len() > late {
                let (route, score) = waiting.pop_front().unwrap();
                dispatch.feedback(route, score, "user").await.unwrap();
            }
        }
        let record = dispatch.route_record(summary.route_id).unwrap();
        assert!(record.calls.iter().all(|call| call.cost.0 == 8_371_700));
        records.push(record);
    }
    records
}

/// What was decided, every bit of it.
fn decided(records: &[RouteRecord]) -> Vec<(Vec<u32>, Vec<u64>)> {
    let bits = |z: &[f64]| z.iter().map(|z| z.to_bits()).collect();
    records
        .iter()
        .map(|record| record.decision.as_ref().unwrap())
        .map(|decision| (decision.choices.clone(), bits(&decision.marginals)))
        .collect()
}

fn same(one: &[RouteRecord], other: &[RouteRecord]) {
    let (one, other) = (decided(one), decided(other));
    assert_eq!(one.len(), other.len());
    for (round, (one, other)) in one.iter().zip(&other).enumerate() {
        assert_eq!(one, other, "round {round}");
    }
}

fn reasons(records: &[RouteRecord]) -> Vec<String> {
    let reason = |record: &RouteRecord| record.decision.as_ref().unwrap().reason.clone();
    records.iter().map(reason).collect()
}

/// A daemon that draws sets.
struct Cloud {
    address: SocketAddr,
    socket: Utf8PathBuf,
    dispatch: Arc<Dispatch>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ServeError>>,
}

impl Cloud {
    async fn start(folder: &TempDir, pool: &[Arc<FakeBackend>], flags: &[(&str, &str)]) -> Self {
        let root = Utf8PathBuf::from_path_buf(folder.path().to_path_buf()).unwrap();
        let fixed = [("server.tcp", "127.0.0.1:0"), ("scheduler.enabled", "true")];
        let given = fixed.iter().chain(flags);
        let sources = SettingsSources {
            overrides: given
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            directory: root.clone(),
            system_file: root.join("none.toml"),
            ..SettingsSources::default()
        };
        let settings = Settings::load_with(sources, Paths::below(root.join("h"))).unwrap();
        let socket = settings.server.socket.clone();
        let dispatch = dispatch(backends(pool), Arc::new(LocalScheduler));
        let ledger = Arc::clone(dispatch.ledger());
        let app = App::with_dispatch(settings, ledger, Arc::clone(&dispatch)).unwrap();
        let server = Server::bind(app).await.unwrap();
        let address = server.tcp_address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            address,
            socket,
            dispatch,
            stop,
            running,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.running.await.unwrap().unwrap();
    }
}

/// A wire that keeps every byte of both directions.
struct Wire {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Wire {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Self {
            address: listener.local_addr().unwrap(),
            sent: Arc::default(),
            received: Arc::default(),
        };
        let (sent, received) = (Arc::clone(&wire.sent), Arc::clone(&wire.received));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(target).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(keep(from_client, to_server, Arc::clone(&sent)));
                tokio::spawn(keep(from_server, to_client, Arc::clone(&received)));
            }
        });
        wire
    }

    /// The bodies that went to the scheduler, and the headers before them.
    fn questions(&self) -> (Vec<Value>, Vec<String>) {
        let (mut bodies, mut headers) = (Vec::new(), Vec::new());
        for stream in self.sent.lock().unwrap().iter() {
            let mut rest: &[u8] = stream;
            while !rest.is_empty() {
                let end = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
                let head = String::from_utf8(rest[..end].to_vec()).unwrap();
                let mut lines = head.lines();
                assert_eq!(lines.next(), Some("POST /llmpick/v1/schedule HTTP/1.1"));
                let mut length = 0;
                for line in lines {
                    let (name, value) = line.split_once(": ").unwrap();
                    if name.eq_ignore_ascii_case("content-length") {
                        length = value.parse().unwrap();
                    }
                    headers.push(name.to_ascii_lowercase());
                }
                let (body, after) = rest[end + 4..].split_at(length);
                bodies.push(serde_json::from_slice(body).unwrap());
                rest = after;
            }
        }
        (bodies, headers)
    }

    fn bytes(&self) -> Vec<u8> {
        let all = |side: &Mutex<Vec<Vec<u8>>>| side.lock().unwrap().concat();
        [all(&self.sent), all(&self.received)].concat()
    }
}

async fn keep(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
) {
    let place = {
        let mut kept = kept.lock().unwrap();
        kept.push(Vec::new());
        kept.len() - 1
    };
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        kept.lock().unwrap()[place].extend(&buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_marginals_is_on_the_wire() {
    let (folder, arms) = (TempDir::new().unwrap(), pool());
    let cloud = Cloud::start(&folder, &pool(), &[]).await;
    let wire = Wire::to(cloud.address).await;
    let address = format!("http://{}", wire.address);
    let here = dispatch(backends(&arms), remote(&address, 4, 0.05));
    let records = rounds(&here, 60, 0).await;
    let late = rounds(&here, 40, 3).await;

    let bytes = wire.bytes();
    for secret in SECRETS {
        let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
        assert!(!found, "`{secret}` was on the wire");
    }
    let (mut bodies, headers) = wire.questions();
    // Connections come and go; all questions are of one session.
    bodies.sort_by_key(|body| body["sequence"].as_u64());
    assert_eq!(bodies.len(), 100, "one question each");
    let harmless = [
        "host",
        "content-type",
        "content-length",
        "accept",
        "user-agent",
    ];
    for header in &headers {
        assert!(harmless.contains(&header.as_str()), "{header}");
    }
    let short = ["version", "session", "sequence"];
    let long = [&short[..], &["seed", "arms", "z", "max_arms", "mode"]].concat();
    let mut brought = 0;
    for (body, record) in bodies.iter().zip(records.iter().chain(&late)) {
        let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
        if keys.len() == short.len() {
            assert_eq!(keys, short);
            continue;
        }
        assert_eq!(keys, long);
        brought += 1;
        // Not one bit more than the probabilities that the ledger has.
        let texts: Vec<String> = serde_json::from_value(body["z"].clone()).unwrap();
        let z: Vec<f64> = texts.iter().map(|z| z.parse().unwrap()).collect();
        assert_eq!(z, record.decision.as_ref().unwrap().marginals);
        assert_eq!(body["seed"].as_u64(), Some(record.seed));
        assert_eq!(body["arms"], serde_json::json!(ARMS));
    }
    assert!((25..=60).contains(&brought), "{brought} of 100 had to go");
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resending_each_time_is_the_synchronous_run_to_the_bit() {
    let folder = TempDir::new().unwrap();
    let cloud = Cloud::start(&folder, &pool(), &[]).await;
    let here = dispatch(backends(&pool()), Arc::new(LocalScheduler));
    let alone = rounds(&here, 300, 0).await;
    let unix = format!("unix:{}", cloud.socket);
    for (address, tolerance) in [(unix, 0.05), (cloud.url(), 1.0)] {
        let there = dispatch(backends(&pool()), remote(&address, 1, tolerance));
        let split = rounds(&there, 300, 0).await;
        same(&split, &alone);
        let note = "shares; the scheduler drew the set";
        assert!(reasons(&split).iter().all(|reason| reason == note));
    }
    assert_eq!(reasons(&alone)[0], "shares");
    // B > 1 with no tolerance: the marginals move in every round and so go in every round.
    let moving = dispatch(backends(&pool()), remote(&cloud.url(), 50, 0.0));
    same(&rounds(&moving, 100, 0).await, &alone[..100]);
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_marginals_are_the_propensities_even_where_feedback_is_late() {
    let folder = TempDir::new().unwrap();
    let cloud = Cloud::start(&folder, &pool(), &[]).await;
    let here = dispatch(backends(&pool()), remote(&cloud.url(), 8, 0.2));
    let records = rounds(&here, 600, 5).await;
    let reasons = reasons(&records);
    let brought = |reason: &&String| *reason == "shares; the scheduler drew the set";
    assert_eq!(reasons.iter().filter(brought).count(), 75, "every eighth");
    for turn in records.chunks(8) {
        let first = turn[0].decision.as_ref().unwrap();
        for (draw, record) in turn.iter().enumerate().skip(1) {
            let decision = record.decision.as_ref().unwrap();
            assert_eq!(decision.marginals, first.marginals, "{}", record.id);
            let of = format!("the marginals of {}, draw {draw}", turn[0].id);
            assert!(decision.reason.ends_with(&of), "{}", decision.reason);
        }
    }
    // Σ (1{chosen} − z) has mean 0 and variance Σ z(1−z).
    for arm in 0..ARMS.len() {
        let (mut sum, mut variance) = (0.0, 0.0);
        for record in &records {
            let decision = record.decision.as_ref().unwrap();
            let z = decision.marginals[arm];
            sum += f64::from(u8::from(decision.choices.contains(&(arm as u32)))) - z;
            variance += z * (1.0 - z);
        }
        assert!(sum.abs() < 4.5 * variance.sqrt(), "{arm}: {sum}");
    }
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_forgot_is_told_again_and_one_that_is_away_is_done_without() {
    let folder = TempDir::new().unwrap();
    let cloud = Cloud::start(&folder, &pool(), &[]).await;
    let unix = format!("unix:{}", cloud.socket);
    let here = dispatch(backends(&pool()), remote(&unix, 1_000, 1.0));
    let before = rounds(&here, 5, 0).await;
    assert!(reasons(&before)[4].contains("the marginals of r1, draw 4"));

    cloud.stop().await;
    let cloud = Cloud::start(&folder, &pool(), &[]).await;
    let after = rounds(&here, 2, 0).await;
    assert_eq!(
        reasons(&after),
        [
            "shares; the scheduler drew the set",
            "shares; the scheduler drew the set from the marginals of r6, draw 1",
        ]
    );

    cloud.stop().await;
    let alone = rounds(&here, 3, 0).await;
    for record in &alone {
        let decision = record.decision.as_ref().unwrap();
        assert_eq!(decision.source, DecisionSource::Router);
        assert!(
            decision.reason.contains("the set was drawn here"),
            "{decision:?}"
        );
        let here = llmpick_plugin_host::draw(&decision.marginals, record.seed, 2);
        assert_eq!(decision.choices, here);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_arms_and_those_that_are_down_are_not_drawn() {
    let folder = TempDir::new().unwrap();
    let price = Price::PerHour { usd: 0.0 };
    let refusal = || BackendError::Transport("the line is dead".into());
    let theirs: Vec<Arc<FakeBackend>> = vec![
        Arc::new(FakeBackend::new("a", Answer::text("yes").hanging_after(1)).price(price)),
        Arc::new(FakeBackend::new("b", Answer::refusal(refusal)).price(price)),
        Arc::new(FakeBackend::new("c", Answer::text("yes"))),
        Arc::new(FakeBackend::new("d", Answer::text("yes"))),
    ];
    theirs[2].set_unavailable(Some("its file is gone"));
    let flags = [("scheduler.queue", "1"), ("scheduler.down_after", "2")];
    let cloud = Cloud::start(&folder, &theirs, &flags).await;
    let request = |name: &str| {
        let mut request = RouteRequest::new(GenerateRequest::new(Prompt::Text("hello".to_owned())));
        request.target = Target::Pinned(ArmId::new(name).unwrap());
        request.mode = Some(Mode::Single);
        request
    };
    // `a` works on something without end, `b` failed twice.
    let _endless = cloud.dispatch.run(request("a")).await.unwrap();
    while theirs[0].state().inflight == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..2 {
        use futures::StreamExt;
        let stream = cloud.dispatch.run(request("b")).await.unwrap();
        let events: Vec<_> = stream.collect().await;
        assert!(events.last().unwrap().is_err());
    }

    let here = dispatch(backends(&pool()), remote(&cloud.url(), 1, 0.0));
    for record in rounds(&here, 20, 0).await {
        let decision = record.decision.unwrap();
        // `d` and, unknown to the scheduler and so the client's own affair, `e`.
        assert!(decision.choices.iter().all(|c| [3, 4].contains(c)));
        assert_eq!(decision.marginals[..3], [0.0; 3]);
        let total: f64 = decision.marginals.iter().sum();
        assert!((total - 2.0).abs() < 1e-9, "{total}");
        let note = "`a` is full, `b` is down, `c` is down";
        assert!(decision.reason.ends_with(note), "{}", decision.reason);
    }

    // Where nobody is left, the set is drawn here, and the ledger says why.
    let few: Vec<Arc<FakeBackend>> = pool().into_iter().take(3).collect();
    let here = dispatch(backends(&few), remote(&cloud.url(), 1, 0.0));
    let record = rounds(&here, 1, 0).await.remove(0);
    let reason = record.decision.unwrap().reason;
    assert!(
        reason.contains("every arm that may run is full or down"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_draws_no_sets_says_so() {
    let folder = TempDir::new().unwrap();
    let flags = [("scheduler.enabled", "false")];
    let cloud = Cloud::start(&folder, &pool(), &flags).await;
    let url = format!("{}/llmpick/v1/schedule", cloud.url());
    let call = serde_json::json!({"version": 1, "session": "s", "sequence": 1});
    let post = |body: Value| reqwest::Client::new().post(url.clone()).json(&body).send();
    let response = post(call.clone()).await.unwrap();
    assert_eq!(response.status(), 404);
    assert!(response.text().await.unwrap().contains("serve --scheduler"));
    cloud.stop().await;

    let cloud = Cloud::start(&folder, &pool(), &[]).await;
    let url = format!("{}/llmpick/v1/schedule", cloud.url());
    let post = |body: Value| reqwest::Client::new().post(url.clone()).json(&body).send();
    let response = post(call.clone()).await.unwrap();
    assert_eq!(response.status(), 404);
    let said: Value = response.json().await.unwrap();
    assert_eq!(said["error"]["code"], "unknown_session");
    let mut talkative = call;
    talkative["prompt"] = "where does the heron sleep".into();
    assert_eq!(post(talkative).await.unwrap().status(), 400);
    cloud.stop().await;
}
