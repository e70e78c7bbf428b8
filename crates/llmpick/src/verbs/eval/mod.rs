//! `llmpick eval`: a question file through the pool and the router.
//!
//! Every arm of the pool answers every question once; the router, which starts knowing nothing,
//! chooses for each question in turn and learns only from the arms it chose. So one run gives
//! each arm's accuracy and the router's, and one seed gives the same decisions.

mod ask;
mod grade;
mod journal;
mod questions;
mod report;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use llmpick_core::{ArmId, Backend, BackendError, ContextKey, GenerateRequest, Mode, OutcomeKind};
use llmpick_daemon::App;
use llmpick_daemon::dispatch::{Measured, RouteRequest};
use llmpick_store::ModelKind;
use sha2::{Digest, Sha256};

use self::ask::{Method, Reply};
use self::journal::{Header, Journal, Measurement, Routed};
use self::questions::Question;
use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::Printer;

/// Options of `eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// The questions: JSON lines with `query` and `choices` + `gold`, or `answer`
    file: PathBuf,
    /// Only the first N questions
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// These arms instead of the pool of the settings; `starter` names the four starter models
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    arms: Vec<String>,
    /// Run every arm over every question, the router, or both
    #[arg(long, value_enum, default_value = "both")]
    run: What,
    /// How choices are compared
    #[arg(long, value_enum, default_value = "likelihood")]
    by: By,
    /// Which grade counts as the score of a choice by likelihood
    #[arg(long, value_enum, default_value = "acc-norm")]
    metric: Metric,
    /// One seed, one sequence of decisions
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Most arms the router may run for one question; above 1 they are run until one is right
    #[arg(long, value_name = "N", default_value_t = 1)]
    max_arms: u32,
    /// The router's long-term budget per question in dollars
    #[arg(long, value_name = "USD")]
    budget: Option<f64>,
    /// Most tokens of a generated answer
    #[arg(long, value_name = "N", default_value_t = 320)]
    max_tokens: u32,
    /// Measure again what an earlier, interrupted run measured already
    #[arg(long)]
    fresh: bool,
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Every arm on every question.
    Pool,
    /// Only the arms that the router chooses.
    Router,
    /// Both, each arm asked once.
    Both,
}

/// How choices are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// By the log-likelihood of each choice's text (fits small models).
    Likelihood,
    /// By the letter that the model answers.
    Letter,
}

/// Which grade of a likelihood counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// lm-evaluation-harness's `acc`.
    Acc,
    /// Its `acc_norm`: divided by the choice's bytes.
    AccNorm,
}

/// Runs the questions and prints the tables.
pub async fn run(args: EvalArgs, global: &Global, printer: Printer) -> Result<()> {
    let questions = questions::read(&args.file, args.limit)?;
    // A busy machine must not change decisions: the router has all the time it may need.
    let mut overrides = vec![("router.deadline_ms".to_owned(), "10000".to_owned())];
    if !args.arms.is_empty() {
        overrides.push((
            "pool.arms".to_owned(),
            open::toml_list(&answering(&args.arms, global)?),
        ));
    }
    let app = open::app_for_command(global, overrides, true).await?;
    let header = header(&args, &app)?;
    let path = app
        .paths()
        .data
        .join("evals")
        .join(format!("{}.jsonl", journal_name(&header, &args)));
    let journal = Journal::open(path.as_std_path(), header, args.fresh)?;
    app.isolate_learner(&ContextKey(journal.header.context.clone()))
        .map_err(|error| open::app_error(&error))?;

    let mut evaluation = Evaluation {
        app: &app,
        args: &args,
        journal,
        printer,
    };
    let interrupted = tokio::select! {
        done = evaluation.all(&questions) => { done?; false }
        _ = tokio::signal::ctrl_c() => true,
    };
    let report = report::Report::new(&evaluation.journal, &questions, &evaluation.arm_names());
    printer.value(&report, || report.text())?;
    if interrupted {
        return Err(
            CliError::new(ExitCode::Interrupted, "stopped; what was measured is kept")
                .hint("the same command goes on where this one stopped"),
        );
    }
    Ok(())
}

/// One run over all questions.
struct Evaluation<'a> {
    app: &'a App,
    args: &'a EvalArgs,
    journal: Journal,
    printer: Printer,
}

impl Evaluation<'_> {
    fn method(&self) -> Method {
        Method {
            by: self.args.by,
            metric: self.args.metric,
            max_tokens: self.args.max_tokens,
        }
    }

    fn arms(&self) -> Arc<Vec<Arc<dyn Backend>>> {
        self.app.dispatch().arms()
    }

    fn arm_names(&self) -> Vec<String> {
        self.arms()
            .iter()
            .map(|arm| arm.arm().id.to_string())
            .collect()
    }

    async fn all(&mut self, questions: &[Question]) -> Result<()> {
        let known = self.journal.measured.len();
        if known > 0 {
            self.printer
                .note(&format!("{known} answers are known from an earlier run"));
        }
        let bar = progress(questions.len());
        for question in questions {
            if self.args.run != What::Router {
                self.ask_pool(question, &bar).await?;
            }
            if self.args.run != What::Pool {
                self.ask_router(question).await?;
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    async fn ask_pool(&mut self, question: &Question, bar: &ProgressBar) -> Result<()> {
        for backend in self.arms().iter() {
            let name = backend.arm().id.to_string();
            bar.set_message(name.clone());
            if !self.journal.measured.contains_key(&(question.line, name)) {
                self.measure(backend.as_ref(), question).await?;
            }
        }
        Ok(())
    }

    /// Asks one arm and keeps what it did; its failure is a measurement too.
    async fn measure(&mut self, backend: &dyn Backend, question: &Question) -> Result<()> {
        let reply = ask::ask(self.app, backend, question, self.method()).await;
        if let Err(error) = &reply
            && (matches!(error, BackendError::Load(_) | BackendError::Unsupported(_)))
        {
            // It would fail alike on every question: better said once, now.
            let arm = &backend.arm().id;
            return Err(
                CliError::new(ExitCode::ModelFile, format!("{arm}: {}", chain(error)))
                    .hint("leave it out with --arms, or choose another --by"),
            );
        }
        let measurement = measurement(question, backend, reply);
        self.journal.add(measurement)
    }

    async fn ask_router(&mut self, question: &Question) -> Result<()> {
        if self.journal.routed.contains_key(&question.line) {
            return Ok(());
        }
        let fresh = std::sync::Mutex::new(Vec::new());
        let request = self.route_request(question);
        let arms = self.arms();
        let work = |arm: ArmId| {
            let (arms, fresh, journal) = (&arms, &fresh, &self.journal);
            let (app, method) = (self.app, self.method());
            async move {
                if let Some(known) = journal.measured.get(&(question.line, arm.to_string())) {
                    return replay(known);
                }
                let backend = arms.iter().find(|backend| backend.arm().id == arm);
                let backend =
                    backend.ok_or(BackendError::Unsupported("an answer from outside the pool"))?;
                let reply = ask::ask(app, backend.as_ref(), question, method).await?;
                let measured = reply.measured.clone();
                if let Ok(mut fresh) = fresh.lock() {
                    fresh.push(measurement(question, backend.as_ref(), Ok(reply)));
                }
                Ok(measured)
            }
        };
        let summary = self.app.dispatch().run_with(request, work).await;
        let summary = summary.map_err(|error| open::dispatch_error(&error))?;
        for measurement in fresh.into_inner().unwrap_or_default() {
            self.journal.add(measurement)?;
        }
        let answered = summary
            .attempts
            .iter()
            .any(|attempt| attempt.outcome == OutcomeKind::Ok);
        self.journal.add_routed(Routed {
            routed: question.line,
            arm: summary.arm.to_string(),
            score: summary.score.map(f64::from).filter(|_| answered),
            cost_usd: summary.cost.usd(),
            latency_s: summary.latency.as_secs_f64(),
            route_id: summary.route_id.to_string(),
        })
    }

    fn route_request(&self, question: &Question) -> RouteRequest {
        let prompt = ask::prompt(question, self.method());
        let mode = if self.args.max_arms > 1 {
            Mode::AnyWin
        } else {
            Mode::Single
        };
        RouteRequest {
            mode: Some(mode),
            max_arms: Some(self.args.max_arms),
            cost_budget: self.args.budget,
            context: ContextKey(self.journal.header.context.clone()),
            seed: Some(question_seed(self.args.seed, question.line)),
            ..RouteRequest::new(GenerateRequest::new(prompt))
        }
    }
}

/// The names, each pool replaced by those of its models that answer prompts.
fn answering(names: &[String], global: &Global) -> Result<Vec<String>> {
    let store = open::store(&open::settings(global, Vec::new())?)?;
    let answers = |name: &String| {
        let card = store.card(name);
        names.contains(name) || card.is_ok_and(|card| card.kind == ModelKind::Generate)
    };
    Ok(open::expand_pools(names)
        .into_iter()
        .filter(answers)
        .collect())
}

/// Measured before: what the arm did then is what it does now.
fn replay(known: &Measurement) -> Result<Measured, BackendError> {
    if let Some(error) = &known.error {
        return Err(BackendError::Internal(error.clone().into()));
    }
    Ok(Measured {
        usage: llmpick_core::Usage {
            prompt_tokens: known.prompt_tokens,
            completion_tokens: known.completion_tokens,
            cached_tokens: 0,
        },
        busy: std::time::Duration::from_secs_f64(known.busy_s.max(0.0)),
        latency: std::time::Duration::from_secs_f64(known.latency_s.max(0.0)),
        score: known
            .score
            .and_then(|score| llmpick_core::Score::new(score).ok()),
        ..Measured::default()
    })
}

fn measurement(
    question: &Question,
    backend: &dyn Backend,
    reply: Result<Reply, BackendError>,
) -> Measurement {
    let arm = backend.arm();
    let (measured, choice, error) = match reply {
        Ok(reply) => (reply.measured, reply.choice, None),
        Err(error) => (Measured::default(), None, Some(chain(&error))),
    };
    Measurement {
        line: question.line,
        arm: arm.id.to_string(),
        // A failed call is a wrong answer.
        score: if error.is_some() {
            Some(0.0)
        } else {
            measured.score.map(f64::from)
        },
        choice,
        prompt_tokens: measured.usage.prompt_tokens,
        completion_tokens: measured.usage.completion_tokens,
        busy_s: measured.busy.as_secs_f64(),
        latency_s: measured.latency.as_secs_f64(),
        cost_usd: arm.price.cost(measured.usage, measured.busy).usd(),
        error,
    }
}

/// Every question has its own seed, whatever was asked before it.
fn question_seed(seed: u64, line: usize) -> u64 {
    let digest = Sha256::digest(format!("{seed}/{line}"));
    digest
        .iter()
        .take(8)
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn header(args: &EvalArgs, app: &App) -> Result<Header> {
    let bytes = std::fs::read(&args.file).map_err(|error| {
        CliError::new(
            ExitCode::Usage,
            format!("read {}: {error}", args.file.display()),
        )
    })?;
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let settings = app.settings();
    Ok(Header {
        version: 1,
        questions_sha256: hex(&Sha256::digest(bytes)),
        method: format!("{:?} {:?} {}", args.by, args.metric, args.max_tokens),
        context: format!("eval/{stem}/{}", next_route(app)?),
        seed: args.seed,
        router: format!(
            "{} {} arms {} budget {:?}",
            settings.router.plugin, settings.router.config_json, args.max_arms, args.budget
        ),
    })
}

/// The number of the route that comes next: no two evaluations have the same.
fn next_route(app: &App) -> Result<u64> {
    let last = app
        .dispatch()
        .last_route()
        .map_err(|error| open::dispatch_error(&error))?;
    Ok(last.map_or(0, |route| route.id.0) + 1)
}

/// One journal for each question file, way of asking, router and seed; how many questions are
/// asked of which arms may change between two runs.
fn journal_name(header: &Header, args: &EvalArgs) -> String {
    let stem: String = args
        .file
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let identity = format!(
        "{} {} {} {}",
        header.questions_sha256, header.method, header.seed, header.router
    );
    format!("{stem}-{}", &hex(&Sha256::digest(identity))[..12])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn progress(questions: usize) -> ProgressBar {
    let bar = ProgressBar::new(questions as u64);
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} questions, {eta} left  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
