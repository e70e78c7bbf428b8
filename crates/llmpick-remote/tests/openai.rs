//! An OpenAI-compatible arm against servers that behave, and against servers that do not.

#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::StreamExt;
use llmpick_core::{
    Arm, ArmId, Backend, BackendError, Event, FinishReason, GenerateRequest, Locality, Message,
    Price, Prompt, Sampling, Usage,
};
use llmpick_remote::{OpenAi, OpenAiOptions, Secret};
use serde_json::{Value, json};
use wiremock::matchers::{body_partial_json, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

const KEY: &str = "sk-very-secret";

fn options(base_url: &str) -> OpenAiOptions {
    OpenAiOptions {
        base_url: base_url.to_owned(),
        model: "big".to_owned(),
        api_key: Some(Secret::new(KEY)),
        unavailable: None,
        timeout: Duration::from_secs(5),
        extended_sampling: false,
    }
}

fn arm(options: OpenAiOptions) -> OpenAi {
    let arm = Arm {
        id: ArmId::new("far/big").unwrap(),
        locality: Locality::Remote,
        context_tokens: 512,
        price: Price::PerToken {
            input_usd: 1.0,
            output_usd: 2.0,
        },
    };
    OpenAi::new(arm, options).unwrap()
}

fn request() -> GenerateRequest {
    GenerateRequest {
        logprobs: false,
        ..GenerateRequest::new(Prompt::Chat(vec![Message::user("hi")]))
    }
}

fn chunk(content: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"index": 0, "delta": {"content": content}}]})
    )
}

const STOP: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn sse(body: impl Into<String>) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_raw(body.into(), "text/event-stream")
}

async fn serve(response: ResponseTemplate) -> (MockServer, OpenAi) {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/v1/chat/completions"))
        .and(header("authorization", format!("Bearer {KEY}").as_str()))
        .respond_with(response)
        .mount(&server)
        .await;
    let arm = arm(options(&format!("{}/v1", server.uri())));
    (server, arm)
}

/// Text and finish, or the error.
async fn hear(
    arm: &OpenAi,
    request: GenerateRequest,
) -> Result<(String, Usage, FinishReason), BackendError> {
    let mut events = arm.generate(request).await?;
    let mut text = String::new();
    while let Some(event) = events.next().await {
        match event? {
            Event::Token(piece) => text.push_str(&piece.text),
            Event::Finish(finish) => return Ok((text, finish.usage, finish.reason)),
        }
    }
    panic!("the stream ended without a finish")
}

/// The error with all its causes, in which no key may be.
fn told(error: BackendError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(!text.contains(KEY), "{text}");
    assert!(!format!("{error:?}").contains(KEY));
    text
}

#[tokio::test]
async fn an_answer_arrives_with_its_bill() {
    let (_server, arm) = serve(sse(chunk("Hel") + &chunk("lo") + STOP + USAGE + DONE)).await;
    let usage = Usage {
        prompt_tokens: 7,
        cached_tokens: 3,
        completion_tokens: 2,
    };
    assert_eq!(
        hear(&arm, request()).await.unwrap(),
        ("Hello".into(), usage, FinishReason::Stop)
    );
    assert_eq!(arm.state().inflight, 0);
}

#[tokio::test]
async fn without_usage_the_bill_is_estimated() {
    let (_server, arm) = serve(sse(chunk("twelve bytes") + STOP + DONE)).await;
    let (_, usage, _) = hear(&arm, request()).await.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (1, 3));
}

#[tokio::test]
async fn a_cut_stream_is_a_transport_error() {
    for body in [
        chunk("Hel"),
        chunk("Hel") + USAGE,
        chunk("Hel") + DONE,
        String::new(),
    ] {
        let (_server, arm) = serve(sse(body.clone())).await;
        let error = hear(&arm, request()).await.unwrap_err();
        assert!(
            matches!(error, BackendError::Transport(_)),
            "{body}: {error:?}"
        );
    }
}

#[tokio::test]
async fn what_is_no_stream_is_an_error() {
    let page = ResponseTemplate::new(200).set_body_raw("<html>hello</html>", "text/html");
    let odd = sse("data: {not json}\n\n");
    let error =
        sse(chunk("Hel") + &format!("data: {{\"error\":{{\"message\":\"out of {KEY}\"}}}}\n\n"));
    for response in [page, odd, error] {
        let (_server, arm) = serve(response).await;
        let error = hear(&arm, request()).await.unwrap_err();
        assert!(matches!(error, BackendError::Transport(_)), "{error:?}");
        told(error);
    }
}

#[tokio::test]
async fn each_status_becomes_its_error() {
    for status in [401, 403, 404, 429, 500, 503, 307] {
        let body = json!({"error": {"message": format!("no, {KEY}")}});
        let response = ResponseTemplate::new(status)
            .insert_header("retry-after", "30")
            .insert_header("location", "https://elsewhere.example/")
            .set_body_json(body);
        let (_server, arm) = serve(response).await;
        let error = hear(&arm, request()).await.unwrap_err();
        match &error {
            BackendError::Provider { status: told, .. } => assert_eq!(*told, status),
            other => panic!("{status}: {other:?}"),
        }
        assert!(told(error).contains("no, [key]"));
        let paused = arm.state().unavailable;
        assert_eq!(
            paused.is_some(),
            matches!(status, 429 | 503),
            "{status}: {paused:?}"
        );
    }
}

#[tokio::test]
async fn a_paused_arm_is_not_asked_again() {
    let response = ResponseTemplate::new(429).insert_header("retry-after", "60");
    let (server, arm) = serve(response).await;
    hear(&arm, request()).await.unwrap_err();
    let error = hear(&arm, request()).await.unwrap_err();
    assert!(told(error).contains("come back in"));
    assert_eq!(server.received_requests().await.unwrap().len(), 1);
}

#[tokio::test]
async fn nobody_there_is_a_transport_error() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let arm = arm(options(&format!("http://{unused}/v1")));
    let error = hear(&arm, request()).await.unwrap_err();
    assert!(matches!(error, BackendError::Transport(_)), "{error:?}");
    told(error);
}

#[tokio::test]
async fn silence_is_a_timeout() {
    // Before the answer, and in the midst of it.
    let slow = sse(chunk("x") + STOP + DONE).set_delay(Duration::from_secs(60));
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(slow)
        .mount(&server)
        .await;
    let silent_start = format!("{}/v1", server.uri());
    let silent_midst = stalling_server(chunk("Hel")).await;
    for base_url in [silent_start, silent_midst] {
        let arm = arm(OpenAiOptions {
            timeout: Duration::from_millis(300),
            ..options(&base_url)
        });
        let error = hear(&arm, request()).await.unwrap_err();
        assert!(matches!(error, BackendError::Timeout(_)), "{error:?}");
        assert_eq!(arm.state().inflight, 0);
    }
}

/// Sends this much and then nothing.
async fn stalling_server(beginning: String) -> String {
    let routes = Router::new().route(
        "/v1/chat/completions",
        post(move || {
            let beginning = beginning.clone();
            async move {
                let first = futures::stream::iter([Ok::<_, std::io::Error>(beginning)]);
                Body::from_stream(first.chain(futures::stream::pending()))
            }
        }),
    );
    start(routes).await
}

async fn start(routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}/v1")
}

#[tokio::test]
async fn an_arm_without_its_key_says_so_and_sends_nothing() {
    let server = MockServer::start().await;
    let reason = "the variable X with its key is not set".to_owned();
    let arm = arm(OpenAiOptions {
        unavailable: Some(reason.clone()),
        ..options(&server.uri())
    });
    assert_eq!(arm.state().unavailable, Some(reason));
    assert!(hear(&arm, request()).await.is_err());
    assert!(server.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_provider_without_logprobs_is_asked_again_without_them() {
    let server = MockServer::start().await;
    let complaint = json!({"error": {"message": "`logprobs` is not supported with this model"}});
    Mock::given(body_partial_json(json!({"logprobs": true})))
        .respond_with(ResponseTemplate::new(400).set_body_json(complaint))
        .expect(1)
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .respond_with(sse(chunk("ok") + STOP + USAGE + DONE))
        .with_priority(10)
        .expect(2)
        .mount(&server)
        .await;
    let arm = arm(options(&format!("{}/v1", server.uri())));
    let wanted = GenerateRequest {
        logprobs: true,
        ..request()
    };
    for _ in 0..2 {
        assert_eq!(hear(&arm, wanted.clone()).await.unwrap().0, "ok");
    }
}

/// A server that counts: it answers "one two three …" and keeps to what it is asked.
#[derive(Default)]
struct Counting {
    running: Arc<AtomicU32>,
    bodies: Mutex<Vec<Value>>,
}

async fn count(State(state): State<Arc<Counting>>, _headers: HeaderMap, body: String) -> Response {
    let body: Value = serde_json::from_str(&body).unwrap();
    state.bodies.lock().unwrap().push(body.clone());
    let chat = body.get("messages").is_some();
    let prompt = match chat {
        true => body["messages"][0]["content"].as_str().unwrap().to_owned(),
        false => body["prompt"].as_str().unwrap().to_owned(),
    };
    let words = prompt.split_whitespace().count();
    if words >= 512 {
        let error =
            json!({"error": {"message": "too long", "n_prompt_tokens": words, "n_ctx": 512}});
        return (StatusCode::BAD_REQUEST, error.to_string()).into_response();
    }
    let limit = body["max_tokens"].as_u64().unwrap_or(40);
    let stops: Vec<&str> = body["stop"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut said = String::new();
    let mut events = Vec::new();
    let mut reason = "length";
    for n in 0..limit {
        let piece = format!("{n} ");
        if stops
            .iter()
            .any(|stop| (said.clone() + &piece).contains(stop))
        {
            reason = "stop";
            break;
        }
        said += &piece;
        events.push(choice(chat, &body, &piece));
    }
    let completed = events.len();
    events
        .push(json!({"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": reason}]}));
    events.push(
        json!({"choices": [], "usage": {"prompt_tokens": words, "completion_tokens": completed}}),
    );
    let lines: Vec<_> = events
        .into_iter()
        .map(|event| Ok::<_, std::io::Error>(format!("data: {event}\n\n")))
        .collect();
    let stream = futures::stream::iter(lines).chain(futures::stream::iter([Ok(DONE.to_owned())]));
    state.running.fetch_add(1, Ordering::SeqCst);
    Body::from_stream(stream).into_response()
}

fn choice(chat: bool, body: &Value, piece: &str) -> Value {
    let wants = body.get("logprobs").is_some();
    let logprobs = match (chat, wants) {
        (_, false) => Value::Null,
        (true, true) => json!({"content": [{"token": piece, "logprob": -0.25}]}),
        (false, true) => json!({"token_logprobs": [-0.25]}),
    };
    match chat {
        true => {
            json!({"choices": [{"index": 0, "delta": {"content": piece}, "logprobs": logprobs}]})
        }
        false => json!({"choices": [{"index": 0, "text": piece, "logprobs": logprobs}]}),
    }
}

#[tokio::test]
async fn it_keeps_every_promise_of_a_backend() {
    let state = Arc::new(Counting::default());
    let routes = Router::new()
        .route("/v1/chat/completions", post(count))
        .route("/v1/completions", post(count))
        .with_state(Arc::clone(&state));
    let base_url = start(routes).await;
    llmpick_testkit::backend_suite(|| arm(options(&base_url))).await;
    assert!(state.running.load(Ordering::SeqCst) > 5);
}

#[tokio::test]
async fn options_reach_the_provider_or_are_refused() {
    let state = Arc::new(Counting::default());
    let routes = Router::new()
        .route("/v1/chat/completions", post(count))
        .with_state(Arc::clone(&state));
    let base_url = start(routes).await;
    let unusual = GenerateRequest {
        sampling: Sampling {
            top_k: 3,
            repetition_penalty: 1.2,
            seed: 5,
            ..Sampling::default()
        },
        max_tokens: Some(2),
        ..request()
    };
    let plain = arm(options(&base_url));
    assert!(matches!(
        hear(&plain, unusual.clone()).await,
        Err(BackendError::Unsupported(_))
    ));
    let extended = arm(OpenAiOptions {
        extended_sampling: true,
        ..options(&base_url)
    });
    hear(&extended, unusual).await.unwrap();
    let bodies = state.bodies.lock().unwrap();
    assert_eq!(bodies.len(), 1, "the refused request is not sent");
    let want =
        json!({"model": "big", "top_k": 3, "repeat_penalty": 1.2, "seed": 5, "max_tokens": 2});
    for (key, value) in want.as_object().unwrap() {
        assert_eq!(&bodies[0][key], value, "{key}");
    }
}
