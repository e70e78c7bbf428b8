//! The project's own commands: build plugins, run, test, check, hold the layout to the plan.
//!
//! `cargo build` alone does not build a cdylib-only package when the command is built, nor
//! do the test runners; so everything that needs plugins goes through here.

mod arm;
mod cargo;
mod check;
mod cuda;
mod plugins;
mod test;
mod tidy;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  run ARGS…             build what is stale, plugins too, and run `llmpick ARGS…`
  test [--all-models] [FILTER…]
                        pull the default pool once, then run every test
  check                 formatting, lints, layout: cheapest first
  plugins               build the plugins and stage them beside the binary
  cuda                  build the command with GPU support, and try it
  arm [FILTER…]         run the kernels' tests for 64-bit ARM, emulated
  tidy                  hold the crates' dependencies against the plan
  golden [MODEL…]       ask the full-precision models what the tests of the
                        engine are compared with; a quarter of an hour or more, up to 9 GB
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let result = match command.as_str() {
        "run" => plugins::run(&rest),
        "test" => test::test(&rest),
        "check" => check::check(),
        "plugins" => plugins::stage().map(|staged| {
            for file in staged {
                eprintln!("staged {}", file.display());
            }
            0
        }),
        "cuda" => cuda::cuda(&rest),
        "arm" => arm::arm(&rest),
        "tidy" => tidy::tidy(),
        "golden" => test::golden(&rest),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        other => Err(format!("unknown command `{other}`\n\n{HELP}")),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
