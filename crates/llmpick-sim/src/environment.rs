//! The worlds of a simulation: arms whose mean score and cost are known to us alone.

use std::collections::BTreeSet;

use camino::Utf8Path;
use llmpick_core::ArmId;
use serde::Deserialize;

use crate::csv::{self, CsvError};

/// One arm of a simulated world.
#[derive(Clone, Debug, PartialEq)]
pub struct SimArm {
    /// Its name.
    pub id: ArmId,
    /// μ, the probability that an answer scores 1 rather than 0.
    pub mean: f64,
    /// c: a call costs c·U(0.5, 1.5) dollars, cut off at the cap.
    pub cost: f64,
}

/// A simulated world.
#[derive(Clone, Debug, PartialEq)]
pub struct Environment {
    /// Its name, for people.
    pub name: String,
    /// Its arms, at least one.
    pub arms: Vec<SimArm>,
    /// ρ, where none is asked for.
    pub budget: Option<f64>,
    /// The most that any call costs, in dollars; infinite for no limit.
    pub cost_cap: f64,
    /// What changes on the way, if anything does.
    pub shock: Option<Shock>,
}

/// Other mean scores from some round on.
#[derive(Clone, Debug, PartialEq)]
pub struct Shock {
    /// The last round with the old means.
    pub at: u64,
    /// The means after it, one for each arm.
    pub means: Vec<f64>,
}

/// Why a world cannot be simulated.
#[derive(Debug, thiserror::Error)]
#[error("read the environment `{name}`")]
pub struct EnvironmentError {
    /// The file, or what was given instead.
    pub name: String,
    /// What was wrong.
    #[source]
    pub kind: EnvironmentErrorKind,
}

/// What was wrong with a world.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentErrorKind {
    /// No file, and none of the built-in names.
    #[error(
        "it is neither S nor G nor drift nor a file (.toml, or .csv with columns arm,mean,cost): {0}"
    )]
    Read(#[source] std::io::Error),
    /// No TOML of the right form.
    #[error("it is no table of arms: {0}")]
    Toml(#[from] toml::de::Error),
    /// No CSV of the right form.
    #[error(transparent)]
    Csv(#[from] CsvError),
    /// A number or a name that cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl Environment {
    /// `S`, `G`, `drift`, or a file: TOML (`budget`, `cost_cap`, `[[arm]]` with `id`, `mean`,
    /// `cost`, and, where `shock_at` names a round, `mean_after`) or CSV (columns `arm`,
    /// `mean`, `cost`).
    ///
    /// # Errors
    /// When there is no such world, or it is none.
    pub fn open(name: &str) -> Result<Self, EnvironmentError> {
        match name {
            "S" => Ok(Self::synthetic()),
            "G" => Ok(Self::gpqa()),
            "drift" => Ok(Self::drift()),
            path => Self::read(Utf8Path::new(path)).map_err(|kind| EnvironmentError {
                name: name.to_owned(),
                kind,
            }),
        }
    }

    /// Set S of ALGORITHMS 1.8: nine made-up arms, one of them twice as dear as the budget.
    pub fn synthetic() -> Self {
        const ARMS: [(&str, f64, f64); 9] = [
            ("s1", 0.45, 0.03),
            ("s2", 0.60, 0.05),
            ("s3", 0.58, 0.09),
            ("s4", 0.64, 0.18),
            ("s5", 0.55, 0.10),
            ("s6", 0.40, 0.02),
            ("s7", 0.48, 0.04),
            ("s8", 0.59, 0.12),
            ("s9", 0.732, 1.0),
        ];
        Self::built_in("S", &ARMS, 0.5)
    }

    /// Set G of ALGORITHMS 1.8: nine models on GPQA, the dearest one's cost scaled to 1.
    pub fn gpqa() -> Self {
        const ARMS: [(&str, f64, f64); 9] = [
            ("Qwen3-235B", 0.586, 0.0042),
            ("DeepSeek-V3", 0.596, 0.0108),
            ("DS-V3.1", 0.763, 0.0151),
            ("Kimi-K2", 0.732, 0.038),
            ("Intern-S1", 0.657, 0.0488),
            ("Qwen3-Thinking", 0.803, 0.146),
            ("Claude-v4", 0.687, 0.160),
            ("GPT-5", 0.8485, 0.479),
            ("Gemini-Pro", 0.8485, 1.0),
        ];
        Self::built_in("G", &ARMS, 0.4)
    }

    /// Set S with a shock after round 1500 (ALGORITHMS 1.9 does not say which; this one has
    /// its optima, and comes nearest to its figures): s2, s4 and s8, which the optimum of
    /// sum-up uses, fall to .40, and s1 and s6, cheap and never used, rise to .68. The optimum
    /// goes from 2.42 to 2.55.
    pub fn drift() -> Self {
        let mut world = Self::synthetic();
        let after = |arm: &SimArm| match arm.id.as_str() {
            "s2" | "s4" | "s8" => 0.40,
            "s1" | "s6" => 0.68,
            _ => arm.mean,
        };
        world.shock = Some(Shock {
            at: 1500,
            means: world.arms.iter().map(after).collect(),
        });
        world.name = "drift".to_owned();
        world
    }

    /// The means of a round, from 1.
    pub(crate) fn means_at(&self, round: u64) -> Vec<f64> {
        match &self.shock {
            Some(shock) if round > shock.at => shock.means.clone(),
            _ => self.arms.iter().map(|arm| arm.mean).collect(),
        }
    }

    fn built_in(name: &str, arms: &[(&str, f64, f64)], budget: f64) -> Self {
        let arm = |&(id, mean, cost): &(&str, f64, f64)| SimArm {
            id: ArmId::new(id).expect("the names above are printable"),
            mean,
            cost,
        };
        Self {
            name: name.to_owned(),
            arms: arms.iter().map(arm).collect(),
            budget: Some(budget),
            cost_cap: 1.0,
            shock: None,
        }
    }

    fn read(path: &Utf8Path) -> Result<Self, EnvironmentErrorKind> {
        let text = std::fs::read_to_string(path).map_err(EnvironmentErrorKind::Read)?;
        let raw = match path.extension() {
            Some("csv") => raw_of_csv(&text)?,
            _ => toml::from_str(&text)?,
        };
        raw.checked(path.file_stem().unwrap_or("table"))
    }

    /// The true mean cost of an arm: E[min(cap, c·U(0.5, 1.5))].
    pub fn mean_cost(&self, arm: &SimArm) -> f64 {
        let (low, high, cap) = (0.5 * arm.cost, 1.5 * arm.cost, self.cost_cap);
        if high <= cap {
            return arm.cost;
        }
        if low >= cap {
            return cap;
        }
        ((cap * cap - low * low) / 2.0 + cap * (high - cap)) / (high - low)
    }

    /// What a call of the arm costs, `u` uniform on [0, 1).
    pub(crate) fn draw_cost(&self, arm: &SimArm, u: f64) -> f64 {
        (arm.cost * (0.5 + u)).min(self.cost_cap)
    }

    /// The most that a call of the arm costs.
    pub fn cost_bound(&self, arm: &SimArm) -> f64 {
        (1.5 * arm.cost).min(self.cost_cap)
    }
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEnvironment {
    name: Option<String>,
    budget: Option<f64>,
    cost_cap: Option<f64>,
    shock_at: Option<u64>,
    arm: Vec<RawArm>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawArm {
    id: String,
    mean: f64,
    cost: f64,
    mean_after: Option<f64>,
}

fn raw_of_csv(text: &str) -> Result<RawEnvironment, CsvError> {
    let sheet = csv::Sheet::parse(text)?;
    let [id, mean, cost] = [
        sheet.column("arm")?,
        sheet.column("mean")?,
        sheet.column("cost")?,
    ];
    let arm = |line: usize| {
        Ok(RawArm {
            id: sheet.text(line, id).to_owned(),
            mean: sheet.number(line, mean)?,
            cost: sheet.number(line, cost)?,
            mean_after: None,
        })
    };
    Ok(RawEnvironment {
        name: None,
        budget: None,
        cost_cap: None,
        shock_at: None,
        arm: (0..sheet.rows())
            .map(arm)
            .collect::<Result<_, CsvError>>()?,
    })
}

impl RawEnvironment {
    fn checked(self, stem: &str) -> Result<Environment, EnvironmentErrorKind> {
        let refuse = |text: String| Err(EnvironmentErrorKind::Invalid(text));
        if self.arm.is_empty() {
            return refuse("it has no arms".to_owned());
        }
        let amount = |x: f64| x.is_finite() && x >= 0.0;
        if let Some(budget) = self.budget.filter(|budget| !amount(*budget)) {
            return refuse(format!("`budget` must be an amount from 0, not {budget}"));
        }
        let cost_cap = self.cost_cap.unwrap_or(f64::INFINITY);
        if cost_cap.is_nan() || cost_cap <= 0.0 {
            return refuse(format!("`cost_cap` must be above 0, not {cost_cap}"));
        }
        let mut names = BTreeSet::new();
        let (mut arms, mut after) = (Vec::new(), Vec::new());
        for raw in self.arm {
            let RawArm {
                id,
                mean,
                cost,
                mean_after,
            } = raw;
            let id = match ArmId::new(&id) {
                Ok(id) => id,
                Err(error) => return refuse(error.to_string()),
            };
            for mean in [Some(mean), mean_after].into_iter().flatten() {
                if !(0.0..=1.0).contains(&mean) {
                    return refuse(format!(
                        "the mean of `{id}` must be from 0 to 1, not {mean}"
                    ));
                }
            }
            if mean_after.is_some() && self.shock_at.is_none() {
                return refuse(format!(
                    "`{id}` has a `mean_after`, but there is no `shock_at`"
                ));
            }
            if !amount(cost) {
                return refuse(format!("the cost of `{id}` must be from 0, not {cost}"));
            }
            if !names.insert(id.clone()) {
                return refuse(format!("`{id}` is there twice"));
            }
            after.push(mean_after.unwrap_or(mean));
            arms.push(SimArm { id, mean, cost });
        }
        Ok(Environment {
            name: self.name.unwrap_or_else(|| stem.to_owned()),
            arms,
            budget: self.budget,
            cost_cap,
            shock: self.shock_at.map(|at| Shock { at, means: after }),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn written(name: &str, text: &str) -> Result<Environment, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Environment::open(path.to_str().unwrap()).map_err(|error| error.kind.to_string())
    }

    #[test]
    fn a_file_is_a_world() {
        let toml = "budget = 0.2\n[[arm]]\nid = \"a\"\nmean = 0.5\ncost = 0.1\n";
        let world = written("mine.toml", toml).unwrap();
        assert_eq!((world.name.as_str(), world.budget), ("mine", Some(0.2)));
        assert_eq!(world.cost_bound(&world.arms[0]), 0.1 * 1.5);
        let csv = written("mine.csv", "cost,arm,mean\n0.1,a,0.5\n").unwrap();
        assert_eq!(csv.arms, world.arms);
    }

    #[test]
    fn a_shock_changes_some_means_after_its_round() {
        let toml = "shock_at = 7\n[[arm]]\nid = \"a\"\nmean = 0.5\ncost = 0.1\nmean_after = 0.2\n\
                    [[arm]]\nid = \"b\"\nmean = 0.6\ncost = 0.1\n";
        let world = written("mine.toml", toml).unwrap();
        assert_eq!(world.means_at(7), [0.5, 0.6]);
        assert_eq!(world.means_at(8), [0.2, 0.6]);
        let error = written("mine.toml", &toml.replace("shock_at = 7", "")).unwrap_err();
        assert!(error.contains("no `shock_at`"), "{error}");
    }

    #[test]
    fn a_world_that_cannot_be_is_refused_with_a_sentence() {
        for (name, text, expected) in [
            ("a.csv", "arm,mean\na,1\n", "there is no column `cost`"),
            (
                "a.csv",
                "arm,mean,cost\na,x,1\n",
                "line 2: `x` is not a number",
            ),
            (
                "a.csv",
                "arm,mean,cost\na,1.5,1\n",
                "must be from 0 to 1, not 1.5",
            ),
            ("a.csv", "arm,mean,cost\na,1,-1\n", "must be from 0, not -1"),
            (
                "a.csv",
                "arm,mean,cost\na,1,1\na,1,1\n",
                "`a` is there twice",
            ),
            ("a.csv", "arm,mean,cost\n", "it has no arms"),
            ("a.toml", "arms = 3", "unknown field `arms`"),
            (
                "a.toml",
                "cost_cap = 0.0\n[[arm]]\nid='a'\nmean=1\ncost=1",
                "above 0",
            ),
        ] {
            let error = written(name, text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let missing = Environment::open("nowhere.toml").unwrap_err();
        assert!(
            missing
                .kind
                .to_string()
                .contains("neither S nor G nor drift")
        );
    }

    #[test]
    fn the_mean_cost_is_that_of_the_draws() {
        let mut world = Environment::synthetic();
        for cap in [1.0, 0.3, 2.0, f64::INFINITY] {
            world.cost_cap = cap;
            for arm in &world.arms {
                let n = 10_000;
                let at = |i: i32| world.draw_cost(arm, (f64::from(i) + 0.5) / f64::from(n));
                let mean = (0..n).map(at).sum::<f64>() / f64::from(n);
                assert!((mean - world.mean_cost(arm)).abs() < 1e-6, "{cap} {arm:?}");
            }
        }
    }
}
