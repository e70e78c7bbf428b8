//! Puts one question to one arm, and grades what comes back.

use std::time::{Duration, Instant};

use futures::StreamExt;
use llmpick_core::{
    Backend, BackendError, ChoiceLikelihood, ChoicesRequest, Event, GenerateRequest, Message,
    Prompt, Sampling, Score, Usage,
};
use llmpick_daemon::App;
use llmpick_daemon::dispatch::Measured;

use super::grade::{ChoiceGrade, Likelihood, grade_choices};
use super::questions::{Kind, Question};
use super::{By, Metric};

/// How questions are put.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// How choices are compared.
    pub by: By,
    /// Which grade of a likelihood counts.
    pub metric: Metric,
    /// Most tokens of a generated answer.
    pub max_tokens: u32,
}

/// What one arm did with one question.
pub struct Reply {
    /// The work, as dispatch wants it.
    pub measured: Measured,
    /// Both grades, for choices by likelihood.
    pub choice: Option<ChoiceGrade>,
}

/// Asks; blocks the calling task until the arm is done.
pub async fn ask(
    app: &App,
    backend: &dyn Backend,
    question: &Question,
    method: Method,
) -> Result<Reply, BackendError> {
    match (&question.kind, method.by) {
        (Kind::Choice { choices, gold }, By::Likelihood) => {
            by_likelihood(backend, question, choices, *gold, method.metric).await
        }
        (Kind::Choice { choices, gold }, By::Letter) => {
            let reference = letter(*gold);
            let prompt = letter_prompt(&question.query, choices);
            generate(
                app,
                backend,
                prompt,
                method.max_tokens.min(16),
                &reference,
                Some("choice"),
            )
            .await
        }
        (Kind::Answer(reference), _) => {
            generate(
                app,
                backend,
                answer_prompt(question),
                method.max_tokens,
                reference,
                None,
            )
            .await
        }
    }
}

/// The prompt that a question becomes, also for the ledger's hash.
pub fn prompt(question: &Question, method: Method) -> Prompt {
    match (&question.kind, method.by) {
        (Kind::Choice { .. }, By::Likelihood) => likelihood_prompt(&question.query),
        (Kind::Choice { choices, .. }, By::Letter) => letter_prompt(&question.query, choices),
        (Kind::Answer(_), _) => answer_prompt(question),
    }
}

/// lm-evaluation-harness's form: the question, `Answer:`, and each choice after one space.
fn likelihood_prompt(query: &str) -> Prompt {
    Prompt::Text(format!("{query}\nAnswer:"))
}

fn letter(index: usize) -> String {
    char::from(b'A'.saturating_add(index.min(25) as u8)).to_string()
}

fn letter_prompt(query: &str, choices: &[String]) -> Prompt {
    let options: String = choices
        .iter()
        .enumerate()
        .map(|(index, choice)| format!("{}. {choice}\n", letter(index)))
        .collect();
    let text = format!("{query}\n{options}Answer with the letter of the right option only.");
    Prompt::Chat(vec![Message::user(text)])
}

fn answer_prompt(question: &Question) -> Prompt {
    let text = format!(
        "{}\nThink step by step, then give the final answer last.",
        question.query
    );
    Prompt::Chat(vec![Message::user(text)])
}

async fn by_likelihood(
    backend: &dyn Backend,
    question: &Question,
    choices: &[String],
    gold: usize,
    metric: Metric,
) -> Result<Reply, BackendError> {
    let request = ChoicesRequest {
        prompt: likelihood_prompt(&question.query),
        choices: choices.iter().map(|choice| format!(" {choice}")).collect(),
    };
    let start = Instant::now();
    let rows = backend.choices(request).await?;
    let latency = start.elapsed();
    let likelihoods: Vec<Likelihood> = rows
        .iter()
        .zip(choices)
        .map(|(row, choice)| Likelihood {
            logprob: row.logprob,
            bytes: choice.len(),
        })
        .collect();
    let grade = grade_choices(&likelihoods, gold);
    let right = match metric {
        Metric::Acc => grade.acc,
        Metric::AccNorm => grade.acc_norm,
    };
    let measured = Measured {
        text: preferred(&likelihoods, choices),
        usage: choices_usage(&rows),
        busy: rows.first().map_or(Duration::ZERO, |row| row.busy),
        latency,
        score: Some(Score::from_correct(right)),
        ..Measured::default()
    };
    Ok(Reply {
        measured,
        choice: Some(grade),
    })
}

/// The choice with the highest plain likelihood, as the answer's text.
fn preferred(likelihoods: &[Likelihood], choices: &[String]) -> String {
    let best = likelihoods
        .iter()
        .zip(choices)
        .max_by(|a, b| a.0.logprob.total_cmp(&b.0.logprob));
    best.map(|(_, choice)| choice.clone()).unwrap_or_default()
}

/// All of a likelihood question is read, none of it generated.
fn choices_usage(rows: &[ChoiceLikelihood]) -> Usage {
    let prompt = rows.first().map_or(0, |row| row.prompt_tokens);
    let read: u32 = rows.iter().map(|row| row.tokens).sum();
    Usage {
        prompt_tokens: prompt + read,
        ..Usage::default()
    }
}

async fn generate(
    app: &App,
    backend: &dyn Backend,
    prompt: Prompt,
    max_tokens: u32,
    reference: &str,
    scorer: Option<&str>,
) -> Result<Reply, BackendError> {
    let text = prompt.text();
    let request = GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        ..GenerateRequest::new(prompt)
    };
    let start = Instant::now();
    let mut events = backend.generate(request).await?;
    let mut measured = Measured::default();
    while let Some(event) = events.next().await {
        match event? {
            Event::Token(piece) => {
                measured.ttft.get_or_insert_with(|| start.elapsed());
                measured.text.push_str(&piece.text);
                measured.logprobs.extend(piece.logprobs);
            }
            Event::Finish(finish) => {
                measured.usage = finish.usage;
                measured.busy = finish.busy;
                measured.prefill = finish.prefill;
                measured.load = finish.load;
            }
        }
    }
    measured.latency = start.elapsed().saturating_sub(measured.load);
    measured.score = app.score(&text, &measured.text, reference, scorer);
    Ok(Reply {
        measured,
        choice: None,
    })
}
