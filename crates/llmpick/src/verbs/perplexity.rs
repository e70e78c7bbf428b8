//! `llmpick perplexity`: how well a model predicts a text, by llama.cpp's definition.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::Printer;
use crate::text;

/// Options of `perplexity`.
#[derive(Args, Debug)]
pub struct PerplexityArgs {
    /// The model, a .gguf file, or a model's folder
    #[arg(short, long)]
    model: String,
    /// The text
    file: PathBuf,
    /// Tokens of each window
    #[arg(long, value_name = "C", default_value_t = 512)]
    context: usize,
}

/// Prints tokens scored, mean negative log-likelihood, and perplexity.
pub fn run(args: PerplexityArgs, global: &Global, printer: Printer) -> Result<()> {
    let text = text::read_file(&args.file)?;
    let settings = open::settings(global, Vec::new())?;
    let mut model = open::model(&settings, &args.model)?;
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} windows, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut progress = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let found = model
        .perplexity(&text, args.context, &mut progress)
        .map_err(|error| CliError::new(ExitCode::Request, chain(&error)))?;
    bar.finish_and_clear();
    printer.value(&found, || {
        format!(
            "perplexity {:.4} over {} tokens in windows of {} (mean negative log-likelihood {:.5})",
            found.ppl, found.tokens, found.context, found.nll
        )
    })
}
