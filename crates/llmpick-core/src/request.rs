//! What is asked of a model: a prompt, how to sample, when to stop.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Who said a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of the person.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: Role::User,
            content: content.into(),
        }
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self {
            role: Role::Assistant,
            content: content.into(),
        }
    }

    /// Instructions for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self {
            role: Role::System,
            content: content.into(),
        }
    }
}

/// What the model continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prompt {
    /// A conversation, rendered by the model's own chat template. A last message of the
    /// assistant is continued (prefill). A base model sees the contents joined by blank lines.
    Chat(Vec<Message>),
    /// Text that is continued as it stands; BOS is added where the model adds one.
    Text(String),
}

impl Prompt {
    /// All the text of the prompt, for hashing, token estimates, and plugins that asked for it.
    pub fn text(&self) -> String {
        match self {
            Prompt::Text(text) => text.clone(),
            Prompt::Chat(messages) => messages
                .iter()
                .map(|m| m.content.as_str())
                .collect::<Vec<_>>()
                .join("\n\n"),
        }
    }

    /// Bytes of text in the prompt.
    pub fn len(&self) -> usize {
        match self {
            Prompt::Text(text) => text.len(),
            Prompt::Chat(messages) => messages.iter().map(|m| m.content.len()).sum(),
        }
    }

    /// True when there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How the next token is drawn. `temperature` 0 means the most likely token, always.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy. 0..=2.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the most likely one; 0 drops none.
    pub min_p: f32,
    /// Divide (multiply, if negative) the logits of tokens seen lately; 1 does nothing.
    pub repetition_penalty: f32,
    /// How many last tokens, prompt included, the penalty looks at.
    pub repetition_window: u32,
    /// Same seed, same text. Chosen by dispatch where the request names none.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.7,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            repetition_window: 64,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }
}

/// One generation: what a [`Backend`](crate::Backend) is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How to draw tokens.
    pub sampling: Sampling,
    /// At most so many tokens are generated; `None` lets the context be the limit.
    pub max_tokens: Option<u32>,
    /// Generation ends before any of these texts; none of them is ever part of the output.
    pub stop: Vec<String>,
    /// Report each token's log-probability where the backend can.
    pub logprobs: bool,
}

impl GenerateRequest {
    /// A request with the default sampling and no limits of its own.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            logprobs: true,
        }
    }
}

/// Tokens read and written by one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the rendered prompt, cached ones included.
    pub prompt_tokens: u32,
    /// Prompt tokens that a prefix cache spared.
    pub cached_tokens: u32,
    /// Tokens generated, the end token not counted.
    pub completion_tokens: u32,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}
