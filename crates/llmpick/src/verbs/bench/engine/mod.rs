//! `llmpick bench engine`: speed, starts and memory of a local model, alone or in turn with
//! llama.cpp on the same file, tokens and threads.

mod once;
mod peer;
mod quiet;
mod report;
mod session;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use llmpick_daemon::engine::{EngineOptions, RunBy, read_info};
use tokio_util::sync::CancellationToken;

use self::session::Session;
use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::Printer;

/// Sizes of prompt where none is given. The first is the one that short answers tell of.
const PROMPTS: [usize; 3] = [512, 32, 4000];

/// Pairs of runs that a comparison needs.
const PAIRS: usize = 5;

/// Options of `bench engine`.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub struct EngineArgs {
    /// The model, a .gguf file, or a model's folder
    #[arg(short, long)]
    model: String,
    /// Tokens of the prompt; may be given several times [default: 512, 32 and 4000, as far as
    /// they fit the context]
    #[arg(long, value_name = "P")]
    prompt_tokens: Vec<usize>,
    /// Tokens to generate after the shortest prompt
    #[arg(long, value_name = "G", default_value_t = 128)]
    gen_tokens: usize,
    /// Counted runs of each measure, after one warm-up
    #[arg(long, value_name = "R", default_value_t = PAIRS)]
    runs: usize,
    /// Sequences at one time
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Threads that compute, as the setting compute.threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// What to measure; may be given several times [default: everything]
    #[arg(long, value_enum, value_name = "WHAT")]
    measure: Vec<What>,
    /// Run this one too, in turn with ours, and print ratios
    #[arg(long, value_enum)]
    against: Option<AgainstWhom>,
    /// The other one's program: a llama-server, or a Python that has the package xllamacpp
    /// [default: llama-server of the PATH, or python3]
    #[arg(long, value_name = "PROGRAM", requires = "against")]
    peer: Option<PathBuf>,
    /// Compare although other processes compute meanwhile, or with fewer than 5 runs; the
    /// report says so
    #[arg(long)]
    allow_load: bool,
    /// Load once, run these prompts once, print what it took (the bench starts itself so)
    #[arg(long, hide = true, value_name = "P,P/G")]
    once: Option<once::Task>,
}

const AFTER: &str = "\
How it is measured: prompts are synthetic and the same in every run; each run begins with an \
empty cache and lasts half a second or more (short prompts are repeated). `prompt P` is tokens per \
second up to the first generated token; `generate G` leaves that token out. `load` and `first \
token` are of a new process with the file in memory (warm) or, `cold`, after the file's pages were \
dropped from the system's cache (posix_fadvise; left out when another process holds them). Peak \
memory is of a new process that ran every prompt once. The plain read is a sum over the same \
weights by the same threads, in turn with generation.

With --against, ours and llama.cpp's runs alternate, A B A B. llama.cpp's figures are by its own \
clock; its interpreter's start and memory are not counted. A run during which other processes used \
more than 0.1 core is repeated, and after ten tries the comparison is refused. Cold loads are not \
held to this: the kernel's own work for the disk belongs to no process.

JSON: `ratio` is our speed over llama.cpp's for a whole answer (shortest prompt and generation), or \
for the prompt if only that is measured; `measures` has the ratio of every measure.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Prompt tokens per second
    Prompt,
    /// Generated tokens per second, and the weights read for them beside a plain read
    Generate,
    /// Time to load and to the first token, of a new process
    Load,
    /// Peak memory
    Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AgainstWhom {
    /// llama.cpp, the engine to measure against
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

/// What is to be measured, checked.
pub struct Plan {
    model: String,
    path: PathBuf,
    options: EngineOptions,
    file_bytes: u64,
    kv_cache: String,
    /// Tokens of context that are made room for.
    context: usize,
    prompts: Vec<usize>,
    gen_tokens: usize,
    runs: usize,
    measures: Vec<What>,
    /// With a peer: the program that was named, if any.
    against: Option<Option<PathBuf>>,
    allow_load: bool,
}

/// Measures and prints.
pub async fn run(args: EngineArgs, global: &Global, printer: Printer) -> Result<()> {
    let once = args.once.clone();
    let plan = Plan::new(args, global)?;
    if let Some(task) = once {
        return once::run(&plan, &task, printer);
    }
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            asked.cancel();
        }
    });
    let report = tokio::select! {
        report = Session::new(&plan, &stop).measure() => report?,
        () = stop.cancelled() => return Err(CliError::new(ExitCode::Interrupted, "stopped")),
    };
    printer.value(&report, || report.text())
}

impl Plan {
    fn new(args: EngineArgs, global: &Global) -> Result<Plan> {
        let threads = args
            .threads
            .map(|n| ("compute.threads".to_owned(), n.to_string()));
        let settings = open::settings(global, threads.into_iter().collect())?;
        let path = open::model_path(&settings, &args.model)?;
        let mut options = open::engine_options(&settings);
        let info =
            read_info(&path).map_err(|error| CliError::new(ExitCode::ModelFile, chain(&error)))?;
        let most = options
            .max_context
            .map_or(info.context_tokens, |most| most.min(info.context_tokens))
            as usize;
        check(&args)?;
        if args.against.is_some() && path.is_dir() {
            return Err(CliError::new(
                ExitCode::Request,
                "llama.cpp reads GGUF files only, and this model is a folder",
            ));
        }
        let prompts = prompts(&args, most)?;
        let shortest = prompts.iter().min().copied().unwrap_or_default();
        let longest = prompts.iter().max().copied().unwrap_or_default();
        let needed = (shortest + args.gen_tokens).max(longest + 1);
        // The peer makes room for all of its context, and wants some to spare.
        let context = match args.against {
            Some(_) => (needed + 16).next_multiple_of(256).min(most),
            None => most,
        };
        options.max_context = Some(context as u32);
        Ok(Plan {
            model: args.model,
            path,
            file_bytes: info.file_bytes,
            kv_cache: match info.run_by {
                RunBy::Own => format!("{:?}", options.kv_type).to_lowercase(),
                RunBy::Stock => "f32".to_owned(),
            },
            options,
            context,
            prompts,
            gen_tokens: args.gen_tokens,
            runs: args.runs,
            measures: args.measure,
            against: args.against.map(|AgainstWhom::LlamaCpp| args.peer),
            allow_load: args.allow_load,
        })
    }

    fn wants(&self, what: What) -> bool {
        self.measures.is_empty() || self.measures.contains(&what)
    }

    fn shortest(&self) -> usize {
        self.prompts.iter().min().copied().unwrap_or_default()
    }
}

fn check(args: &EngineArgs) -> Result<()> {
    let wrong = |why: String| Err(CliError::new(ExitCode::Request, why));
    if args.batch != 1 {
        return wrong(format!(
            "{} sequences at once are not supported yet; measure a batch of 1",
            args.batch
        ));
    }
    if args.prompt_tokens.contains(&0) || args.runs == 0 || args.gen_tokens < 2 {
        return wrong(
            "a measurement needs a prompt token, two generated tokens, and one run".to_owned(),
        );
    }
    if args.against.is_some() && args.runs < PAIRS && !args.allow_load {
        return wrong(format!(
            "a comparison needs {PAIRS} runs or more, and {} say little; --allow-load reports them",
            args.runs
        ));
    }
    Ok(())
}

/// The sizes asked for, which must fit, or those of the usual that do.
fn prompts(args: &EngineArgs, context: usize) -> Result<Vec<usize>> {
    // Whichever is the shortest is generated after.
    let fits = |prompt: usize, shortest: usize| {
        let after = match prompt == shortest {
            true => args.gen_tokens,
            false => 1,
        };
        prompt.saturating_add(after) <= context
    };
    let asked = match args.prompt_tokens.as_slice() {
        [] => PROMPTS.as_slice(),
        asked => asked,
    };
    let shortest = asked.iter().min().copied().unwrap_or_default();
    let unfit = asked.iter().find(|prompt| !fits(**prompt, shortest));
    match unfit {
        Some(prompt) if !args.prompt_tokens.is_empty() || *prompt == shortest => {
            Err(CliError::new(
                ExitCode::Request,
                format!(
                    "{prompt} and {} tokens do not fit the context of {context}",
                    args.gen_tokens
                ),
            ))
        }
        _ => Ok(asked
            .iter()
            .copied()
            .filter(|prompt| fits(*prompt, shortest))
            .collect()),
    }
}
