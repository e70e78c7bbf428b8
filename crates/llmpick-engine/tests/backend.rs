//! A local model as an arm: queue, stream, stop, cancel, unload.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::tiny::Tiny;
use futures::StreamExt;
use llmpick_core::{
    Backend, BackendError, Event, EventStream, Finish, FinishReason, GenerateRequest, Message,
    Prompt, Sampling,
};
use llmpick_engine::{EngineOptions, LocalModel};

struct World {
    _folder: tempfile::TempDir,
    model: LocalModel,
}

fn world(tiny: &Tiny) -> World {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny.write(folder.path());
    World {
        model: LocalModel::new(common::arm("tiny"), path, EngineOptions::default()),
        _folder: folder,
    }
}

fn request(max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        ..GenerateRequest::new(Prompt::Text("Once upon a time".to_owned()))
    }
}

struct Answer {
    text: String,
    logprobs: Vec<f32>,
    finish: Finish,
}

async fn collect(mut stream: EventStream) -> Result<Answer, BackendError> {
    let (mut text, mut logprobs, mut finish) = (String::new(), Vec::new(), None);
    while let Some(event) = stream.next().await {
        assert!(finish.is_none(), "nothing follows the end");
        match event? {
            Event::Token(piece) => {
                text.push_str(&piece.text);
                logprobs.extend(piece.logprobs);
            }
            Event::Finish(end) => finish = Some(end),
        }
    }
    Ok(Answer {
        text,
        logprobs,
        finish: finish.unwrap(),
    })
}

async fn answer(model: &LocalModel, request: GenerateRequest) -> Answer {
    collect(model.generate(request).await.unwrap())
        .await
        .unwrap()
}

/// A random model that goes on for at least 30 tokens of its own.
async fn talkative() -> (World, Answer) {
    for seed in 0..20 {
        let world = world(&Tiny {
            seed,
            ..Tiny::new("llama")
        });
        let answer = answer(&world.model, request(30)).await;
        if answer.finish.reason == FinishReason::Length && answer.text.chars().count() > 12 {
            return (world, answer);
        }
    }
    panic!("no seed gives a text");
}

#[tokio::test]
async fn the_first_request_loads_and_the_second_is_warm() {
    let world = world(&Tiny::new("llama"));
    let before = world.model.state();
    assert!(!before.warm && before.resident_bytes == 0 && before.inflight == 0);
    let cold = answer(&world.model, request(5)).await;
    assert!(cold.finish.load > Duration::ZERO);
    assert!(cold.finish.busy >= cold.finish.prefill && cold.finish.prefill > Duration::ZERO);
    let state = world.model.state();
    assert!(state.warm && state.resident_bytes > 0 && state.inflight == 0);
    let warm = answer(&world.model, request(5)).await;
    assert_eq!(warm.finish.load, Duration::ZERO);
    assert_eq!(warm.text, cold.text);
    assert_eq!(warm.finish.usage.cached_tokens, 15);
    assert!(world.model.unload().await);
    assert!(!world.model.state().warm);
    let again = answer(&world.model, request(5)).await;
    assert!(again.finish.load > Duration::ZERO);
    assert_eq!(again.text, cold.text);
}

#[tokio::test]
async fn the_bill_counts_what_was_done() {
    let (world, whole) = talkative().await;
    assert_eq!(whole.finish.usage.prompt_tokens, 16);
    assert_eq!(whole.finish.usage.completion_tokens, 30);
    assert_eq!(whole.logprobs.len(), 30);
    assert!(whole.logprobs.iter().all(|l| l.is_finite() && *l <= 0.0));
    let quiet = answer(
        &world.model,
        GenerateRequest {
            logprobs: false,
            ..request(30)
        },
    )
    .await;
    assert_eq!(quiet.text, whole.text);
    assert!(quiet.logprobs.is_empty());
}

#[tokio::test]
async fn a_stop_string_ends_the_text_before_it() {
    let (world, whole) = talkative().await;
    let from: usize = whole.text.char_indices().nth(5).unwrap().0;
    let to: usize = whole.text.char_indices().nth(8).unwrap().0;
    let stop = whole.text[from..to].to_owned();
    let expected = whole.text[..whole.text.find(&stop).unwrap()].to_owned();
    let stopped = answer(
        &world.model,
        GenerateRequest {
            stop: vec![stop],
            ..request(30)
        },
    )
    .await;
    assert_eq!(stopped.text, expected);
    assert_eq!(stopped.finish.reason, FinishReason::Stop);
    assert!(stopped.finish.usage.completion_tokens < 30);
    assert!(stopped.logprobs.len() < stopped.finish.usage.completion_tokens as usize);
}

#[tokio::test]
async fn a_dropped_stream_frees_the_model() {
    let (world, _) = talkative().await;
    // More than the context would take minutes to fill; the streams are dropped at once.
    for _ in 0..10 {
        let mut stream = world.model.generate(request(200)).await.unwrap();
        drop(stream.next().await);
        drop(stream);
    }
    let after = answer(&world.model, request(3)).await;
    assert_eq!(after.finish.usage.completion_tokens, 3);
    assert_eq!(world.model.state().inflight, 0);
}

#[tokio::test]
async fn requests_wait_in_order_and_not_without_end() {
    let (world, _) = talkative().await;
    let mut streams = Vec::new();
    let refused = loop {
        match world.model.generate(request(200)).await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 1000);
    };
    assert!(
        matches!(refused, BackendError::Busy { waiting: 64 }),
        "{refused}"
    );
    assert!(world.model.state().inflight >= 64);
    let last = streams.pop().unwrap();
    // All but the first and the last leave; those two are answered.
    let first = streams.swap_remove(0);
    drop(streams);
    let first = collect(first).await.unwrap();
    let last = collect(last).await.unwrap();
    assert!(first.finish.usage.completion_tokens >= 30);
    assert_eq!(first.text, last.text);
}

#[tokio::test]
async fn the_context_is_a_limit_and_never_a_short_answer() {
    let (world, _) = talkative().await;
    let long = |letters: usize| GenerateRequest {
        prompt: Prompt::Text("x".repeat(letters)),
        max_tokens: None,
        ..request(1)
    };
    for letters in [256, 300] {
        let refused = world.model.generate(long(letters)).await.err().unwrap();
        let BackendError::ContextExceeded {
            prompt_tokens,
            context_tokens,
        } = refused
        else {
            panic!("{refused}");
        };
        assert_eq!((prompt_tokens as usize, context_tokens), (letters, 256));
    }
    let full = answer(&world.model, long(250)).await;
    assert!(full.finish.usage.completion_tokens <= 6);
}

#[tokio::test]
async fn values_that_make_no_sense_are_the_request_s_fault() {
    let world = world(&Tiny::new("llama"));
    let hot = Sampling {
        temperature: f32::NAN,
        ..Sampling::default()
    };
    for wrong in [
        GenerateRequest {
            max_tokens: Some(0),
            ..request(1)
        },
        GenerateRequest {
            stop: vec![String::new()],
            ..request(1)
        },
        GenerateRequest {
            sampling: hot,
            ..request(1)
        },
        GenerateRequest {
            prompt: Prompt::Text(String::new()),
            ..request(1)
        },
    ] {
        let refused = world.model.generate(wrong).await.err().unwrap();
        assert!(
            matches!(refused, BackendError::InvalidRequest(_)),
            "{refused}"
        );
        assert!(!refused.is_arm_fault());
    }
    assert_eq!(world.model.state().inflight, 0);
}

#[tokio::test]
async fn one_seed_gives_one_text() {
    let world = world(&Tiny::new("qwen3"));
    let drawn = |seed| GenerateRequest {
        sampling: Sampling {
            temperature: 1.5,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed,
            ..Sampling::default()
        },
        ..request(20)
    };
    let first = answer(&world.model, drawn(1)).await;
    let other = answer(&world.model, drawn(2)).await;
    let again = answer(&world.model, drawn(1)).await;
    assert_eq!(first.text, again.text);
    assert_eq!(first.logprobs, again.logprobs);
    assert_ne!(first.text, other.text);
}

#[tokio::test]
async fn a_missing_file_makes_the_arm_unavailable_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let model = LocalModel::new(common::arm("tiny"), path, EngineOptions::default());
    let refused = model.generate(request(1)).await.err().unwrap();
    assert!(matches!(refused, BackendError::Load(_)), "{refused}");
    let reason = model.state().unavailable.unwrap();
    assert!(reason.contains("no such file"), "{reason}");
    // Nothing has to be restarted once the file is there.
    std::fs::rename(
        Tiny::new("llama").write(folder.path()),
        folder.path().join("tiny.gguf"),
    )
    .unwrap();
    answer(&model, request(2)).await;
    assert_eq!(model.state().unavailable, None);
}

#[tokio::test]
async fn a_base_model_sees_the_contents_alone() {
    let world = world(&Tiny::new("llama"));
    let chat = GenerateRequest {
        prompt: Prompt::Chat(vec![Message::system("Once upon"), Message::user("a time")]),
        ..request(4)
    };
    let text = GenerateRequest {
        prompt: Prompt::Text("Once upon\n\na time".to_owned()),
        ..request(4)
    };
    assert_eq!(
        answer(&world.model, chat).await.text,
        answer(&world.model, text).await.text
    );
}

#[test]
fn it_works_without_a_runtime() {
    let world = world(&Tiny::new("llama"));
    let answer = futures::executor::block_on(answer(&world.model, request(3)));
    assert_eq!(answer.finish.usage.completion_tokens, 3);
}
