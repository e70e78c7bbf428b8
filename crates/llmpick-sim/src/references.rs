//! What a replay is compared with: routers that know the whole table beforehand.

use std::collections::BTreeMap;

use llmpick_bandit::suc;
use llmpick_core::ArmId;
use serde::Serialize;

use crate::Table;

/// A mean score and a mean cost per query, in dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figure {
    /// Mean score.
    pub reward: f64,
    /// Mean cost.
    pub cost: f64,
}

/// One arm's figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmFigure {
    /// The arm.
    pub arm: ArmId,
    /// Its figure.
    #[serde(flatten)]
    pub figure: Figure,
}

/// How often an arm is used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The arm.
    pub arm: ArmId,
    /// Of all queries, in 0..=1.
    pub share: f64,
}

/// A mix of arms by fixed shares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mix {
    /// Arms with a share above 0.
    pub arms: Vec<Share>,
    /// What it earns and costs.
    #[serde(flatten)]
    pub figure: Figure,
    /// False where even the cheapest arm passes the budget.
    pub feasible: bool,
}

/// The references of one table and one budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct References {
    /// Any arm, equally likely.
    pub random: Figure,
    /// The arm of the best mean score, of equals the cheapest; knows no budget.
    pub best_single: ArmFigure,
    /// The best fixed shares that keep the budget, by the linear programme.
    pub static_mix: Mix,
    /// The best arm of each context; knows no budget. `None` without contexts.
    pub best_per_context: Option<Figure>,
    /// The cheapest of the best answers to each query; knows no budget.
    pub oracle: Figure,
}

/// Computes them. `budget` in dollars per query, infinite or NaN for none.
pub fn references(table: &Table, budget: f64) -> References {
    let everything = mean_of(table, 0..table.rows());
    let best = best(&everything);
    References {
        random: average(&everything),
        best_single: ArmFigure {
            arm: table.arms()[best].clone(),
            figure: everything[best],
        },
        static_mix: static_mix(table, &everything, budget),
        best_per_context: table.has_contexts().then(|| best_per_context(table)),
        oracle: oracle(table),
    }
}

/// Each arm's means over some rows; a table has at least one row and one arm.
fn mean_of(table: &Table, rows: impl ExactSizeIterator<Item = usize>) -> Vec<Figure> {
    let n = rows.len() as f64;
    let mut sums = vec![Figure::default(); table.arms().len()];
    for row in rows {
        let (_, scores, costs) = table.row(row);
        for ((sum, score), cost) in sums.iter_mut().zip(scores).zip(costs) {
            sum.reward += score;
            sum.cost += cost;
        }
    }
    let mean = |sum: Figure| Figure {
        reward: sum.reward / n,
        cost: sum.cost / n,
    };
    sums.into_iter().map(mean).collect()
}

fn average(figures: &[Figure]) -> Figure {
    let n = figures.len() as f64;
    Figure {
        reward: figures.iter().map(|figure| figure.reward).sum::<f64>() / n,
        cost: figures.iter().map(|figure| figure.cost).sum::<f64>() / n,
    }
}

/// The index of the highest reward, of equals the lowest cost; 0 of none.
fn best(figures: &[Figure]) -> usize {
    let better = |a: &Figure, b: &Figure| {
        let reward = b.reward.total_cmp(&a.reward);
        reward.then(a.cost.total_cmp(&b.cost))
    };
    let places = figures.iter().enumerate();
    places.min_by(|a, b| better(a.1, b.1)).map_or(0, |(k, _)| k)
}

fn static_mix(table: &Table, figures: &[Figure], budget: f64) -> Mix {
    let rewards: Vec<f64> = figures.iter().map(|figure| figure.reward).collect();
    let costs: Vec<f64> = figures.iter().map(|figure| figure.cost).collect();
    let budget = if budget.is_nan() {
        f64::INFINITY
    } else {
        budget
    };
    // Scores and costs of a table are finite and not negative, so the programme exists.
    let (z, feasible) = match suc::solve(&rewards, &costs, 1, budget) {
        Ok(solution) => (solution.z, solution.feasible),
        Err(_) => (vec![0.0; figures.len()], false),
    };
    let dot = |values: &[f64]| z.iter().zip(values).map(|(z, x)| z * x).sum();
    let arms = table.arms().iter().zip(&z);
    Mix {
        arms: arms
            .filter(|(_, share)| **share > 0.0)
            .map(|(arm, share)| Share {
                arm: arm.clone(),
                share: *share,
            })
            .collect(),
        figure: Figure {
            reward: dot(&rewards),
            cost: dot(&costs),
        },
        feasible,
    }
}

fn best_per_context(table: &Table) -> Figure {
    let mut contexts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for row in 0..table.rows() {
        contexts.entry(table.row(row).0).or_default().push(row);
    }
    let mut sum = Figure::default();
    for rows in contexts.values() {
        let figures = mean_of(table, rows.iter().copied());
        let figure = figures[best(&figures)];
        sum.reward += figure.reward * rows.len() as f64;
        sum.cost += figure.cost * rows.len() as f64;
    }
    let n = table.rows() as f64;
    Figure {
        reward: sum.reward / n,
        cost: sum.cost / n,
    }
}

fn oracle(table: &Table) -> Figure {
    let answer = |row: usize| {
        let (_, scores, costs) = table.row(row);
        let figure = |(&reward, &cost)| Figure { reward, cost };
        let figures: Vec<Figure> = scores.iter().zip(costs).map(figure).collect();
        figures[best(&figures)]
    };
    let answers: Vec<Figure> = (0..table.rows()).map(answer).collect();
    average(&answers)
}
