//! `llmpick task`: several questions, dealt over several models and run at the same time.

mod file;

use std::path::PathBuf;

use clap::Args;
use llmpick_daemon::client::TaskStep;
use llmpick_daemon::{PartReport, TaskReport};

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result};
use crate::open;
use crate::printer::{Printer, dollars, milliseconds, table};
use crate::talk::Talker;
use crate::text;

/// Options of `task`.
#[derive(Args, Debug)]
#[command(after_help = FORMAT)]
pub struct TaskArgs {
    /// The task: a TOML file, or `-` for stdin
    #[arg(required_unless_present = "example")]
    file: Option<PathBuf>,
    /// Print every part's whole answer, not only its first line
    #[arg(long)]
    full: bool,
    /// Run in this process even if a daemon runs
    #[arg(long)]
    no_daemon: bool,
    /// Print a task file that shows every key
    #[arg(long)]
    example: bool,
}

const FORMAT: &str = "\
A task file has a `mode` (sum_up or all_in) and [[parts]] tables, each with a name, a prompt (or \
messages), and a reference and a scorer where it can be graded. The parts go round the models \
that the router chooses. Exit code 0: every part was answered (all_in: well enough); 11: sum_up \
succeeded without some of its parts; 1: the task failed.";

/// Runs the task and prints what became of each part.
pub async fn run(args: TaskArgs, global: &Global, printer: Printer) -> Result<()> {
    let path = match (&args.file, args.example) {
        (Some(path), false) => path,
        _ => return printer.write(file::EXAMPLE),
    };
    let settings = open::settings(global, Vec::new())?;
    let (name, text) = match path.as_os_str() == "-" {
        true => ("stdin".to_owned(), text::read_stdin()?),
        false => (path.display().to_string(), text::read_file(path)?),
    };
    let mut call = file::read(&name, &text, &settings)?;
    let model = call.model.clone().unwrap_or_else(|| "auto".to_owned());
    let talker = Talker::connect(global, &settings, args.no_daemon, &model).await?;
    call.model = talker.check_model(&model).await?;
    let count = call.parts.len();
    let mut ended = 0;
    let mut hear = |step: TaskStep| {
        if let TaskStep::Part(part) = step {
            ended += 1;
            printer.note(&format!("[{ended}/{count}] {}", progress(&part)));
        }
    };
    let report = tokio::select! {
        report = talker.task(&call, &mut hear) => report,
        _ = tokio::signal::ctrl_c() => Err(CliError::new(
            ExitCode::Interrupted,
            "stopped; what ran until then is paid for and recorded",
        )),
    };
    talker.close().await;
    let report = report?;
    printer.value(&report, || told(&report, args.full))?;
    verdict(&report)
}

/// One line about a part that has ended.
fn progress(part: &PartReport) -> String {
    let who = match (&part.model, &part.error) {
        (Some(model), _) => format!("{model} answered"),
        (None, Some(error)) => format!("failed: {error}"),
        (None, None) => "failed".to_owned(),
    };
    let score = part
        .score
        .map_or(String::new(), |score| format!(", score {score}"));
    format!(
        "{}: {who}{score}, {}, {}",
        part.name,
        milliseconds(part.latency_ms),
        dollars(part.cost_usd)
    )
}

fn told(report: &TaskReport, full: bool) -> String {
    let rows = report.parts.iter().map(|part| {
        let answer = match &part.error {
            Some(error) => format!("failed: {error}"),
            None => first_line(&part.text),
        };
        vec![
            part.name.clone(),
            part.model
                .as_ref()
                .map_or("–".to_owned(), ToString::to_string),
            part.score.map_or("–".to_owned(), |score| score.to_string()),
            dollars(part.cost_usd),
            milliseconds(part.latency_ms),
            answer,
        ]
    });
    let header = ["part", "model", "score>", "cost>", "latency>", "answer"];
    let mut text = table(&header, rows);
    if full {
        for part in report.parts.iter().filter(|part| part.error.is_none()) {
            text.push_str(&format!(
                "\n\n── {} ──\n{}",
                part.name,
                part.text.trim_end()
            ));
        }
    }
    text.push_str(&format!("\n\n{}", totals(report)));
    text
}

fn first_line(text: &str) -> String {
    let mut lines = text.trim().lines();
    let first = lines.next().unwrap_or_default();
    let mut shown: String = first.chars().take(60).collect();
    if lines.next().is_some() || shown.len() < first.len() {
        shown.push('…');
    }
    shown
}

fn totals(report: &TaskReport) -> String {
    let graded: Vec<f64> = (report.parts.iter())
        .filter_map(|part| part.score.map(f64::from))
        .collect();
    let answered = report.parts.iter().filter(|p| p.error.is_none()).count();
    let mut facts = vec![format!(
        "{answered} of {} parts answered",
        report.parts.len()
    )];
    if let Some(sum) = report.score_sum {
        facts.push(format!("score {sum:.3} of {}", graded.len()));
    }
    facts.push(dollars(report.cost_usd));
    facts.push(milliseconds(report.latency_ms));
    format!("{}  {}", report.route_id, facts.join(", "))
}

/// The exit code.
fn verdict(report: &TaskReport) -> Result<()> {
    let show = format!("llmpick route show {}", report.route_id);
    if let Some(failure) = &report.failure {
        return Err(CliError::new(ExitCode::Failed, failure).hint(show));
    }
    let failed: Vec<&str> = (report.parts.iter())
        .filter(|part| part.error.is_some())
        .map(|part| part.name.as_str())
        .collect();
    match failed.is_empty() {
        true => Ok(()),
        false => {
            let message = format!("not answered: {}", failed.join(", "));
            Err(CliError::new(ExitCode::PartFailed, message).hint(show))
        }
    }
}
