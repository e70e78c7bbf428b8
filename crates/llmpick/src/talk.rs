//! Somebody to ask: a running daemon, or this process itself.

use futures::StreamExt;
use llmpick_core::{
    ArmId, ContextKey, FinishReason, GenerateRequest, Message, Mode, NanoDollars, Prompt, RouteId,
    Sampling, Score, Usage,
};
use llmpick_daemon::client::{ChatCall, ChatEvent, Client, TaskCall, TaskStep};
use llmpick_daemon::dispatch::{RouteEvent, RouteRequest, RouteSummary, Target, TaskEvent};
use llmpick_daemon::{App, PartReport, Settings, TaskReport};

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result};
use crate::open;
use crate::verbs::route::{explain, find};

/// What is asked, with every option.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The conversation so far, its last message to be answered.
    pub messages: Vec<Message>,
    /// Instructions before all messages.
    pub system: Option<String>,
    /// Continue the last message as plain text.
    pub raw: bool,
    /// A pinned arm; `None` routes.
    pub model: Option<String>,
    /// How tokens are drawn; seed 0 stands for none.
    pub sampling: Sampling,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// How arms work together.
    pub mode: Option<Mode>,
    /// Most arms.
    pub max_arms: Option<u32>,
    /// Most dollars.
    pub max_cost: Option<f64>,
    /// Context tag.
    pub context: String,
    /// Numbers that describe the request.
    pub features: Vec<f32>,
    /// The right answer.
    pub reference: Option<String>,
    /// The scorer.
    pub scorer: Option<String>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Who answered.
    pub model: String,
    /// Its route.
    pub route_id: RouteId,
    /// Tokens.
    pub usage: Usage,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Milliseconds to the first token.
    pub ttft_ms: f64,
    /// Milliseconds to the end.
    pub latency_ms: f64,
    /// Dollars, all attempts together.
    pub cost_usd: f64,
    /// The grade.
    pub score: Option<Score>,
    /// In a cascade, whether it was accepted.
    pub accepted: Option<bool>,
}

impl Ask {
    /// The system message, then the conversation.
    pub fn all_messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(Message::system);
        system.chain(self.messages.iter().cloned()).collect()
    }

    fn generate(&self) -> GenerateRequest {
        let prompt = match (self.raw, self.messages.last()) {
            (true, Some(last)) => Prompt::Text(last.content.clone()),
            _ => Prompt::Chat(self.all_messages()),
        };
        GenerateRequest {
            sampling: self.sampling.clone(),
            max_tokens: Some(self.max_tokens),
            stop: self.stop.clone(),
            ..GenerateRequest::new(prompt)
        }
    }
}

/// Who answers.
pub enum Talker {
    /// This process.
    Here(Box<App>),
    /// The daemon behind the socket, and the settings for what is read from the ledger's file.
    Daemon(Client, Box<Settings>),
}

impl Talker {
    /// For a conversation: the daemon if one answers, else this process with its pool.
    /// `model` is what the person asked for; a pinned model needs no pool.
    pub async fn connect(
        global: &Global,
        settings: &Settings,
        stay_here: bool,
        model: &str,
    ) -> Result<Self> {
        let is_file = llmpick_store::looks_like_path(model);
        if !stay_here
            && !is_file
            && let Some(client) = Client::connect(&settings.server.socket).await
        {
            return Ok(Self::Daemon(client, Box::new(settings.clone())));
        }
        let app = open::app_for_command(global, Vec::new(), model == "auto").await?;
        Ok(Self::Here(Box::new(app)))
    }

    /// For what needs the ledger and the learner, and no model.
    pub async fn for_records(global: &Global) -> Result<Self> {
        let settings = open::settings(global, Vec::new())?;
        if let Some(client) = Client::connect(&settings.server.socket).await {
            return Ok(Self::Daemon(client, Box::new(settings)));
        }
        let app = open::app_for_command(global, Vec::new(), false).await?;
        Ok(Self::Here(Box::new(app)))
    }

    /// `daemon` or `here`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Here(_) => "here",
            Self::Daemon(..) => "daemon",
        }
    }

    /// `None` for `auto`; otherwise the name, if there is such a model.
    pub async fn check_model(&self, name: &str) -> Result<Option<String>> {
        if name == "auto" {
            return Ok(None);
        }
        match self {
            Self::Here(app) => {
                if app.arm(name).is_none() {
                    app.local_backend(name)
                        .map_err(|error| open::model_error(&error))?;
                }
            }
            Self::Daemon(client, settings) => {
                let known = client
                    .models()
                    .await
                    .map_err(|error| open::client_error(&error))?;
                if !known.iter().any(|model| model == name) {
                    // Installed or not, the store says it best.
                    open::model_path(settings, name)?;
                }
            }
        }
        Ok(Some(name.to_owned()))
    }

    /// The models that can be named, in words.
    pub async fn models(&self) -> Result<String> {
        let names: Vec<String> = match self {
            Self::Here(app) => app
                .dispatch()
                .arms()
                .iter()
                .map(|arm| arm.arm().id.to_string())
                .collect(),
            Self::Daemon(client, _) => client
                .models()
                .await
                .map_err(|error| open::client_error(&error))?,
        };
        Ok(format!("there are {}", names.join(", ")))
    }

    /// Asks, and hands on each piece of the answer. Dropping the future cancels the answer.
    pub async fn ask(&self, ask: &Ask, hear: &mut (dyn FnMut(&str) + Send)) -> Result<Answer> {
        match self {
            Self::Here(app) => ask_here(app, ask, hear).await,
            Self::Daemon(client, _) => ask_daemon(client, ask, hear).await,
        }
    }

    /// Asks a request with parts, and hands on what happens to each. Dropping the future cancels
    /// what still runs.
    pub async fn task(
        &self,
        call: &TaskCall,
        hear: &mut (dyn FnMut(TaskStep) + Send),
    ) -> Result<TaskReport> {
        match self {
            Self::Here(app) => task_here(app, call, hear).await,
            Self::Daemon(client, _) => task_daemon(client, call, hear).await,
        }
    }

    /// The person's grade of an answer.
    pub async fn feedback(&self, route: RouteId, score: Score) -> Result<()> {
        match self {
            Self::Here(app) => app
                .dispatch()
                .feedback(route, score, "user")
                .await
                .map_err(|error| open::dispatch_error(&error)),
            Self::Daemon(client, _) => client
                .feedback(route, score)
                .await
                .map_err(|error| open::client_error(&error)),
        }
    }

    /// Why a route went where it went. The ledger's file says it, whoever wrote it.
    pub async fn explain(&self, route: RouteId) -> Result<String> {
        match self {
            Self::Here(app) => Ok(explain(&find(app.ledger(), route)?)),
            Self::Daemon(_, settings) => Ok(explain(&find(&open::ledger(settings)?, route)?)),
        }
    }

    /// Waits until everything is in the ledger, and saves what was learnt.
    pub async fn close(&self) {
        if let Self::Here(app) = self {
            app.close().await;
        }
    }
}

async fn ask_here(app: &App, ask: &Ask, hear: &mut (dyn FnMut(&str) + Send)) -> Result<Answer> {
    let failed = |error| open::dispatch_error(&error);
    let mut events = app
        .dispatch()
        .run(route_request(app, ask)?)
        .await
        .map_err(failed)?;
    let mut text = String::new();
    while let Some(event) = events.next().await {
        match event.map_err(failed)? {
            RouteEvent::Chosen { .. } => {}
            RouteEvent::Token(piece) => {
                hear(&piece.text);
                text.push_str(&piece.text);
            }
            RouteEvent::Finished(summary) => return Ok(answer_here(text, summary)),
        }
    }
    Err(no_end())
}

async fn task_here(
    app: &App,
    call: &TaskCall,
    hear: &mut (dyn FnMut(TaskStep) + Send),
) -> Result<TaskReport> {
    let failed = |error| open::dispatch_error(&error);
    let max_cost = call.max_cost.map(NanoDollars::from_usd).transpose();
    let generate = GenerateRequest {
        sampling: call.sampling.clone(),
        max_tokens: call.max_tokens,
        stop: call.stop.clone(),
        logprobs: false,
        ..GenerateRequest::new(Prompt::Chat(call.messages.clone()))
    };
    let request = RouteRequest {
        target: target(app, call.model.as_deref())?,
        parts: call.parts.clone(),
        mode: call.mode,
        max_arms: call.max_arms,
        max_cost: max_cost.map_err(|error| CliError::new(ExitCode::Usage, error))?,
        max_latency: call
            .max_latency_ms
            .map(|ms| std::time::Duration::from_secs_f64(ms / 1e3)),
        min_score: call.min_score,
        context: ContextKey(call.context.clone()),
        scorer: call.scorer.clone(),
        seed: Some(call.sampling.seed).filter(|seed| *seed != 0),
        ..RouteRequest::new(generate)
    };
    let mut events = app.dispatch().task(request).await.map_err(failed)?;
    while let Some(event) = events.next().await {
        match event.map_err(failed)? {
            TaskEvent::Started { name, arm, .. } => hear(TaskStep::Started { name, model: arm }),
            TaskEvent::Ended(part) => hear(TaskStep::Part(PartReport::from(part))),
            TaskEvent::Finished(summary) => return Ok(summary.into()),
        }
    }
    Err(no_end())
}

async fn task_daemon(
    client: &Client,
    call: &TaskCall,
    hear: &mut (dyn FnMut(TaskStep) + Send),
) -> Result<TaskReport> {
    let failed = |error| open::client_error(&error);
    let mut steps = client.task(call).await.map_err(failed)?;
    while let Some(step) = steps.next().await {
        match step.map_err(failed)? {
            TaskStep::Done(report) => return Ok(report),
            step => hear(step),
        }
    }
    Err(no_end())
}

fn no_end() -> CliError {
    CliError::new(ExitCode::Failed, "the answer ended without its last part")
}

/// Who may answer to this name.
fn target(app: &App, model: Option<&str>) -> Result<Target> {
    Ok(match model {
        None => Target::Auto,
        Some(name) if app.arm(name).is_some() => {
            Target::Pinned(ArmId::new(name).map_err(|error| CliError::new(ExitCode::Usage, error))?)
        }
        Some(name) => Target::Outside(
            app.local_backend(name)
                .map_err(|error| open::model_error(&error))?,
        ),
    })
}

fn route_request(app: &App, ask: &Ask) -> Result<RouteRequest> {
    let max_cost = ask.max_cost.map(NanoDollars::from_usd).transpose();
    Ok(RouteRequest {
        target: target(app, ask.model.as_deref())?,
        mode: ask.mode,
        max_arms: ask.max_arms,
        max_cost: max_cost.map_err(|error| CliError::new(ExitCode::Usage, error))?,
        context: ContextKey(ask.context.clone()),
        features: ask.features.clone(),
        reference: ask.reference.clone(),
        scorer: ask.scorer.clone(),
        seed: Some(ask.sampling.seed).filter(|seed| *seed != 0),
        ..RouteRequest::new(ask.generate())
    })
}

fn answer_here(text: String, summary: RouteSummary) -> Answer {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1000.0;
    Answer {
        text,
        model: summary.arm.to_string(),
        route_id: summary.route_id,
        usage: summary.usage,
        finish_reason: summary.reason,
        ttft_ms: summary.ttft.map_or(f64::NAN, ms),
        latency_ms: ms(summary.latency),
        cost_usd: summary.cost.usd(),
        score: summary.score,
        accepted: summary.accepted,
    }
}

async fn ask_daemon(
    client: &Client,
    ask: &Ask,
    hear: &mut (dyn FnMut(&str) + Send),
) -> Result<Answer> {
    let failed = |error| open::client_error(&error);
    let call = ChatCall {
        model: ask.model.clone(),
        messages: ask.all_messages(),
        sampling: ask.sampling.clone(),
        max_tokens: Some(ask.max_tokens),
        stop: ask.stop.clone(),
        mode: ask.mode,
        max_arms: ask.max_arms,
        max_cost: ask.max_cost,
        context: ask.context.clone(),
        features: ask.features.clone(),
        reference: ask.reference.clone(),
        scorer: ask.scorer.clone(),
    };
    let mut events = client.chat(&call).await.map_err(failed)?;
    let mut text = String::new();
    while let Some(event) = events.next().await {
        match event.map_err(failed)? {
            ChatEvent::Text(piece) => {
                hear(&piece);
                text.push_str(&piece);
            }
            ChatEvent::Done(done) => {
                return Ok(Answer {
                    text,
                    model: done.model,
                    route_id: done.route_id,
                    usage: done.usage,
                    finish_reason: done.finish_reason,
                    ttft_ms: done.ttft_ms.unwrap_or(f64::NAN),
                    latency_ms: done.latency_ms,
                    cost_usd: done.cost_usd,
                    score: done.score,
                    accepted: done.accepted,
                });
            }
        }
    }
    Err(no_end())
}
