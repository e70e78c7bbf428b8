//! What every backend must do, local or remote.

use std::fmt::Debug;

use futures::StreamExt;
use llmpick_core::{
    Backend, BackendError, ChoicesRequest, Event, Finish, FinishReason, GenerateRequest, Locality,
    Message, Prompt, Sampling,
};

/// Runs every check on backends from `make`, each on a fresh one. The backend must answer
/// the prompt "Count: one two three" with at least three pieces of text.
///
/// # Panics
/// With a sentence, at the first promise of [`Backend`] that does not hold.
pub async fn backend_suite<B: Backend>(make: impl Fn() -> B) {
    ends_with_exactly_one_finish(&make()).await;
    greedy_answers_repeat(&make()).await;
    length_limits_hold(&make()).await;
    stop_strings_never_leak(&make()).await;
    dropping_cancels(&make()).await;
    too_long_prompts_are_refused(&make()).await;
    nonsense_is_refused(&make()).await;
    logprobs_match_tokens(&make()).await;
    chat_works(&make()).await;
    choices_answer_or_refuse(&make()).await;
}

fn request() -> GenerateRequest {
    GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(12),
        ..GenerateRequest::new(Prompt::Text("Count: one two three".to_owned()))
    }
}

/// Everything a stream sent, checked for order: tokens, one finish, nothing after.
struct Heard {
    text: String,
    pieces: usize,
    logprobs: Vec<f32>,
    finish: Finish,
}

async fn hear(backend: &dyn Backend, request: GenerateRequest) -> Heard {
    let mut stream = ok(backend.generate(request).await, "answer a plain request");
    let (mut text, mut pieces, mut logprobs) = (String::new(), 0, Vec::new());
    loop {
        match stream.next().await {
            Some(Ok(Event::Token(piece))) => {
                pieces += 1;
                text += &piece.text;
                logprobs.extend(piece.logprobs);
            }
            Some(Ok(Event::Finish(finish))) => {
                let after = stream.next().await.is_none();
                assert!(after, "the stream must end with its finish");
                return Heard {
                    text,
                    pieces,
                    logprobs,
                    finish,
                };
            }
            Some(Err(error)) => panic!("the stream must not fail: {error}"),
            None => panic!("the stream must not end without a finish"),
        }
    }
}

async fn ends_with_exactly_one_finish(backend: &dyn Backend) {
    let heard = hear(backend, request()).await;
    let usage = heard.finish.usage;
    assert!(usage.prompt_tokens > 0, "a prompt has tokens");
    assert!(
        usage.cached_tokens <= usage.prompt_tokens,
        "no more tokens can be cached than there are"
    );
    assert!(
        usage.completion_tokens as usize >= heard.pieces.min(1),
        "text comes from tokens"
    );
    assert!(
        heard.finish.prefill <= heard.finish.busy,
        "prefill is a part of the work"
    );
    match backend.arm().locality {
        Locality::Local => assert!(
            !heard.finish.busy.is_zero(),
            "local work takes device time, which is what it costs"
        ),
        Locality::Remote => assert!(
            heard.finish.busy.is_zero(),
            "remote work is billed by tokens"
        ),
    }
    assert_eq!(backend.state().inflight, 0, "nothing runs after the finish");
    assert!(backend.state().warm, "an arm that just answered is warm");
}

async fn greedy_answers_repeat(backend: &dyn Backend) {
    if backend.arm().locality == Locality::Remote {
        return; // A provider's greedy answers may differ from call to call.
    }
    let (first, second) = (
        hear(backend, request()).await,
        hear(backend, request()).await,
    );
    assert_eq!(first.text, second.text, "temperature 0 must repeat itself");
}

async fn length_limits_hold(backend: &dyn Backend) {
    let short = GenerateRequest {
        max_tokens: Some(2),
        ..request()
    };
    let heard = hear(backend, short).await;
    let tokens = heard.finish.usage.completion_tokens;
    assert!(tokens <= 2, "{tokens} tokens where 2 were allowed");
    assert_eq!(heard.finish.reason, FinishReason::Length);
}

async fn stop_strings_never_leak(backend: &dyn Backend) {
    let whole = hear(backend, request()).await.text;
    // A stop string that spans pieces: the middle third of what it would say.
    let characters: Vec<char> = whole.chars().collect();
    let (from, to) = (characters.len() / 3, 2 * characters.len() / 3);
    let stop: String = characters[from..to.max(from + 1)].iter().collect();
    let stopped = GenerateRequest {
        stop: vec![stop.clone()],
        ..request()
    };
    let heard = hear(backend, stopped).await;
    assert!(
        !heard.text.contains(&stop),
        "`{stop}` must not be a part of `{}`",
        heard.text
    );
    if backend.arm().locality == Locality::Local {
        let before = whole.split(&stop).next().unwrap_or_default();
        assert_eq!(
            heard.text, before,
            "the text ends where the stop string begins"
        );
        assert_eq!(heard.finish.reason, FinishReason::Stop);
    }
}

async fn dropping_cancels(backend: &dyn Backend) {
    let long = GenerateRequest {
        max_tokens: None,
        ..request()
    };
    let mut stream = ok(backend.generate(long).await, "answer a plain request");
    assert!(stream.next().await.is_some(), "something must come");
    drop(stream);
    // The place is free before long: a request that follows is answered in full.
    hear(backend, request()).await;
    assert_eq!(
        backend.state().inflight,
        0,
        "a dropped stream must not stay"
    );
}

async fn too_long_prompts_are_refused(backend: &dyn Backend) {
    let context = backend.arm().context_tokens;
    let long = "word ".repeat(context as usize + 1);
    let request = GenerateRequest {
        prompt: Prompt::Text(long),
        ..request()
    };
    match backend.generate(request).await.map(drop) {
        Err(BackendError::ContextExceeded {
            prompt_tokens,
            context_tokens,
        }) => assert!(prompt_tokens >= context_tokens),
        // A provider may say it in its own words.
        Err(BackendError::Provider { .. }) if backend.arm().locality == Locality::Remote => {}
        other => panic!("a prompt beyond the context must be an error, not {other:?}"),
    }
    hear(backend, self::request()).await;
}

async fn nonsense_is_refused(backend: &dyn Backend) {
    for temperature in [f32::NAN, -1.0, f32::INFINITY] {
        let sampling = Sampling {
            temperature,
            ..Sampling::greedy()
        };
        let request = GenerateRequest {
            sampling,
            ..request()
        };
        let refused = backend.generate(request).await.map(drop);
        let fair = matches!(refused, Err(BackendError::InvalidRequest(_)));
        assert!(
            fair,
            "temperature {temperature} must be refused: {refused:?}"
        );
    }
}

async fn logprobs_match_tokens(backend: &dyn Backend) {
    let heard = hear(backend, request()).await;
    let sane = heard.logprobs.iter().all(|&p| p <= 0.0 && !p.is_nan());
    assert!(sane, "a log-probability is at most 0: {:?}", heard.logprobs);
    let quiet = GenerateRequest {
        logprobs: false,
        ..request()
    };
    let heard = hear(backend, quiet).await;
    assert!(
        heard.logprobs.is_empty(),
        "nobody asked for log-probabilities"
    );
}

async fn chat_works(backend: &dyn Backend) {
    let chat = GenerateRequest {
        prompt: Prompt::Chat(vec![Message::user("Count: one two three")]),
        ..request()
    };
    let heard = hear(backend, chat).await;
    assert!(heard.finish.usage.prompt_tokens > 0);
}

async fn choices_answer_or_refuse(backend: &dyn Backend) {
    let choices = vec![" four".to_owned(), " bread and butter".to_owned()];
    let request = ChoicesRequest {
        prompt: Prompt::Text("Count: one two three".to_owned()),
        choices: choices.clone(),
    };
    match backend.choices(request).await {
        Err(BackendError::Unsupported(_)) => {}
        Err(error) => panic!("likelihoods must be answered or refused as unsupported: {error}"),
        Ok(rows) => {
            assert_eq!(rows.len(), choices.len(), "one row per choice");
            for (row, choice) in rows.iter().zip(&choices) {
                assert_eq!(row.bytes as usize, choice.len());
                assert!(row.tokens > 0 && row.prompt_tokens > 0);
                assert!(row.logprob <= 0.0, "{}", row.logprob);
                assert_eq!(row.prompt_tokens, rows[0].prompt_tokens);
            }
        }
    }
}

fn ok<T, E: Debug>(result: Result<T, E>, doing: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the backend must {doing}: {error:?}"),
    }
}
