//! `llmpick completions` and `llmpick man`: made from the same declarations as the help.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::{CliError, ExitCode, Result};
use crate::printer::Printer;

/// Options of `completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Options of `man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The page of one verb instead of the whole command's
    verb: Option<String>,
}

/// Prints the script.
pub fn completions(args: CompletionsArgs, printer: Printer) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "llmpick", &mut script);
    printer.write(&String::from_utf8_lossy(&script))
}

/// Prints the page in roff, for `llmpick man | man -l -`.
pub fn man(args: ManArgs, printer: Printer) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let command = match &args.verb {
        None => command,
        Some(verb) => command
            .find_subcommand(verb)
            .cloned()
            .ok_or_else(|| CliError::new(ExitCode::Usage, format!("there is no verb `{verb}`")))?,
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| CliError::new(ExitCode::Failed, format!("write the page: {error}")))?;
    printer.write(&String::from_utf8_lossy(&page))
}
