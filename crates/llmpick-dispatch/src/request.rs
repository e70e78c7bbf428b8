//! What dispatch is asked for: a generation, and how it may be routed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use llmpick_core::{
    ArmId, Backend, ContextKey, GenerateRequest, Message, Mode, NanoDollars, Prompt, Score, Usage,
};

/// Most features of one request.
pub const MOST_FEATURES: usize = 4096;

/// One request, with everything that bears on its route.
#[derive(Clone, Debug)]
pub struct RouteRequest {
    /// What to generate. A sampling seed of 0 means that none was named: dispatch then
    /// derives one from the route's seed. With parts, its prompt is what comes before each
    /// part's own messages, such as a system message, and may be an empty conversation.
    pub generate: GenerateRequest,
    /// What the request is made of, to be dealt over several arms by
    /// [`Dispatch::task`](crate::Dispatch::task); empty for a plain request.
    pub parts: Vec<Part>,
    /// Who may answer.
    pub target: Target,
    /// How arms work together; `None` lets the router choose among the modes of the settings.
    pub mode: Option<Mode>,
    /// Most arms in the plan; `None` takes the settings' figure.
    pub max_arms: Option<u32>,
    /// Most this request may cost. Arms whose upper bound is higher are not eligible.
    pub max_cost: Option<NanoDollars>,
    /// A deadline for the whole request: what is not answered by then ends as a timeout.
    pub max_latency: Option<Duration>,
    /// Long-term budget per request in dollars (the paper's ρ); `None` takes the settings' figure.
    pub cost_budget: Option<f64>,
    /// The least score the user accepts: the threshold of a cascade.
    pub min_score: Option<Score>,
    /// Under which context statistics are kept, unless the settings take the session for it.
    /// May be empty.
    pub context: ContextKey,
    /// Opaque session, may be empty.
    pub session: String,
    /// Numbers that describe the request (an embedding, for example), at most
    /// [`MOST_FEATURES`], all finite; empty for none. Recorded, and shown to routers that
    /// declare that they need them.
    pub features: Vec<f32>,
    /// The right answer, where one is known.
    pub reference: Option<String>,
    /// The scorer by name; `None` takes the first that has something to go by.
    pub scorer: Option<String>,
    /// False: decide and record, but learn nothing (`frozen`).
    pub learn: bool,
    /// The seed of the decision; `None` derives one from the base seed and the route's number.
    pub seed: Option<u64>,
}

impl RouteRequest {
    /// A request that is routed freely, learns, and has no limits of its own.
    pub fn new(generate: GenerateRequest) -> Self {
        Self {
            generate,
            parts: Vec::new(),
            target: Target::Auto,
            mode: None,
            max_arms: None,
            max_cost: None,
            max_latency: None,
            cost_budget: None,
            min_score: None,
            context: ContextKey::default(),
            session: String::new(),
            features: Vec::new(),
            reference: None,
            scorer: None,
            learn: true,
            seed: None,
        }
    }

    /// All the text that is asked, for hashing and for routers that need it.
    pub(crate) fn text(&self) -> String {
        let own = std::iter::once(self.generate.prompt.text());
        let parts = self.parts.iter().flat_map(|part| &part.messages);
        let texts: Vec<String> = own
            .chain(parts.map(|message| message.content.clone()))
            .filter(|text| !text.is_empty())
            .collect();
        texts.join("\n\n")
    }

    /// What one part's arm is asked.
    pub(crate) fn generate_part(&self, part: &Part) -> GenerateRequest {
        let before = match &self.generate.prompt {
            Prompt::Chat(messages) => messages.clone(),
            // Refused before anything is planned.
            Prompt::Text(_) => Vec::new(),
        };
        let mut generate = self.generate.clone();
        generate.prompt = Prompt::Chat(before.into_iter().chain(part.messages.clone()).collect());
        generate
    }
}

/// One part of a request: a question of its own, with its own grade.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its name, told apart from the other parts' by it; not empty.
    pub name: String,
    /// What is asked, after what all parts have in common; not empty.
    pub messages: Vec<Message>,
    /// The right answer, where one is known.
    pub reference: Option<String>,
    /// The scorer by name; `None` takes the request's.
    pub scorer: Option<String>,
}

/// Who may answer.
#[derive(Clone, Default)]
pub enum Target {
    /// Whom the router chooses.
    #[default]
    Auto,
    /// This arm of the pool.
    Pinned(ArmId),
    /// A backend outside the pool, such as a model file that the user named.
    Outside(Arc<dyn Backend>),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Auto => f.write_str("Auto"),
            Target::Pinned(arm) => write!(f, "Pinned({arm})"),
            Target::Outside(backend) => write!(f, "Outside({})", backend.arm().id),
        }
    }
}

/// What an arm's work came to, when the caller of [`Dispatch::run_with`](crate::Dispatch::run_with)
/// did it (or looked it up).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// The answer.
    pub text: String,
    /// Tokens read and written.
    pub usage: Usage,
    /// Time the device worked, which prices a local arm.
    pub busy: Duration,
    /// The part of `busy` that read the prompt; zero where unknown.
    pub prefill: Duration,
    /// Time spent loading the model, zero when it was warm.
    pub load: Duration,
    /// Whole time of the call.
    pub latency: Duration,
    /// Time to the first token, where there was one.
    pub ttft: Option<Duration>,
    /// Natural log-probabilities of the answer's tokens, where known.
    pub logprobs: Vec<f32>,
    /// The grade, where the caller knows it; otherwise dispatch's scorers are asked.
    pub score: Option<Score>,
}
