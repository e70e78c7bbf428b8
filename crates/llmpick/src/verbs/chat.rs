//! `llmpick chat`: one answer, or a conversation.

use clap::{Args, ValueEnum};
use llmpick_core::{Message, Mode, Sampling};
use llmpick_daemon::Settings;
use serde_json::json;

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result};
use crate::open;
use crate::printer::Printer;
use crate::repl::{self, Shown, footer};
use crate::talk::{Answer, Ask, Talker};
use crate::text;

/// Options of `chat`.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// The prompt; without it stdin is read, and on a terminal a conversation begins
    prompt: Option<String>,
    /// The model: `auto` routes, a name pins, a .gguf file or a model's folder is run as it is
    #[arg(short, long, default_value = "auto")]
    model: String,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Continue the prompt as plain text, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Answer in this process even if a daemon runs
    #[arg(long)]
    no_daemon: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    routing: RoutingArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Most tokens of the answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; higher is bolder
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw from the K likeliest tokens; 0 from all
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Draw from the likeliest tokens that together reach P
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Make tokens seen lately less likely; 1 does nothing
    #[arg(long, value_name = "R")]
    repeat_penalty: Option<f32>,
    /// Same seed, same answer
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Routing")]
struct RoutingArgs {
    /// How the chosen arms work together
    #[arg(long, value_enum)]
    mode: Option<ChatMode>,
    /// Most arms that may run
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    max_arms: Option<u32>,
    /// Most dollars this answer may cost
    #[arg(long, value_name = "USD")]
    max_cost: Option<f64>,
    /// Keep statistics under this tag
    #[arg(long, value_name = "TAG")]
    context: Option<String>,
    /// Numbers that describe the request, for routers that use them: "0.1,-2", or @FILE with
    /// numbers between commas or spaces
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    features: Option<String>,
    /// The right answer, so that a scorer can grade this one
    #[arg(long, value_name = "TEXT")]
    reference: Option<String>,
    /// The scorer that grades: exact, choice, numeric, regex, logprob, or a plugin of
    /// plugins.scorers
    #[arg(long, value_name = "NAME")]
    scorer: Option<String>,
}

/// What a chat can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ChatMode {
    /// One arm answers.
    Single,
    /// One after the other, until an answer is accepted.
    AnyWin,
}

/// Answers the prompt, or talks.
pub async fn run(args: ChatArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let prompt = match &args.prompt {
        Some(prompt) => Some(prompt.clone()),
        None if text::stdin_is_terminal() => None,
        None => Some(text::read_stdin()?),
    };
    if prompt
        .as_ref()
        .is_some_and(|prompt| prompt.trim().is_empty())
    {
        return Err(CliError::new(ExitCode::Usage, "the prompt is empty")
            .hint("llmpick chat \"Why is the sky blue?\""));
    }
    if prompt.is_none() && printer.is_json() {
        return Err(CliError::new(
            ExitCode::Usage,
            "--json needs a prompt, as an argument or on stdin",
        ));
    }
    let mut ask = ask(&args, &settings);
    if let Some(list) = &args.routing.features {
        ask.features = text::numbers(list)?;
    }
    let talker =
        Talker::connect(global, &settings, args.no_daemon || args.raw, &args.model).await?;
    ask.model = talker.check_model(&args.model).await?;
    let result = match prompt {
        Some(prompt) => once(&talker, ask, prompt, printer).await,
        None => {
            let history = settings.paths.history();
            repl::converse(&talker, ask, history.as_std_path(), printer).await
        }
    };
    talker.close().await;
    result
}

/// The options, over the settings.
fn ask(args: &ChatArgs, settings: &Settings) -> Ask {
    let chat = &settings.chat;
    let given = &args.sampling;
    let base = &chat.sampling;
    Ask {
        messages: Vec::new(),
        system: args.system.clone().or_else(|| chat.system.clone()),
        raw: args.raw,
        model: None,
        sampling: Sampling {
            temperature: given.temperature.unwrap_or(base.temperature),
            top_k: given.top_k.unwrap_or(base.top_k),
            top_p: given.top_p.unwrap_or(base.top_p),
            min_p: given.min_p.unwrap_or(base.min_p),
            repetition_penalty: given.repeat_penalty.unwrap_or(base.repetition_penalty),
            repetition_window: base.repetition_window,
            seed: given.seed.unwrap_or(0),
        },
        max_tokens: given.max_tokens.unwrap_or(chat.max_tokens),
        stop: given.stop.clone(),
        mode: args.routing.mode.map(|mode| match mode {
            ChatMode::Single => Mode::Single,
            ChatMode::AnyWin => Mode::AnyWin,
        }),
        max_arms: args.routing.max_arms,
        max_cost: args.routing.max_cost,
        context: args.routing.context.clone().unwrap_or_default(),
        features: Vec::new(),
        reference: args.routing.reference.clone(),
        scorer: args.routing.scorer.clone(),
    }
}

/// One prompt, one answer.
async fn once(talker: &Talker, mut ask: Ask, prompt: String, printer: Printer) -> Result<()> {
    ask.messages.push(Message::user(prompt));
    let mut shown = Shown::new(printer);
    let mut hear = |piece: &str| {
        if !printer.is_json() {
            shown.push(piece);
        }
    };
    let answer = tokio::select! {
        answer = talker.ask(&ask, &mut hear) => answer,
        _ = tokio::signal::ctrl_c() => Err(CliError::new(ExitCode::Interrupted, "stopped")),
    };
    shown.finish();
    let answer = answer?;
    if printer.is_json() {
        return printer.json_line(&json_answer(&answer, talker));
    }
    if printer.is_terminal() {
        printer.note(&footer(&answer));
    }
    Ok(())
}

fn json_answer(answer: &Answer, talker: &Talker) -> serde_json::Value {
    json!({
        "text": answer.text,
        "model": answer.model,
        "route_id": answer.route_id,
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
        },
        "finish_reason": answer.finish_reason,
        "ttft_ms": answer.ttft_ms,
        "latency_ms": answer.latency_ms,
        "cost_usd": answer.cost_usd,
        "score": answer.score,
        "accepted": answer.accepted,
        "via": talker.name(),
    })
}
