//! Question files: JSON lines with `query` and either `choices` and `gold`, or `answer`.
//!
//! `context` and `question` stand for `query` where a file says so (gsm8k does).

use std::path::Path;

use serde::Deserialize;

use crate::error::{CliError, ExitCode, Result};

/// One question, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its line in the file, from 1: its name in the journal.
    pub line: usize,
    /// What is asked.
    pub query: String,
    /// What is right.
    pub kind: Kind,
}

/// How the right answer is known.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// One of several texts.
    Choice {
        /// The texts, at least two.
        choices: Vec<String>,
        /// The index of the right one.
        gold: usize,
    },
    /// A free text, compared by a scorer.
    Answer(String),
}

#[derive(Deserialize)]
struct RawQuestion {
    #[serde(alias = "context", alias = "question")]
    query: String,
    choices: Option<Vec<String>>,
    gold: Option<usize>,
    answer: Option<serde_json::Value>,
}

/// Reads the first `limit` questions of a file; a bad line is named by its number.
pub fn read(path: &Path, limit: Option<usize>) -> Result<Vec<Question>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        CliError::new(ExitCode::Usage, format!("read the questions in {}: {error}", path.display()))
            .hint("a question file has one JSON object a line: {\"query\": …, \"choices\": […], \"gold\": 0}")
    })?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let questions = lines
        .take(limit.unwrap_or(usize::MAX))
        .map(|(index, line)| parse(index + 1, line).map_err(|why| bad_line(path, index + 1, &why)))
        .collect::<Result<Vec<_>>>()?;
    if questions.is_empty() {
        return Err(CliError::new(
            ExitCode::Usage,
            format!("{} holds no question", path.display()),
        ));
    }
    Ok(questions)
}

fn bad_line(path: &Path, line: usize, why: &str) -> CliError {
    CliError::new(
        ExitCode::Usage,
        format!("{} line {line}: {why}", path.display()),
    )
    .hint(
        "a line is {\"query\": …, \"choices\": […], \"gold\": 0} or {\"query\": …, \"answer\": …}",
    )
}

fn parse(line: usize, text: &str) -> Result<Question, String> {
    let raw: RawQuestion = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let kind = match (raw.choices, raw.gold, raw.answer) {
        (Some(choices), Some(gold), _) => {
            if choices.len() < 2 {
                return Err("fewer than two choices".to_owned());
            }
            if gold >= choices.len() {
                return Err(format!(
                    "gold is {gold}, and there are {} choices",
                    choices.len()
                ));
            }
            Kind::Choice { choices, gold }
        }
        (Some(_), None, _) => return Err("choices without gold".to_owned()),
        (None, _, Some(serde_json::Value::String(answer))) => Kind::Answer(answer),
        (None, _, Some(number @ serde_json::Value::Number(_))) => Kind::Answer(number.to_string()),
        (None, _, Some(_)) => return Err("answer is neither text nor a number".to_owned()),
        (None, _, None) => return Err("neither choices and gold nor answer".to_owned()),
    };
    Ok(Question {
        line,
        query: raw.query,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_read() {
        let choice = parse(1, r#"{"choices": ["a", "b"], "query": "Q?", "gold": 1}"#);
        let kind = Kind::Choice {
            choices: vec!["a".into(), "b".into()],
            gold: 1,
        };
        assert_eq!(
            choice,
            Ok(Question {
                line: 1,
                query: "Q?".into(),
                kind
            })
        );
        let answer = parse(
            2,
            r#"{"context": "Sum?", "chain_of_thought": "…", "answer": 18}"#,
        );
        let kind = Kind::Answer("18".into());
        assert_eq!(
            answer,
            Ok(Question {
                line: 2,
                query: "Sum?".into(),
                kind
            })
        );
    }

    #[test]
    fn a_bad_line_says_what_is_wrong() {
        let check = |text: &str, why: &str| {
            let error = parse(1, text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        };
        check("{}", "query");
        check(r#"{"query": "Q"}"#, "neither choices");
        check(r#"{"query": "Q", "choices": ["a", "b"]}"#, "without gold");
        check(
            r#"{"query": "Q", "choices": ["a"], "gold": 0}"#,
            "fewer than two",
        );
        check(
            r#"{"query": "Q", "choices": ["a", "b"], "gold": 2}"#,
            "gold is 2",
        );
        check(r#"{"query": "Q", "answer": []}"#, "neither text nor");
        check("not json", "expected");
    }
}
