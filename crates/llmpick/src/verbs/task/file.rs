//! The task file: TOML, every key checked, every mistake told with its line.

use std::collections::HashMap;
use std::ops::Range;

use llmpick_core::{Message, Mode, Sampling, Score};
use llmpick_daemon::Settings;
use llmpick_daemon::client::TaskCall;
use llmpick_daemon::dispatch::Part;
use serde::Deserialize;
use toml::Spanned;

use crate::error::{CliError, ExitCode, Result};

/// A whole file that shows every key; printed by `llmpick task --example`.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The file as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    mode: Option<Spanned<Mode>>,
    model: Option<String>,
    system: Option<String>,
    scorer: Option<String>,
    max_arms: Option<Spanned<u32>>,
    max_tokens: Option<Spanned<u32>>,
    temperature: Option<Spanned<f32>>,
    seed: Option<u64>,
    max_cost: Option<Spanned<f64>>,
    max_latency_s: Option<Spanned<f64>>,
    accept: Option<Spanned<f64>>,
    #[serde(default)]
    context: String,
    #[serde(default)]
    parts: Vec<Spanned<PartFile>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartFile {
    name: Spanned<String>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    reference: Option<String>,
    scorer: Option<String>,
}

/// Reads a file's text; `name` stands before the line in errors.
pub fn read(name: &str, text: &str, settings: &Settings) -> Result<TaskCall> {
    let file: TaskFile = toml::from_str(text).map_err(|error| {
        let place = error.span().map_or(0, |span| span.start);
        CliError::new(
            ExitCode::Usage,
            format!("{name}:{}: {}", line(text, place), error.message()),
        )
        .hint("`llmpick task --example` prints a task file with every key")
    })?;
    let checked = Checked { name, text };
    let parts = checked.parts(&file)?;
    let score = |accept: &f64| Score::new(*accept).map_err(|error| error.to_string());
    let base = &settings.chat.sampling;
    let system = file.system.or_else(|| settings.chat.system.clone());
    let temperature = checked.value(&file.temperature, |t| match (0.0..=2.0).contains(t) {
        true => Ok(*t),
        false => Err(format!("a temperature is a number from 0 to 2, not {t}")),
    })?;
    let count = |n: &u32| match n {
        0 => Err("this is a whole number of at least 1".to_owned()),
        n => Ok(*n),
    };
    let amount = |n: &f64| match n.is_finite() && *n >= 0.0 && *n <= 1e9 {
        true => Ok(*n),
        false => Err(format!("this is a number from 0 on, not {n}")),
    };
    let mode = checked.value(&file.mode, |mode| match mode {
        Mode::SumUp | Mode::AllIn => Ok(*mode),
        Mode::Single | Mode::AnyWin => {
            Err("the mode of a task is sum_up or all_in; one question is `llmpick chat`".to_owned())
        }
    })?;
    let max_tokens = checked.value(&file.max_tokens, count)?;
    let latency = checked.value(&file.max_latency_s, amount)?;
    Ok(TaskCall {
        model: file.model.filter(|model| model != "auto"),
        messages: system.iter().map(Message::system).collect(),
        parts,
        sampling: Sampling {
            temperature: temperature.unwrap_or(base.temperature),
            seed: file.seed.unwrap_or(0),
            ..base.clone()
        },
        max_tokens: Some(max_tokens.unwrap_or(settings.chat.max_tokens)),
        stop: Vec::new(),
        mode,
        max_arms: checked.value(&file.max_arms, count)?,
        max_cost: checked.value(&file.max_cost, amount)?,
        max_latency_ms: latency.map(|seconds| seconds * 1e3),
        min_score: checked.value(&file.accept, score)?,
        context: file.context,
        scorer: file.scorer,
    })
}

/// A file's text, to find lines in.
struct Checked<'a> {
    name: &'a str,
    text: &'a str,
}

impl Checked<'_> {
    fn wrong(&self, span: Range<usize>, why: impl std::fmt::Display) -> CliError {
        let line = line(self.text, span.start);
        CliError::new(ExitCode::Usage, format!("{}:{line}: {why}", self.name))
    }

    fn value<T, U>(
        &self,
        value: &Option<Spanned<T>>,
        check: impl Fn(&T) -> std::result::Result<U, String>,
    ) -> Result<Option<U>> {
        let check = |value: &Spanned<T>| {
            check(value.get_ref()).map_err(|why| self.wrong(value.span(), why))
        };
        value.as_ref().map(check).transpose()
    }

    fn parts(&self, file: &TaskFile) -> Result<Vec<Part>> {
        if file.parts.is_empty() {
            let message = format!("{}: the task has no parts", self.name);
            return Err(CliError::new(ExitCode::Usage, message)
                .hint("each part is a [[parts]] table with a name and a prompt"));
        }
        let mut names: HashMap<&str, usize> = HashMap::new();
        for part in &file.parts {
            let name = &part.get_ref().name;
            let at = line(self.text, name.span().start);
            if let Some(first) = names.insert(name.get_ref(), at) {
                let why = format!("line {first} has a part named `{}` already", name.get_ref());
                return Err(self.wrong(name.span(), why));
            }
        }
        file.parts.iter().map(|part| self.part(part)).collect()
    }

    fn part(&self, spanned: &Spanned<PartFile>) -> Result<Part> {
        let part = spanned.get_ref();
        let name = part.name.get_ref();
        let wrong = |why: String| self.wrong(part.name.span(), why);
        if name.is_empty() {
            return Err(wrong("a part needs a name".to_owned()));
        }
        let messages = match (&part.prompt, &part.messages) {
            (Some(prompt), None) => vec![Message::user(prompt)],
            (None, Some(messages)) => messages.clone(),
            (Some(_), Some(_)) => {
                return Err(wrong(format!(
                    "the part `{name}` has a prompt and messages; one is enough"
                )));
            }
            (None, None) => return Err(wrong(format!("the part `{name}` has no prompt"))),
        };
        if messages
            .iter()
            .all(|message| message.content.trim().is_empty())
        {
            return Err(wrong(format!("the prompt of the part `{name}` is empty")));
        }
        Ok(Part {
            name: name.clone(),
            messages,
            reference: part.reference.clone(),
            scorer: part.scorer.clone(),
        })
    }
}

/// The number of the line that this byte is in, from 1.
fn line(text: &str, byte: usize) -> usize {
    let before = text.as_bytes().iter().take(byte);
    before.filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use llmpick_daemon::{Paths, SettingsSources};

    fn plain() -> Settings {
        let sources = SettingsSources {
            directory: "/nonexistent".into(),
            system_file: "/nonexistent/none.toml".into(),
            ..SettingsSources::default()
        };
        Settings::load_with(sources, Paths::below("/nonexistent/h")).unwrap()
    }

    #[test]
    fn the_example_is_a_task_file() {
        let call = read("example.toml", EXAMPLE, &plain()).unwrap();
        assert_eq!((call.parts.len(), call.mode), (3, Some(Mode::SumUp)));
        assert_eq!(call.parts[0].reference.as_deref(), Some("/paris/i"));
        assert_eq!(call.sampling.temperature, 0.0);
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let part = "[[parts]]\nname = \"a\"\nprompt = \"hi\"\n";
        let cases = [
            (
                "mode = \"sum_up\"\n".to_owned(),
                "t.toml: the task has no parts",
            ),
            ("[[parts]\n".to_owned(), "t.toml:1: "),
            (
                format!("system = \"x\"\nmodle = \"y\"\n{part}"),
                "t.toml:2: unknown field `modle`",
            ),
            (
                format!("mode = \"any_win\"\n{part}"),
                "t.toml:1: the mode of a task is sum_up or all_in",
            ),
            (
                format!("\nmode = \"best\"\n{part}"),
                "t.toml:2: unknown variant `best`",
            ),
            (
                format!("accept = 2.0\n{part}"),
                "t.toml:1: a score is a number from 0 to 1",
            ),
            (
                format!("max_arms = 0\n{part}"),
                "t.toml:1: this is a whole number of at least 1",
            ),
            (
                format!("{part}{part}"),
                "t.toml:5: line 2 has a part named `a` already",
            ),
            (
                format!("{part}[[parts]]\nname = \"b\"\n"),
                "t.toml:5: the part `b` has no prompt",
            ),
            (
                format!("{part}[[parts]]\nprompt = \"b\"\n"),
                "t.toml:4: missing field `name`",
            ),
            (
                format!("{part}prompt2 = 1\n"),
                "t.toml:4: unknown field `prompt2`",
            ),
            (
                "[[parts]]\nname = \"a\"\nprompt = \" \"\n".to_owned(),
                "t.toml:2: the prompt of the part `a` is empty",
            ),
        ];
        for (text, why) in cases {
            let error = read("t.toml", &text, &plain()).unwrap_err();
            assert_eq!(error.code, ExitCode::Usage);
            assert!(
                error.message.starts_with(why),
                "{}\nfor\n{text}",
                error.message
            );
        }
    }
}
