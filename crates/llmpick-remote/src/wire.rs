//! OpenAI's chat completions, as far as an arm needs them.

use llmpick_core::{
    BackendError, FinishReason, GenerateRequest, Message, Prompt, Role, Sampling, Usage,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::ErrorBody;

/// The body of one call, or why this provider cannot do what is asked.
///
/// `temperature`, `top_p`, `seed`, `max_tokens` and `stop` are always sent. `top_k`, `min_p`
/// and the repetition penalty are no part of OpenAI's contract, and OpenAI itself refuses
/// unknown fields: with `extended` they are sent under llama.cpp's names; without it the
/// defaults of [`Sampling`] count as "the provider's own", and any other value is refused
/// rather than dropped.
pub(crate) fn body(
    request: &GenerateRequest,
    model: &str,
    extended: bool,
) -> Result<Value, BackendError> {
    check(&request.sampling)?;
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    match &request.prompt {
        Prompt::Chat(messages) => body.insert("messages".to_owned(), chat(messages)),
        Prompt::Text(text) => body.insert("prompt".to_owned(), text.as_str().into()),
    };
    body.insert("stream".to_owned(), true.into());
    body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    let sampling = &request.sampling;
    body.insert("temperature".to_owned(), number(sampling.temperature));
    body.insert("top_p".to_owned(), number(sampling.top_p));
    // Providers read the seed as a signed integer, and JSON readers lose bits above 2⁵³.
    body.insert("seed".to_owned(), (sampling.seed & 0x7fff_ffff).into());
    if let Some(max_tokens) = request.max_tokens {
        body.insert("max_tokens".to_owned(), max_tokens.into());
    }
    if !request.stop.is_empty() {
        body.insert("stop".to_owned(), json!(request.stop));
    }
    if request.logprobs {
        // The older contract of plain text wants a number: how many rivals of each token.
        let wanted = match &request.prompt {
            Prompt::Chat(_) => Value::from(true),
            Prompt::Text(_) => Value::from(0),
        };
        body.insert("logprobs".to_owned(), wanted);
    }
    extend(&mut body, sampling, extended)?;
    Ok(body.into())
}

fn chat(messages: &[Message]) -> Value {
    let messages = messages.iter();
    messages
        .map(|message| json!({"role": role(message.role), "content": message.content}))
        .collect()
}

/// Values that JSON cannot carry, or that every provider would refuse in words of its own.
fn check(sampling: &Sampling) -> Result<(), BackendError> {
    let ranges = [
        ("temperature", sampling.temperature, 2.0),
        ("top_p", sampling.top_p, 1.0),
        ("min_p", sampling.min_p, 1.0),
        ("repetition_penalty", sampling.repetition_penalty, f32::MAX),
    ];
    for (name, value, most) in ranges {
        if !(0.0..=most).contains(&value) {
            let problem = format!("{name} must be from 0 to {most}, not {value}");
            return Err(BackendError::InvalidRequest(problem));
        }
    }
    Ok(())
}

fn extend(
    body: &mut Map<String, Value>,
    sampling: &Sampling,
    extended: bool,
) -> Result<(), BackendError> {
    if extended {
        body.insert("top_k".to_owned(), sampling.top_k.into());
        body.insert("min_p".to_owned(), number(sampling.min_p));
        body.insert(
            "repeat_penalty".to_owned(),
            number(sampling.repetition_penalty),
        );
        body.insert(
            "repeat_last_n".to_owned(),
            sampling.repetition_window.into(),
        );
        return Ok(());
    }
    // With temperature 0 the likeliest token wins whatever top_k and min_p say.
    let greedy = sampling.temperature == 0.0;
    let plain = Sampling::default();
    let keeps = |value: bool| greedy || value;
    if !keeps(sampling.top_k == 0 || sampling.top_k == plain.top_k) {
        return Err(BackendError::Unsupported("an answer with this top_k"));
    }
    if !keeps(sampling.min_p == 0.0 || sampling.min_p == plain.min_p) {
        return Err(BackendError::Unsupported("an answer with this min_p"));
    }
    if sampling.repetition_penalty != plain.repetition_penalty {
        return Err(BackendError::Unsupported(
            "an answer with a repetition penalty",
        ));
    }
    Ok(())
}

/// 0.7, not 0.699999988: the shortest decimal that reads back as this number.
fn number(value: f32) -> Value {
    let shortest = value.to_string().parse::<f64>().unwrap_or(f64::from(value));
    shortest.into()
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

/// One event of the stream. Unknown keys are passed over.
#[derive(Debug, Deserialize)]
pub(crate) struct Chunk {
    #[serde(default)]
    pub(crate) choices: Vec<Choice>,
    #[serde(default)]
    pub(crate) usage: Option<WireUsage>,
    #[serde(default)]
    pub(crate) error: Option<ErrorBody>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Choice {
    #[serde(default)]
    pub(crate) delta: Delta,
    /// In the stream of a plain continuation.
    #[serde(default)]
    pub(crate) text: Option<String>,
    #[serde(default)]
    pub(crate) finish_reason: Option<String>,
    #[serde(default)]
    pub(crate) logprobs: Option<Logprobs>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Delta {
    #[serde(default)]
    pub(crate) content: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Logprobs {
    #[serde(default)]
    content: Option<Vec<TokenLogprob>>,
    /// In the stream of a plain continuation; the first token of a prompt has none.
    #[serde(default)]
    token_logprobs: Option<Vec<Option<f32>>>,
}

impl Logprobs {
    /// One figure per token, whichever contract they come by.
    pub(crate) fn into_figures(self) -> Vec<f32> {
        let chat = self
            .content
            .into_iter()
            .flatten()
            .map(|token| token.logprob);
        let plain = self.token_logprobs.into_iter().flatten().flatten();
        chat.chain(plain).collect()
    }
}

#[derive(Debug, Deserialize)]
struct TokenLogprob {
    logprob: f32,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct WireUsage {
    #[serde(default)]
    pub(crate) prompt_tokens: u32,
    #[serde(default)]
    pub(crate) completion_tokens: u32,
    #[serde(default)]
    pub(crate) prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct PromptDetails {
    #[serde(default)]
    pub(crate) cached_tokens: Option<u32>,
}

impl From<WireUsage> for Usage {
    fn from(usage: WireUsage) -> Usage {
        let details = usage.prompt_tokens_details;
        Usage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: details.and_then(|d| d.cached_tokens).unwrap_or(0),
            completion_tokens: usage.completion_tokens,
        }
    }
}

/// What a provider's reason means to us; a filter or a tool call is an end like a stop.
pub(crate) fn finish_reason(text: &str) -> FinishReason {
    match text {
        "length" | "max_tokens" => FinishReason::Length,
        _ => FinishReason::Stop,
    }
}

/// Tokens that a text of so many bytes has, about, for providers that do not say.
pub(crate) fn estimate_tokens(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn request(sampling: Sampling) -> GenerateRequest {
        GenerateRequest {
            sampling,
            logprobs: false,
            ..GenerateRequest::new(Prompt::Chat(vec![Message::user("hi")]))
        }
    }

    #[test]
    fn every_field_reaches_the_body() {
        let request = GenerateRequest {
            max_tokens: Some(5),
            stop: vec!["\n".to_owned()],
            logprobs: true,
            ..request(Sampling {
                seed: 7,
                ..Sampling::default()
            })
        };
        let body = body(&request, "m", false).unwrap();
        assert_eq!(
            body,
            json!({
                "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true,
                "stream_options": {"include_usage": true}, "temperature": 0.7, "top_p": 0.95,
                "seed": 7, "max_tokens": 5, "stop": ["\n"], "logprobs": true,
            })
        );
    }

    #[test]
    fn sampling_that_a_provider_does_not_know_is_refused_or_sent() {
        let unusual = request(Sampling {
            top_k: 3,
            ..Sampling::default()
        });
        assert!(matches!(
            body(&unusual, "m", false),
            Err(BackendError::Unsupported(_))
        ));
        assert_eq!(body(&unusual, "m", true).unwrap()["top_k"], 3);
        let greedy = request(Sampling {
            top_k: 3,
            ..Sampling::greedy()
        });
        assert!(body(&greedy, "m", false).is_ok());
        let penalty = request(Sampling {
            repetition_penalty: 1.1,
            ..Sampling::default()
        });
        assert!(matches!(
            body(&penalty, "m", false),
            Err(BackendError::Unsupported(_))
        ));
    }
}
