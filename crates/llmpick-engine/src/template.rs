//! A conversation as the model was trained to read it, by the file's own chat template.
//!
//! Templates are Jinja programs out of the model file, so they are treated as what they
//! are: foreign code over the user's text. They run with a limited number of steps, their
//! errors never repeat the conversation, and what a user wrote can never become a control
//! token, whatever it says.
//!
//! That last promise is kept by knowing which parts of the result came from messages. The
//! template runs twice: once on the conversation and once with a marker in place of each
//! content. Where the two results agree but for the markers, the contents' places are
//! known, and [`Tokenizer::encode_mixed`] looks for control tokens only around them. The
//! tokens are exactly those of the plain text. Where a template changes its contents
//! beyond trimming, the control tokens' texts inside them are broken up before it runs.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use candle_core::quantized::gguf_file;
use llmpick_core::{Message, Role};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{DynObject, Kwargs, ObjectRepr, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use crate::tokens::{Tokenizer, TokenizerError};

/// The layout that instruct models without a template of their own are given.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Tells the time to templates that ask for it.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A compiled chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

/// Why a conversation could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file's template is no text, or names tokens that are not there.
    #[error("read the chat template: `{0}` is not what it should be")]
    Metadata(&'static str),
    /// The template is not valid Jinja.
    #[error("read the chat template: line {line}: {what}")]
    Syntax {
        /// Line in the template, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// The template itself refuses the conversation, with its own words.
    #[error("lay out the conversation: the model's chat template refuses it: {0}")]
    Refused(String),
    /// The template does not end.
    #[error("lay out the conversation: the model's chat template takes too many steps")]
    TooManySteps,
    /// The template writes far more than it was given.
    #[error("lay out the conversation: the model's chat template writes too much")]
    TooMuchText,
    /// The template fails.
    #[error("lay out the conversation: the model's chat template fails on line {line}: {what}")]
    Run {
        /// Line in the template, from 1; 0 where unknown.
        line: usize,
        /// The kind of failure; never any text of the conversation.
        what: String,
    },
    /// The beginning of an answer is nowhere in the result.
    #[error("lay out the conversation: the model's chat template cannot continue a given answer")]
    Continue,
    /// There is no message.
    #[error("lay out the conversation: it has no message")]
    Empty,
    /// The result could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A conversation laid out, and where its contents are.
struct Layout {
    text: String,
    /// Which message each content is of and where it is, ascending; `None` where that is
    /// not known.
    contents: Option<Vec<(usize, Range<usize>)>>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// The template in a GGUF file's metadata; `None` where there is none.
    ///
    /// # Errors
    /// When it is no valid template.
    pub fn from_gguf(
        metadata: &HashMap<String, gguf_file::Value>,
    ) -> Result<Option<Self>, TemplateError> {
        let Some(value) = metadata.get("tokenizer.chat_template") else {
            return Ok(None);
        };
        let gguf_file::Value::String(source) = value else {
            return Err(TemplateError::Metadata("tokenizer.chat_template"));
        };
        if source.trim().is_empty() {
            return Ok(None);
        }
        Self::with_tokens_of(source, metadata).map(Some)
    }

    /// The [`CHATML`] layout, for an instruct model whose file has no template.
    ///
    /// # Errors
    /// When the metadata's special tokens are malformed.
    pub fn chatml(metadata: &HashMap<String, gguf_file::Value>) -> Result<Self, TemplateError> {
        Self::with_tokens_of(CHATML, metadata)
    }

    /// Any template, with the texts it is given as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// When it is no valid template.
    pub fn new(
        source: &str,
        bos: Option<String>,
        eos: Option<String>,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| syntax_error(&error))?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        // Debug information would print the conversation.
        environment.set_debug(false);
        environment.set_recursion_limit(50);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_filter(BOUNDED, bounded);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned("chat", prepared(source))
            .map_err(|error| syntax_error(&error))?;
        let mut template = Self {
            environment,
            bos,
            eos,
        };
        template.set_clock(Arc::new(SystemTime::now));
        Ok(template)
    }

    /// Gives templates another clock; the system's is the default. They see UTC.
    pub fn set_clock(&mut self, clock: Clock) {
        self.environment
            .add_function("strftime_now", move |format: &str| {
                strftime(format, clock())
            });
    }

    /// The conversation as one text.
    ///
    /// With `add_generation_prompt` it ends where the model's answer begins; if the last
    /// message is the assistant's, it is the beginning of that answer, and the text ends
    /// with it.
    ///
    /// # Errors
    /// When the template refuses or fails.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        Ok(self.lay_out(messages, add_generation_prompt)?.text)
    }

    /// The conversation as tokens, BOS first where the vocabulary wants it and the
    /// template has not put it there. No content ever becomes a control token; where none
    /// holds the text of one, these are the tokens of [`render`](Self::render)'s text.
    ///
    /// # Errors
    /// When the template refuses or fails, or the text cannot be encoded.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, TemplateError> {
        let mut layout = self.lay_out(messages, add_generation_prompt)?;
        if layout.contents.is_none() {
            let defused: Vec<Message> = messages
                .iter()
                .map(|message| Message {
                    role: message.role,
                    content: tokenizer.defuse(&message.content).into_owned(),
                })
                .collect();
            layout = self.lay_out(&defused, add_generation_prompt)?;
        }
        let contents = layout.contents.unwrap_or_default();
        let contents: Vec<_> = contents.into_iter().map(|(_, range)| range).collect();
        let mut ids = tokenizer.encode_mixed(&layout.text, false, &contents)?;
        if let (true, Some(bos)) = (tokenizer.adds_bos(), tokenizer.bos())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn with_tokens_of(
        source: &str,
        metadata: &HashMap<String, gguf_file::Value>,
    ) -> Result<Self, TemplateError> {
        let bos = token_text(metadata, "tokenizer.ggml.bos_token_id")?;
        let eos = token_text(metadata, "tokenizer.ggml.eos_token_id")?;
        Self::new(source, bos, eos)
    }

    fn lay_out(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Layout, TemplateError> {
        let last = messages.last().ok_or(TemplateError::Empty)?;
        let continues = add_generation_prompt && last.role == Role::Assistant;
        if !continues {
            return self.lay_out_whole(messages, add_generation_prompt);
        }
        let before = &messages[..messages.len() - 1];
        if last.content.trim().is_empty() {
            // An answer of which nothing is given yet.
            return self.lay_out(before, true);
        }
        let mut layout = self.lay_out_whole(messages, false)?;
        let end = match &layout.contents {
            // A template may have left the last message out.
            Some(contents) => match contents.last() {
                Some((number, range)) if *number == before.len() => Some(range.end),
                _ => None,
            },
            None => {
                let given = last.content.trim();
                layout.text.rfind(given).map(|at| at + given.len())
            }
        };
        layout.text.truncate(end.ok_or(TemplateError::Continue)?);
        Ok(layout)
    }

    fn lay_out_whole(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Layout, TemplateError> {
        let contents: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        let text = self
            .run(messages, &contents, add_generation_prompt)
            .map_err(|error| failure(&error, &contents))?;
        let markers: Vec<String> = contents
            .iter()
            .enumerate()
            .map(|(number, content)| marker(number, content))
            .collect();
        let marked: Vec<&str> = markers.iter().map(String::as_str).collect();
        let contents = self
            .run(messages, &marked, add_generation_prompt)
            .ok()
            .and_then(|marked| align(&text, &marked, &contents));
        Ok(Layout { text, contents })
    }

    fn run(
        &self,
        messages: &[Message],
        contents: &[&str],
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let mut environment = self.environment.clone();
        // Real templates take some tens of steps a message.
        environment.set_fuel(Some(100_000 + 2_000 * messages.len() as u64));
        let messages: Vec<Value> = messages
            .iter()
            .zip(contents)
            .map(|(message, content)| {
                Value::from_pairs([
                    ("role", Value::from(role(message.role))),
                    ("content", Value::from(*content)),
                ])
            })
            .collect();
        let context = Value::from_pairs([
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("bos_token", token_value(self.bos.as_deref())),
            ("eos_token", token_value(self.eos.as_deref())),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        // Real templates write each content once or twice.
        let given: usize = contents.iter().map(|content| content.len()).sum();
        let mut text = Limited {
            text: Vec::new(),
            room: (1 << 20) + 16 * given,
        };
        environment
            .get_template("chat")?
            .render_captured_to(context, &mut text)?;
        String::from_utf8(text.text)
            .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
    }
}

/// Takes text until there is no more room: steps are counted, and one step may write a
/// list of lists of lists.
struct Limited {
    text: Vec<u8>,
    room: usize,
}

impl std::io::Write for Limited {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if part.len() > self.room {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.room -= part.len();
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

/// A token that the file does not name is an empty text: templates join it unasked.
fn token_value(text: Option<&str>) -> Value {
    Value::from(text.unwrap_or_default())
}

/// Private-use characters that no template has a reason to touch. Nothing is said of an
/// empty content, which templates may ask about.
fn marker(number: usize, content: &str) -> String {
    if content.is_empty() {
        String::new()
    } else {
        format!("{MARK}{number}{MARK}")
    }
}

const MARK: char = '\u{10FFFD}';

/// Finds where the contents are in `text`, given the same with markers. Each may be there
/// as it is or trimmed. `None` if anything else differs.
fn align(text: &str, marked: &str, contents: &[&str]) -> Option<Vec<(usize, Range<usize>)>> {
    let mut ranges = Vec::new();
    let mut parts = marked.split(MARK);
    let mut at = take(text, 0, parts.next()?)?;
    // Between two marks is a number, then comes text, and so on.
    while let (Some(number), Some(following)) = (parts.next(), parts.next()) {
        let number: usize = number.parse().ok()?;
        let content = *contents.get(number)?;
        let last = parts.clone().next().is_none();
        let end = [
            content,
            content.trim(),
            content.trim_end(),
            content.trim_start(),
        ]
        .into_iter()
        .find_map(|form| {
            let end = take(text, at, form)?;
            let after = take(text, end, following)?;
            (!last || after == text.len()).then_some(end)
        })?;
        ranges.push((number, at..end));
        at = take(text, end, following)?;
    }
    (at == text.len()).then_some(ranges)
}

fn take(text: &str, at: usize, expected: &str) -> Option<usize> {
    text.get(at..)?
        .starts_with(expected)
        .then_some(at + expected.len())
}

const RAISED: &str = "raised by the template: ";

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("{RAISED}{message}"),
    ))
}

fn syntax_error(error: &Error) -> TemplateError {
    TemplateError::Syntax {
        line: error.line().unwrap_or(0),
        what: error.detail().unwrap_or("it cannot be read").to_owned(),
    }
}

/// An error without the conversation in it.
fn failure(error: &Error, contents: &[&str]) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooManySteps;
    }
    if error.kind() == ErrorKind::WriteFailure || error.detail() == Some(GREW) {
        return TemplateError::TooMuchText;
    }
    if let Some(message) = error
        .detail()
        .and_then(|detail| detail.strip_prefix(RAISED))
    {
        let mut message = message.to_owned();
        for content in contents.iter().map(|content| content.trim()) {
            if content.len() >= 3 {
                message = message.replace(content, "…");
            }
        }
        return TemplateError::Refused(message.chars().take(300).collect());
    }
    TemplateError::Run {
        line: error.line().unwrap_or(0),
        what: error.kind().to_string(),
    }
}

fn token_text(
    metadata: &HashMap<String, gguf_file::Value>,
    key: &'static str,
) -> Result<Option<String>, TemplateError> {
    let Some(id) = metadata.get(key) else {
        return Ok(None);
    };
    let Some(gguf_file::Value::Array(tokens)) = metadata.get("tokenizer.ggml.tokens") else {
        return Err(TemplateError::Metadata("tokenizer.ggml.tokens"));
    };
    let id = match *id {
        gguf_file::Value::U32(id) => id as usize,
        gguf_file::Value::I32(-1) => return Ok(None),
        gguf_file::Value::I32(id) => id as usize,
        gguf_file::Value::U64(id) => id as usize,
        gguf_file::Value::I64(id) => id as usize,
        _ => return Err(TemplateError::Metadata(key)),
    };
    if id == u32::MAX as usize {
        return Ok(None);
    }
    match tokens.get(id) {
        Some(gguf_file::Value::String(text)) => Ok(Some(text.clone())),
        _ => Err(TemplateError::Metadata(key)),
    }
}

/// A template as it is given to the library.
///
/// `{% generation %}` only marks text for training. An `if` that is always true keeps the
/// white space around it as it was. What `{% set %}` assigns goes through [`bounded`].
fn prepared(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    let opening = |text: &str| ["{%", "{#", "{{"].iter().filter_map(|o| text.find(o)).min();
    while let Some(start) = opening(rest) {
        result.push_str(&rest[..start]);
        rest = &rest[start..];
        let Some(length) = tag_length(rest) else {
            break;
        };
        let (tag, after) = rest.split_at(length);
        rest = after;
        if !tag.starts_with("{%") {
            result.push_str(tag);
            continue;
        }
        let inner = &tag[2..tag.len() - 2];
        let is_sign = |c: char| c.is_whitespace() || c == '-' || c == '+';
        let words = inner.trim_matches(is_sign);
        match words {
            "raw" => raw = true,
            "endraw" => raw = false,
            _ => {}
        }
        match (words, assigned(inner)) {
            _ if raw => result.push_str(tag),
            ("generation", _) => result.push_str(&tag.replace("generation", "if true")),
            ("endgeneration", _) => result.push_str(&tag.replace("endgeneration", "endif")),
            (_, Some((at, inside))) => {
                let value = inner[at..].trim_end_matches(is_sign);
                let sign = &inner[at + value.len()..];
                result.push_str("{%");
                result.push_str(&inner[..at]);
                result.push_str(&format!("({value})|{BOUNDED}({inside}){sign}%}}"));
            }
            _ => result.push_str(tag),
        }
    }
    result.push_str(rest);
    result
}

/// Bytes of the tag, expression or comment that `text` begins with. What a quoted text in
/// it says ends nothing, and neither do the braces of an object in an expression.
fn tag_length(text: &str) -> Option<usize> {
    if text.starts_with("{#") {
        return text.find("#}").map(|at| at + 2);
    }
    let bytes = text.as_bytes();
    let closing = match text.starts_with("{%") {
        true => b'%',
        false => b'}',
    };
    let (mut quote, mut open) = (None, 0usize);
    let mut at = 2;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(mark), byte) if byte == mark => quote = None,
            (None, mark @ (b'"' | b'\'')) => quote = Some(mark),
            (None, byte) if byte == closing && bytes.get(at + 1) == Some(&b'}') && open == 0 => {
                return Some(at + 2);
            }
            (None, b'{') if closing == b'}' => open += 1,
            (None, b'}') => open = open.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the value begins in the inside of a tag that assigns one, and whether it goes
/// inside of another.
fn assigned(inner: &str) -> Option<(usize, bool)> {
    let words = inner.trim_start_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
    let target = words.strip_prefix("set")?;
    if !target.starts_with(char::is_whitespace) {
        return None;
    }
    let (name, value) = target.split_once('=')?;
    // `{% set x | filter(a=1) %}` begins a block and has no value.
    let is_target = |c: char| c.is_alphanumeric() || c.is_whitespace() || "._,()".contains(c);
    name.chars()
        .all(is_target)
        .then(|| (inner.len() - value.len(), name.contains('.')))
}

const BOUNDED: &str = "__bounded";

/// A value that may be assigned. Steps are counted, but one step may double a text, wrap
/// a list into a list, or put a namespace into itself; forty, some thousand or one of
/// these take all memory, or all of the stack once the value is written or dropped.
///
/// A namespace may be assigned to a name, and not `inside` of another: only they change
/// after they are made, so nothing else can come to hold itself.
fn bounded(value: Value, inside: bool) -> Result<Value, Error> {
    let mut nodes = 1 << 16;
    let named = !inside && value.as_object().is_some_and(is_namespace);
    match named || fits(&value, 16, &mut nodes) {
        true => Ok(value),
        false => Err(Error::new(ErrorKind::InvalidOperation, GREW)),
    }
}

const GREW: &str = "a value grows too large";

fn is_namespace(object: &DynObject) -> bool {
    object.type_name().ends_with("Namespace")
}

fn fits(value: &Value, depth: usize, nodes: &mut usize) -> bool {
    *nodes = nodes.saturating_sub(1);
    if *nodes == 0 || depth == 0 {
        return false;
    }
    if let Some(text) = value.as_str() {
        return text.len() <= 16 << 20;
    }
    let Some(object) = value.as_object() else {
        return true;
    };
    if is_namespace(object) {
        return false;
    }
    match object.repr() {
        ObjectRepr::Map => object
            .try_iter_pairs()
            .is_none_or(|mut pairs| pairs.all(|(_, value)| fits(&value, depth - 1, nodes))),
        // Slices and repetitions are iterators that begin anew each time.
        ObjectRepr::Seq | ObjectRepr::Iterable => object
            .try_iter()
            .is_none_or(|mut values| values.all(|value| fits(&value, depth - 1, nodes))),
        // Macros and such have nothing inside.
        _ => true,
    }
}

/// `tojson` as Python's `json.dumps(…, ensure_ascii=False)` writes it, which is what
/// templates were trained with; Jinja's own would escape `<`, `>`, `&` and `'` for HTML.
fn to_json(_: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted and always so.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let sort: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut json = String::new();
    Json {
        indent: indent.map(|indent| indent.min(16)),
        sort: sort.unwrap_or(false),
    }
    .write(value, 0, &mut json)?;
    Ok(json)
}

struct Json {
    indent: Option<usize>,
    sort: bool,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let fail = |what: &'static str| Err(Error::new(ErrorKind::BadSerialization, what));
        if depth > 100 {
            return fail("too deep");
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(('[', ']'), &items, depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.list(('{', '}'), &keys, depth, out, |key, out| {
                    write_string(&key.to_string(), out);
                    out.push_str(": ");
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            _ => return fail("no JSON value"),
        }
        Ok(())
    }

    fn list(
        &self,
        (open, close): (char, char),
        items: &[Value],
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (number, item) in items.iter().enumerate() {
            if number > 0 {
                out.push_str(if self.indent.is_some() { "," } else { ", " });
            }
            self.new_line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.new_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            control if (control as u32) < 0x20 => {
                out.push_str(&format!("\\u{:04x}", control as u32));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// The time in UTC, by Python's `strftime` codes that chat templates use. Others stay as
/// they are.
fn strftime(format: &str, now: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
    ];
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    // 1 January 1970 was a Thursday.
    let weekday = DAYS[((days + 3) % 7) as usize];
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let month_name = MONTHS[month as usize - 1];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => text.push_str(&format!("{year}")),
            Some('y') => text.push_str(&format!("{:02}", year % 100)),
            Some('m') => text.push_str(&format!("{month:02}")),
            Some('d') => text.push_str(&format!("{day:02}")),
            Some('B') => text.push_str(month_name),
            Some('b') => text.push_str(&month_name[..3]),
            Some('A') => text.push_str(weekday),
            Some('a') => text.push_str(&weekday[..3]),
            Some('H') => text.push_str(&format!("{hour:02}")),
            Some('I') => text.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('M') => text.push_str(&format!("{minute:02}")),
            Some('S') => text.push_str(&format!("{:02}", second % 60)),
            Some('p') => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => text.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('Z') => text.push_str("UTC"),
            Some('%') => text.push('%'),
            Some(other) => {
                text.push('%');
                text.push(other);
            }
            None => text.push('%'),
        }
    }
    text
}

/// Year, month and day of the days since 1 January 1970
/// (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |seconds, expected: &str| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(
                strftime("%A %d %b %Y %H:%M:%S %I%p %y-%m %% %q", now),
                expected
            );
        };
        check(0, "Thursday 01 Jan 1970 00:00:00 12AM 70-01 % %q");
        check(951_827_696, "Tuesday 29 Feb 2000 12:34:56 12PM 00-02 % %q");
        check(
            1_735_689_599,
            "Tuesday 31 Dec 2024 23:59:59 11PM 24-12 % %q",
        );
    }

    #[test]
    fn generation_tags_go_and_their_white_space_marks_stay() {
        assert_eq!(
            prepared("a{%- generation -%} b {% endgeneration %}{{ '{%' }}"),
            "a{%- if true -%} b {% endif %}{{ '{%' }}"
        );
    }

    #[test]
    fn contents_are_found_as_they_are_or_trimmed() {
        let check = |text: &str, marked: &str, contents: &[&str], expected: Option<&[&str]>| {
            let marked = marked.replace('@', &MARK.to_string());
            let found = align(text, &marked, contents);
            let found = found.map(|found| found.into_iter().map(|(_, at)| &text[at]).collect());
            assert_eq!(found, expected.map(<[&str]>::to_vec), "{text}");
        };
        check("<a> x </a>", "<a>@0@</a>", &[" x "], Some(&[" x "]));
        check("<a>x</a>", "<a>@0@</a>", &[" x "], Some(&["x"]));
        check("x|x y", "@0@|@1@", &["x", "x y"], Some(&["x", "x y"]));
        check("y+x", "@1@+@0@", &["x", "y"], Some(&["y", "x"]));
        check("<a>X</a>", "<a>@0@</a>", &["x"], None);
        check("<a>x</a>!", "<a>@0@</a>", &["x"], None);
    }
}
