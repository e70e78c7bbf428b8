//! One start in a process of its own: load, answer each prompt once, say what it took.
//!
//! Memory's high-water mark and a first touch of everything can only be had by a process
//! that has done nothing before. The command starts itself again, with its own arguments
//! and one more, so that both read the same settings.

use std::process::Stdio;
use std::str::FromStr;

use llmpick_daemon::engine::{Model, bench_prompt, peak_resident};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::Plan;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::printer::Printer;

/// The prompts to run, and the tokens to generate after the shortest of them: `32,512/128`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Tokens of each prompt.
    pub prompts: Vec<usize>,
    /// Tokens to generate after the shortest; after the others it is one.
    pub gen_tokens: usize,
}

/// What one start took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Once {
    /// Seconds to load the model.
    pub load_s: f64,
    /// Seconds from before the load to the first token after the first prompt.
    pub first_token_s: f64,
    /// The most memory the process had.
    pub peak_bytes: u64,
    /// Keys and values of the longest run, room included.
    pub kv_bytes: u64,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let prompts: Vec<String> = self.prompts.iter().map(usize::to_string).collect();
        write!(f, "{}/{}", prompts.join(","), self.gen_tokens)
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Task, String> {
        let (prompts, gen_tokens) = text.split_once('/').ok_or("no `/` in it")?;
        let number = |part: &str| part.parse().map_err(|_| format!("`{part}` is no number"));
        Ok(Task {
            prompts: prompts.split(',').map(number).collect::<Result<_, _>>()?,
            gen_tokens: number(gen_tokens)?,
        })
    }
}

/// In the child: does the task and prints the figures.
pub fn run(plan: &Plan, task: &Task, printer: Printer) -> Result<()> {
    let started = std::time::Instant::now();
    let mut model = Model::open(&plan.path, &plan.options)
        .map_err(|error| CliError::new(ExitCode::ModelFile, chain(&error)))?;
    let load_s = started.elapsed().as_secs_f64();
    let shortest = task.prompts.iter().min().copied();
    let (mut first_token_s, mut kv_bytes) = (f64::NAN, 0);
    for prompt in &task.prompts {
        let gen_tokens = match Some(*prompt) == shortest {
            true => task.gen_tokens,
            false => 1,
        };
        let tokens = bench_prompt(model.tokenizer(), *prompt);
        let before = started.elapsed();
        let run = model
            .bench_run(&tokens, gen_tokens, &|| false)
            .map_err(|error| CliError::new(ExitCode::Request, chain(&error)))?;
        if first_token_s.is_nan() {
            first_token_s = (before + run.first).as_secs_f64();
        }
        kv_bytes = kv_bytes.max(run.kv_bytes);
    }
    printer.json_line(&Once {
        load_s,
        first_token_s,
        peak_bytes: peak_resident(),
        kv_bytes,
    })
}

/// In the parent: starts a child with this task and waits for its figures.
pub async fn start(task: &Task) -> Result<Once> {
    let failed = |why: String| CliError::new(ExitCode::Failed, format!("measure a start: {why}"));
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let output = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg(format!("--once={task}"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let figures = said.lines().last().map(serde_json::from_str);
    match figures {
        Some(Ok(once)) if output.status.success() => Ok(once),
        _ => Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_task_is_written_and_read() {
        let task = Task {
            prompts: vec![32, 4000],
            gen_tokens: 128,
        };
        assert_eq!(task.to_string(), "32,4000/128");
        assert_eq!("32,4000/128".parse::<Task>().unwrap(), task);
        assert!("32,x/1".parse::<Task>().is_err());
        assert!("32".parse::<Task>().is_err());
    }
}
