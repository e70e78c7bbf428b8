//! What a client asks of `/v1/chat/completions` and `/llmpick/v1/task`, checked field by field.
//!
//! No field that is accepted is ignored: it works, or the answer is 400. A field whose value
//! asks for nothing (`n: 1`, an empty `tools`, `null`) is as good as absent.

use std::time::Duration;

use axum::http::HeaderMap;
use llmpick_core::{
    ContextKey, GenerateRequest, Message, Mode, NanoDollars, Prompt, Role, Sampling, Score,
};
use llmpick_dispatch::{MOST_FEATURES, Part, RouteRequest};
use serde_json::{Map, Value};

use super::error::ApiError;

/// A chat completion as it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct ChatRequest {
    /// `auto`, or a model's name.
    pub(crate) model: String,
    /// Answer in events.
    pub(crate) stream: bool,
    /// Close the stream with the usage.
    pub(crate) include_usage: bool,
    /// Send each token's log-probability.
    pub(crate) logprobs: bool,
    /// What dispatch is asked; its target is still open.
    pub(crate) route: RouteRequest,
}

type Checked<T> = Result<T, ApiError>;

/// A request with parts as it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct TaskRequest {
    /// `auto`, or a model's name.
    pub(crate) model: String,
    /// Answer in events.
    pub(crate) stream: bool,
    /// What dispatch is asked; its target is still open.
    pub(crate) route: RouteRequest,
}

/// Reads a body and the `x-llmpick-*` headers. `plain` is how tokens are drawn where the
/// body does not say.
pub(crate) fn read(body: &[u8], headers: &HeaderMap, plain: &Sampling) -> Checked<ChatRequest> {
    let mut fields = Fields::of(body)?;
    let model = fields.required_text("model")?;
    let messages = messages(fields.take("messages"))?;
    let stream = fields.switch("stream")?.unwrap_or(false);
    let include_usage = stream_options(&mut fields, stream)?;
    let logprobs = fields.switch("logprobs")?.unwrap_or(false);
    top_logprobs(&mut fields)?;
    let generate = GenerateRequest {
        prompt: Prompt::Chat(messages),
        sampling: sampling(&mut fields, plain)?,
        max_tokens: max_tokens(&mut fields)?,
        stop: stop(fields.take("stop"))?,
        logprobs,
    };
    let seed = Some(generate.sampling.seed).filter(|seed| *seed != 0);
    let mut route = RouteRequest {
        seed,
        ..RouteRequest::new(generate)
    };
    routing(&mut route, fields.take("llmpick"), headers)?;
    if matches!(route.mode, Some(Mode::SumUp | Mode::AllIn)) {
        return Err(ApiError::invalid(
            "llmpick.mode",
            "`llmpick.mode` has to be single or any_win; sum_up and all_in are for \
             /llmpick/v1/task",
        ));
    }
    if let Some(user) = fields.text("user")?
        && route.session.is_empty()
    {
        route.session = user;
    }
    harmless(&mut fields)?;
    fields.finish()?;
    Ok(ChatRequest {
        model,
        stream,
        include_usage,
        logprobs,
        route,
    })
}

/// Reads the body of a request with parts, and the `x-llmpick-*` headers.
pub(crate) fn read_task(
    body: &[u8],
    headers: &HeaderMap,
    plain: &Sampling,
) -> Checked<TaskRequest> {
    let mut fields = Fields::of(body)?;
    let model = fields.text("model")?.unwrap_or_else(|| "auto".to_owned());
    let common = match fields.take("messages") {
        None => Vec::new(),
        given => messages(given)?,
    };
    let parts = parts(fields.take("parts"))?;
    let stream = fields.switch("stream")?.unwrap_or(false);
    let generate = GenerateRequest {
        prompt: Prompt::Chat(common),
        sampling: sampling(&mut fields, plain)?,
        max_tokens: max_tokens(&mut fields)?,
        stop: stop(fields.take("stop"))?,
        logprobs: false,
    };
    let mut route = RouteRequest {
        seed: Some(generate.sampling.seed).filter(|seed| *seed != 0),
        parts,
        ..RouteRequest::new(generate)
    };
    routing(&mut route, fields.take("llmpick"), headers)?;
    if matches!(route.mode, Some(Mode::Single | Mode::AnyWin)) {
        let message = "`llmpick.mode` has to be sum_up or all_in";
        return Err(ApiError::invalid("llmpick.mode", message));
    }
    fields.finish()?;
    Ok(TaskRequest {
        model,
        stream,
        route,
    })
}

fn parts(value: Option<Value>) -> Checked<Vec<Part>> {
    let wants = "`parts` has to be a list of at least one part";
    match value {
        Some(Value::Array(items)) if !items.is_empty() => items
            .into_iter()
            .enumerate()
            .map(|(index, item)| {
                read_part(item).map_err(|problem| {
                    let place = format!("parts[{index}]");
                    let message = format!("`{place}` {problem}");
                    ApiError::invalid(&place, message)
                })
            })
            .collect(),
        _ => Err(ApiError::invalid("parts", wants)),
    }
}

/// One part; the error completes "`parts[0]` …".
fn read_part(value: Value) -> Result<Part, String> {
    let Value::Object(mut map) = value else {
        return Err("has to be an object".to_owned());
    };
    let mut text = |key: &str| match map.shift_remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("has a `{key}` that is no text")),
    };
    let name = text("name")?.filter(|name| !name.is_empty());
    let prompt = text("prompt")?;
    let (reference, scorer) = (text("reference")?, text("scorer")?);
    let messages = match (prompt, map.shift_remove("messages")) {
        (Some(prompt), None) => vec![Message::user(prompt)],
        (None, Some(Value::Array(items))) => {
            items.into_iter().map(message).collect::<Result<_, _>>()?
        }
        _ => return Err("needs either a `prompt` or `messages`".to_owned()),
    };
    match map.keys().next() {
        Some(key) => Err(format!("has the field `{key}`, which is not known here")),
        None => Ok(Part {
            name: name.ok_or("needs a `name`")?,
            messages,
            reference,
            scorer,
        }),
    }
}

/// A JSON object whose keys are taken out one by one; what is left was not understood.
struct Fields {
    map: Map<String, Value>,
    prefix: &'static str,
}

impl Fields {
    fn of(body: &[u8]) -> Checked<Self> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid("", format!("the body is no JSON: {error}")))?;
        match value {
            Value::Object(map) => Ok(Self { map, prefix: "" }),
            _ => Err(ApiError::invalid("", "the body has to be a JSON object")),
        }
    }

    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn wrong(&self, key: &str, wants: &str) -> ApiError {
        let name = self.name(key);
        ApiError::invalid(&name, format!("`{name}` has to be {wants}"))
    }

    /// The value, `null` being as good as nothing.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key).filter(|value| !value.is_null())
    }

    fn text(&mut self, key: &str) -> Checked<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    fn required_text(&mut self, key: &str) -> Checked<String> {
        match self.text(key)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(self.wrong(key, "there, and a text")),
        }
    }

    fn switch(&mut self, key: &str) -> Checked<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn number(&mut self, key: &str, low: f64, high: f64) -> Checked<Option<f64>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(self.wrong(key, &format!("a number from {low} to {high}"))),
        }
    }

    fn count(&mut self, key: &str, low: u32) -> Checked<Option<u32>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        match count {
            Some(count) if count >= low => Ok(Some(count)),
            _ => Err(self.wrong(key, &format!("a whole number of at least {low}"))),
        }
    }

    /// Refuses what nobody asked about.
    fn finish(self) -> Checked<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => {
                let name = self.name(key);
                Err(ApiError::invalid(
                    &name,
                    format!("the field `{name}` is not known here"),
                ))
            }
        }
    }
}

fn messages(value: Option<Value>) -> Checked<Vec<Message>> {
    let wants = "`messages` has to be a list of at least one message";
    let Some(Value::Array(items)) = value else {
        return Err(ApiError::invalid("messages", wants));
    };
    if items.is_empty() {
        return Err(ApiError::invalid("messages", wants));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| message(item).map_err(|problem| at_message(index, problem)))
        .collect()
}

fn at_message(index: usize, problem: String) -> ApiError {
    ApiError::invalid(
        &format!("messages[{index}]"),
        format!("`messages[{index}]` {problem}"),
    )
}

/// One message; the error completes "`messages[0]` …".
fn message(value: Value) -> Result<Message, String> {
    let Value::Object(mut map) = value else {
        return Err("has to be an object".to_owned());
    };
    let role = match map.shift_remove("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" | "function" => {
                return Err("is of a tool, and tools are not supported yet".to_owned());
            }
            other => {
                return Err(format!(
                    "has the role `{other}`, and roles are system, developer, user and assistant"
                ));
            }
        },
        _ => return Err("needs a `role`".to_owned()),
    };
    let content = content(map.shift_remove("content"))?;
    // What clients send back of our own answers, and what says nothing.
    let says_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    for key in [
        "name",
        "refusal",
        "tool_calls",
        "function_call",
        "audio",
        "annotations",
    ] {
        if let Some(value) = map.shift_remove(key)
            && !says_nothing(&value)
        {
            return Err(format!("has `{key}`, which is not supported yet"));
        }
    }
    match map.keys().next() {
        Some(key) => Err(format!("has the field `{key}`, which is not known here")),
        None => Ok(Message { role, content }),
    }
}

/// A text, or a list of texts that are one.
fn content(value: Option<Value>) -> Result<String, String> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) if !parts.is_empty() => {
            let texts: Result<Vec<String>, String> = parts.into_iter().map(part).collect();
            Ok(texts?.concat())
        }
        _ => Err("needs a `content`: a text or a list of text parts".to_owned()),
    }
}

fn part(value: Value) -> Result<String, String> {
    let kind = value.get("type").and_then(Value::as_str);
    let text = value.get("text").and_then(Value::as_str);
    match (kind, text) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err("has a text part without `text`".to_owned()),
        (Some(kind), _) => Err(format!(
            "has a part of type `{kind}`, and only text is supported yet"
        )),
        (None, _) => Err("has a part without `type`".to_owned()),
    }
}

fn stream_options(fields: &mut Fields, stream: bool) -> Checked<bool> {
    let Some(value) = fields.take("stream_options") else {
        return Ok(false);
    };
    if !stream {
        let message = "`stream_options` goes with `stream: true` only";
        return Err(ApiError::invalid("stream_options", message));
    }
    let Value::Object(map) = value else {
        return Err(ApiError::invalid(
            "stream_options",
            "`stream_options` has to be an object",
        ));
    };
    let mut options = Fields {
        map,
        prefix: "stream_options.",
    };
    let include_usage = options.switch("include_usage")?.unwrap_or(false);
    // Padding against side channels; without it nothing is obfuscated.
    if options.switch("include_obfuscation")? == Some(true) {
        return Err(ApiError::unsupported("stream_options.include_obfuscation"));
    }
    options.finish()?;
    Ok(include_usage)
}

fn top_logprobs(fields: &mut Fields) -> Checked<()> {
    match fields.count("top_logprobs", 0)? {
        None | Some(0) => Ok(()),
        Some(_) => Err(ApiError::unsupported("top_logprobs")),
    }
}

fn sampling(fields: &mut Fields, plain: &Sampling) -> Checked<Sampling> {
    let seed = match fields.take("seed") {
        None => 0,
        Some(value) => match value.as_i64() {
            // 0 stands for "none named" further in; a named 0 becomes a seed of its own.
            Some(0) => u64::MAX,
            Some(seed) => seed as u64,
            None => return Err(fields.wrong("seed", "a whole number")),
        },
    };
    let temperature = fields.number("temperature", 0.0, 2.0)?;
    let top_p = fields.number("top_p", 0.0, 1.0)?;
    let min_p = fields.number("min_p", 0.0, 1.0)?;
    let penalty = match fields.number("repeat_penalty", 0.1, 10.0)? {
        None => fields.number("repetition_penalty", 0.1, 10.0)?,
        given => given,
    };
    let or = |given: Option<f64>, plain: f32| given.map_or(plain, |given| given as f32);
    Ok(Sampling {
        temperature: or(temperature, plain.temperature),
        top_k: fields.count("top_k", 0)?.unwrap_or(plain.top_k),
        top_p: or(top_p, plain.top_p),
        min_p: or(min_p, plain.min_p),
        repetition_penalty: or(penalty, plain.repetition_penalty),
        repetition_window: fields
            .count("repeat_last_n", 0)?
            .unwrap_or(plain.repetition_window),
        seed,
    })
}

/// The newer name wins where both are there and differ: the smaller of the two.
fn max_tokens(fields: &mut Fields) -> Checked<Option<u32>> {
    let older = fields.count("max_tokens", 1)?;
    let newer = fields.count("max_completion_tokens", 1)?;
    Ok(older.into_iter().chain(newer).min())
}

fn stop(value: Option<Value>) -> Checked<Vec<String>> {
    let wrong = || {
        ApiError::invalid(
            "stop",
            "`stop` has to be a text or a list of at most 16 texts, none of them empty",
        )
    };
    let texts = match value {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect::<Checked<Vec<String>>>()?,
        Some(_) => return Err(wrong()),
    };
    match texts.len() <= 16 && texts.iter().all(|text| !text.is_empty()) {
        true => Ok(texts),
        false => Err(wrong()),
    }
}

/// The `llmpick` object; what it does not say, the headers may.
fn routing(route: &mut RouteRequest, object: Option<Value>, headers: &HeaderMap) -> Checked<()> {
    let mut map = match object {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(_) => {
            return Err(ApiError::invalid(
                "llmpick",
                "`llmpick` has to be an object",
            ));
        }
    };
    for (key, value) in header_fields(headers)? {
        map.entry(key).or_insert(value);
    }
    let mut fields = Fields {
        map,
        prefix: "llmpick.",
    };
    route.mode = fields
        .text("mode")?
        .map(|mode| read_mode(&mode))
        .transpose()?;
    route.max_arms = fields.count("max_arms", 1)?;
    route.max_cost = match fields.number("max_cost", 0.0, 1e9)? {
        None => None,
        Some(usd) => Some(
            NanoDollars::from_usd(usd)
                .map_err(|error| ApiError::invalid("llmpick.max_cost", error.to_string()))?,
        ),
    };
    let latency = fields.number("max_latency_ms", 1.0, 1e9)?;
    route.max_latency = latency.map(|ms| Duration::from_secs_f64(ms / 1e3));
    route.context = ContextKey(fields.text("context")?.unwrap_or_default());
    route.reference = fields.text("reference")?;
    route.scorer = fields.text("scorer")?;
    route.session = fields.text("session")?.unwrap_or_default();
    route.features = features(&mut fields)?;
    route.learn = fields.switch("learn")?.unwrap_or(true);
    let least = fields.number("min_score", 0.0, 1.0)?;
    route.min_score = least.and_then(|least| Score::new(least).ok());
    if fields.take("parts").is_some() {
        return Err(ApiError::invalid(
            "llmpick.parts",
            "a request with parts goes to /llmpick/v1/task",
        ));
    }
    fields.finish()
}

/// Numbers that describe the request.
fn features(fields: &mut Fields) -> Checked<Vec<f32>> {
    let Some(value) = fields.take("features") else {
        return Ok(Vec::new());
    };
    let wrong = |fields: &Fields| {
        let wants = format!("a list of at most {MOST_FEATURES} finite numbers");
        Err(fields.wrong("features", &wants))
    };
    let Value::Array(items) = value else {
        return wrong(fields);
    };
    let number = |item: &Value| {
        let number = item.as_f64()? as f32;
        number.is_finite().then_some(number)
    };
    match items.iter().map(number).collect::<Option<Vec<f32>>>() {
        Some(features) if features.len() <= MOST_FEATURES => Ok(features),
        _ => wrong(fields),
    }
}

fn read_mode(mode: &str) -> Checked<Mode> {
    match mode {
        "single" => Ok(Mode::Single),
        "any_win" => Ok(Mode::AnyWin),
        "sum_up" => Ok(Mode::SumUp),
        "all_in" => Ok(Mode::AllIn),
        _ => Err(ApiError::invalid(
            "llmpick.mode",
            "`llmpick.mode` has to be single or any_win, or sum_up or all_in for a request with \
             parts",
        )),
    }
}

/// `x-llmpick-max-arms: 2` as `("max_arms", 2)`.
fn header_fields(headers: &HeaderMap) -> Checked<Vec<(String, Value)>> {
    let ours = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().strip_prefix("x-llmpick-")?, value)));
    ours.map(|(name, value)| {
        let text = value.to_str().map_err(|_| {
            ApiError::invalid(
                &format!("x-llmpick-{name}"),
                "a header of ours has to be ASCII",
            )
        })?;
        let key = name.replace('-', "_");
        let value = match key.as_str() {
            "max_arms" | "max_cost" | "max_latency_ms" | "min_score" | "learn" | "features" => {
                serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
            }
            _ => Value::String(text.to_owned()),
        };
        Ok((key, value))
    })
    .collect()
}

/// Fields of OpenAI's that ask for something only with certain values.
fn harmless(fields: &mut Fields) -> Checked<()> {
    let is_one = |value: &Value| value.as_f64() == Some(1.0);
    let is_zero = |value: &Value| value.as_f64() == Some(0.0);
    let is_empty = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let is_text = |text: &'static [&'static str]| {
        move |value: &Value| value.as_str().is_some_and(|value| text.contains(&value))
    };
    let plain_format = |value: &Value| value.get("type").and_then(Value::as_str) == Some("text");
    let text_only = |value: &Value| *value == serde_json::json!(["text"]);
    let is_false = |value: &Value| value.as_bool() == Some(false);
    // Hints to a provider's cache and bookkeeping; they never bear on an answer.
    let any = |_: &Value| true;
    type Test<'a> = &'a dyn Fn(&Value) -> bool;
    let tools_off = is_text(&["none", "auto"]);
    let tier = is_text(&["auto", "default"]);
    let table: [(&str, Test<'_>); 23] = [
        ("n", &is_one),
        ("presence_penalty", &is_zero),
        ("frequency_penalty", &is_zero),
        ("logit_bias", &is_empty),
        ("tools", &is_empty),
        ("functions", &is_empty),
        ("tool_choice", &tools_off),
        ("function_call", &tools_off),
        ("parallel_tool_calls", &any),
        ("response_format", &plain_format),
        ("modalities", &text_only),
        ("audio", &is_empty),
        ("prediction", &is_empty),
        ("store", &is_false),
        ("metadata", &is_empty),
        ("service_tier", &tier),
        ("safety_identifier", &any),
        ("prompt_cache_key", &any),
        ("prompt_cache_retention", &any),
        ("web_search_options", &is_empty),
        ("reasoning_effort", &is_text(&["none"])),
        ("verbosity", &is_text(&["medium"])),
        ("moderation", &is_empty),
    ];
    for (key, asks_nothing) in table {
        if let Some(value) = fields.take(key)
            && !asks_nothing(&value)
        {
            return Err(ApiError::unsupported(key));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn read_json(body: Value) -> Result<ChatRequest, String> {
        let bytes = serde_json::to_vec(&body).unwrap();
        read(&bytes, &HeaderMap::new(), &Sampling::default()).map_err(|error| {
            let body = error.body();
            format!(
                "{}: {}",
                error.status.as_u16(),
                body["error"]["message"].as_str().unwrap()
            )
        })
    }

    fn with(extra: Value) -> Result<ChatRequest, String> {
        let mut body = json!({"model": "auto", "messages": [{"role": "user", "content": "hi"}]});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        read_json(body)
    }

    #[test]
    fn every_bad_message_is_a_400_that_says_where() {
        let bad = [
            json!(null),
            json!("hi"),
            json!([]),
            json!(["hi"]),
            json!([{"content": "hi"}]),
            json!([{"role": "wizard", "content": "hi"}]),
            json!([{"role": "tool", "content": "hi"}]),
            json!([{"role": "user"}]),
            json!([{"role": "user", "content": null}]),
            json!([{"role": "user", "content": 5}]),
            json!([{"role": "user", "content": []}]),
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            json!([{"role": "user", "content": [{"type": "text"}]}]),
            json!([{"role": "user", "content": "hi", "colour": "red"}]),
            json!([{"role": "assistant", "content": "hi", "tool_calls": [{}]}]),
        ];
        for messages in bad {
            let error = read_json(json!({"model": "auto", "messages": messages})).unwrap_err();
            assert!(error.starts_with("400: `messages"), "{error}");
        }
    }

    #[test]
    fn parts_are_one_text_and_the_developer_is_the_system() {
        let request = read_json(json!({"model": "m", "messages": [
            {"role": "developer", "content": "short"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]}));
        assert_eq!(
            request.unwrap().route.generate.prompt,
            Prompt::Chat(vec![Message::system("short"), Message::user("ab")])
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_what_asks_nothing_is_not() {
        for refused in [
            json!({"n": 2}),
            json!({"tools": [{"type": "function"}]}),
            json!({"logit_bias": {"5": 1}}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"presence_penalty": 0.5}),
            json!({"logprobs": true, "top_logprobs": 3}),
            json!({"audio": {"voice": "x"}}),
            json!({"stream_options": {"include_usage": true}}),
            json!({"temperature": 3}),
            json!({"max_tokens": 0}),
            json!({"stop": [""]}),
            json!({"llmpick": {"mode": "sum_up"}}),
            json!({"llmpick": {"colour": "red"}}),
            json!({"llmpick": {"features": [1, "two"]}}),
            json!({"llmpick": {"features": [1e300]}}),
            json!({"llmpick": {"features": vec![0; MOST_FEATURES + 1]}}),
            json!({"colour": "red"}),
        ] {
            let error = with(refused.clone()).unwrap_err();
            assert!(error.starts_with("400: "), "{refused}: {error}");
        }
        with(json!({
            "n": 1, "tools": [], "logit_bias": {}, "response_format": {"type": "text"},
            "presence_penalty": 0, "top_logprobs": null, "user": "me", "store": false,
        }))
        .unwrap();
    }

    #[test]
    fn sampling_and_limits_arrive() {
        let request = with(json!({
            "temperature": 0, "top_p": 0.5, "top_k": 7, "seed": 3, "stop": "\n",
            "max_tokens": 9, "max_completion_tokens": 5,
            "llmpick": {"mode": "single", "max_arms": 2, "max_cost": 0.001, "context": "maths",
                "features": [0.1, -2]},
        }))
        .unwrap();
        let generate = &request.route.generate;
        assert_eq!((generate.max_tokens, generate.sampling.seed), (Some(5), 3));
        assert_eq!(
            (generate.sampling.top_k, generate.sampling.temperature),
            (7, 0.0)
        );
        assert_eq!(generate.stop, ["\n"]);
        assert_eq!(request.route.mode, Some(Mode::Single));
        assert_eq!(request.route.max_cost, Some(NanoDollars(1_000_000)));
        assert_eq!(request.route.context.0, "maths");
        assert_eq!(request.route.features, [0.1, -2.0]);
    }

    #[test]
    fn headers_say_what_the_body_does_not() {
        let mut headers = HeaderMap::new();
        headers.insert("x-llmpick-max-arms", HeaderValue::from_static("3"));
        headers.insert("x-llmpick-context", HeaderValue::from_static("header"));
        let body = json!({
            "model": "auto", "messages": [{"role": "user", "content": "hi"}],
            "llmpick": {"context": "body"},
        });
        let request = read(body.to_string().as_bytes(), &headers, &Sampling::default()).unwrap();
        assert_eq!(
            (request.route.max_arms, request.route.context.0.as_str()),
            (Some(3), "body")
        );
        headers.insert("x-llmpick-max-arms", HeaderValue::from_static("many"));
        assert!(read(body.to_string().as_bytes(), &headers, &Sampling::default()).is_err());
    }
}
