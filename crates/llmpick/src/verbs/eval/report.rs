//! What an evaluation found: accuracy, cost and latency of each arm and of the router.

use std::collections::BTreeMap;

use serde::Serialize;

use super::grade::{Accuracy, accuracy};
use super::journal::{Journal, Measurement, Routed};
use super::questions::Question;
use crate::printer::{dollars, milliseconds, table};

/// The whole finding.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Questions asked for.
    pub questions: usize,
    /// Each arm, in the pool's order.
    pub arms: Vec<ArmReport>,
    /// The router, where it ran.
    pub router: Option<RouterReport>,
}

/// One arm over the questions it answered.
#[derive(Debug, Serialize)]
pub struct ArmReport {
    /// Its name.
    pub arm: String,
    /// Mean of the score that the router learns from.
    pub score: Accuracy,
    /// lm-evaluation-harness's `acc`, for choices by likelihood.
    pub acc: Option<Accuracy>,
    /// Its `acc_norm`.
    pub acc_norm: Option<Accuracy>,
    /// Mean dollars a question.
    pub cost_usd: f64,
    /// Mean milliseconds a question.
    pub latency_ms: f64,
    /// Calls that failed.
    pub errors: usize,
}

/// The router over the questions it routed.
#[derive(Debug, Serialize)]
pub struct RouterReport {
    /// Mean score.
    pub score: Accuracy,
    /// Mean dollars a question.
    pub cost_usd: f64,
    /// Mean milliseconds a question.
    pub latency_ms: f64,
    /// Share of each arm in the first and in the last quarter of the questions, and in all.
    pub share: BTreeMap<String, Share>,
    /// Every decision, in the order of the questions.
    pub decisions: Vec<Decided>,
}

/// How often an arm was chosen.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Share {
    /// In the first quarter.
    pub first: f64,
    /// In the last quarter.
    pub last: f64,
    /// In all.
    pub all: f64,
}

/// One decision.
#[derive(Debug, Serialize)]
pub struct Decided {
    /// The question's line.
    pub line: usize,
    /// Whose answer counted.
    pub arm: String,
    /// Its grade.
    pub score: Option<f64>,
    /// The entry in the ledger.
    pub route_id: String,
}

impl Report {
    /// Reads the journal for these questions and arms.
    pub fn new(journal: &Journal, questions: &[Question], arms: &[String]) -> Self {
        let of_arm = |arm: &String| -> Vec<&Measurement> {
            let key = |question: &Question| (question.line, arm.clone());
            questions
                .iter()
                .filter_map(|question| journal.measured.get(&key(question)))
                .collect()
        };
        let reports = arms.iter().map(|arm| arm_report(arm, &of_arm(arm)));
        let routed: Vec<&Routed> = questions
            .iter()
            .filter_map(|question| journal.routed.get(&question.line))
            .collect();
        Self {
            questions: questions.len(),
            arms: reports
                .filter(|report| report.score.n + report.errors > 0)
                .collect(),
            router: (!routed.is_empty()).then(|| router_report(&routed, arms)),
        }
    }

    /// The tables.
    pub fn text(&self) -> String {
        let choices = self.arms.iter().any(|arm| arm.acc.is_some());
        let mut header = vec!["arm", "n>"];
        header.extend(if choices {
            vec!["acc", "acc_norm"]
        } else {
            vec!["score"]
        });
        header.extend(["cost>", "latency>"]);
        let arm_row = |arm: &ArmReport| {
            let mut row = vec![arm.arm.clone(), arm.score.n.to_string()];
            match (arm.acc, arm.acc_norm) {
                (Some(acc), Some(norm)) if choices => row.extend([interval(acc), interval(norm)]),
                _ if choices => row.extend([String::new(), interval(arm.score)]),
                _ => row.push(interval(arm.score)),
            }
            row.extend([dollars(arm.cost_usd), milliseconds(arm.latency_ms)]);
            row
        };
        let mut text = table(&header, self.arms.iter().map(arm_row));
        if let Some(router) = &self.router {
            text.push_str(&format!(
                "\n\nrouter: score {} over {} questions, {} and {} a question\n\n",
                interval(router.score),
                router.decisions.len(),
                dollars(router.cost_usd),
                milliseconds(router.latency_ms),
            ));
            let percent = |share: f64| format!("{:.0} %", share * 100.0);
            let rows = router.share.iter().map(|(arm, share)| {
                vec![
                    arm.clone(),
                    percent(share.first),
                    percent(share.last),
                    percent(share.all),
                ]
            });
            text.push_str(&table(
                &["arm", "share, first quarter>", "last quarter>", "all>"],
                rows,
            ));
        }
        text
    }
}

fn interval(accuracy: Accuracy) -> String {
    if accuracy.n == 0 {
        return "–".to_owned();
    }
    format!(
        "{:.3} [{:.3}, {:.3}]",
        accuracy.mean, accuracy.low, accuracy.high
    )
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len();
    if n == 0 {
        f64::NAN
    } else {
        values.sum::<f64>() / n as f64
    }
}

fn arm_report(arm: &str, measured: &[&Measurement]) -> ArmReport {
    let ok: Vec<&&Measurement> = measured.iter().filter(|row| row.error.is_none()).collect();
    let graded = |pick: fn(&super::grade::ChoiceGrade) -> bool| {
        let grades: Vec<f64> = measured
            .iter()
            .filter_map(|row| row.choice.as_ref())
            .map(|grade| f64::from(u8::from(pick(grade))))
            .collect();
        (!grades.is_empty()).then(|| accuracy(grades))
    };
    ArmReport {
        arm: arm.to_owned(),
        score: accuracy(measured.iter().filter_map(|row| row.score)),
        acc: graded(|grade| grade.acc),
        acc_norm: graded(|grade| grade.acc_norm),
        cost_usd: mean(ok.iter().map(|row| row.cost_usd)),
        latency_ms: mean(ok.iter().map(|row| row.latency_s * 1000.0)),
        errors: measured.len() - ok.len(),
    }
}

fn router_report(routed: &[&Routed], arms: &[String]) -> RouterReport {
    let quarter = routed.len().div_ceil(4);
    let share_in = |arm: &str, rows: &[&Routed]| {
        rows.iter().filter(|row| row.arm == arm).count() as f64 / rows.len().max(1) as f64
    };
    let share = |arm: &String| Share {
        first: share_in(arm, &routed[..quarter]),
        last: share_in(arm, &routed[routed.len() - quarter..]),
        all: share_in(arm, routed),
    };
    let decided = |row: &&Routed| Decided {
        line: row.routed,
        arm: row.arm.clone(),
        score: row.score,
        route_id: row.route_id.clone(),
    };
    RouterReport {
        score: accuracy(routed.iter().filter_map(|row| row.score)),
        cost_usd: mean(routed.iter().map(|row| row.cost_usd)),
        latency_ms: mean(routed.iter().map(|row| row.latency_s * 1000.0)),
        share: arms.iter().map(|arm| (arm.clone(), share(arm))).collect(),
        decisions: routed.iter().map(decided).collect(),
    }
}
