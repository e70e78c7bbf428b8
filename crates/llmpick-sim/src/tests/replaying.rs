//! Replay: a small table by hand, and the anchors of the MMLU-Pro table.

use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use llmpick_bandit::baselines::{Baseline, BaselineLearner, Fixed};
use llmpick_bandit::budget::BudgetMode;
use llmpick_bandit::c2mabv::{C2mabv, C2mabvConfig};
use llmpick_bandit::stats::TableConfig;
use llmpick_core::{
    Candidate, Decision, DecisionSource, Feedback, Router, RouterError, SelectRequest, Snapshot,
};

use super::native::native;
use crate::{
    Costs, Figure, ReplayReport, ReplaySettings, Table, TableFiles, Watch, references, replay,
};

const SCORES: &str = "id,cheap,dear,lazy\n1,1,1,1\n2,0,1,\n3,1,0,\n4,0,1,\n5,,1,\n";
const COSTS: &str = "id,dear,cheap,lazy\n5,4,1,1\n4,4,1,1\n3,4,1,1\n2,4,1,1\n1,4,1,1\n";
const CONTEXTS: &str = "id,topic\n1,x\n2,y\n3,x\n4,y\n5,x\n";

struct Written(tempfile::TempDir);

impl Written {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn files(&self) -> TableFiles {
        let path = |name| Utf8Path::from_path(self.0.path()).unwrap().join(name);
        TableFiles {
            scores: path("scores.csv"),
            costs: Costs::File(path("costs.csv")),
            latencies: None,
            contexts: Some(path("contexts.csv")),
            min_answered: 0.5,
        }
    }
}

fn small() -> Table {
    let files = [
        ("scores.csv", SCORES),
        ("costs.csv", COSTS),
        ("contexts.csv", CONTEXTS),
    ];
    Table::read(&Written::new(&files).files()).unwrap()
}

fn settings(budget: f64, shuffles: u32) -> ReplaySettings {
    ReplaySettings {
        budget,
        shuffles,
        first_seed: 1,
        by_context: false,
        known_prices: true,
    }
}

fn play(table: &Table, settings: &ReplaySettings, baseline: Baseline) -> ReplayReport {
    let pooled = TableConfig {
        shrinkage: None,
        ..TableConfig::default()
    };
    let learner = BaselineLearner::new(baseline, pooled).unwrap();
    let watch = Watch::default();
    replay(table, settings, "it", &native(learner), &watch).unwrap()
}

#[test]
fn tables_join_by_query_and_lose_what_is_incomplete() {
    let table = small();
    let names: Vec<&str> = table.arms().iter().map(|arm| arm.as_str()).collect();
    assert_eq!(names, ["cheap", "dear"]);
    assert_eq!(table.left_out_arms, [("lazy".to_owned(), 1)]);
    assert_eq!((table.rows(), table.left_out_rows), (4, 1));
    assert_eq!(table.row(1), ("y", &[0.0, 1.0][..], &[1.0, 4.0][..]));
    assert_eq!(table.row(9), ("", &[][..], &[][..]));
}

#[test]
fn references_of_a_small_table_by_hand() {
    let found = references(&small(), 2.5);
    let figure = |reward, cost| Figure { reward, cost };
    assert_eq!(found.random, figure(0.625, 2.5));
    assert_eq!(found.best_single.arm.as_str(), "dear");
    assert_eq!(found.best_single.figure, figure(0.75, 4.0));
    // Half and half spends 2.5: 0.5·0.5 + 0.5·0.75.
    assert_eq!(found.static_mix.figure, figure(0.625, 2.5));
    assert!(found.static_mix.feasible && found.static_mix.arms.len() == 2);
    // x: cheap is right twice for 1; y: dear is right twice for 4.
    assert_eq!(found.best_per_context, Some(figure(1.0, 2.5)));
    assert_eq!(found.oracle, figure(1.0, 2.5));
    let poor = references(&small(), 0.5).static_mix;
    assert!(!poor.feasible && poor.figure == figure(0.5, 1.0));
    assert_eq!(
        references(&small(), f64::NAN).static_mix.figure,
        figure(0.75, 4.0)
    );
}

#[test]
fn a_fixed_arm_replays_to_its_own_figure() {
    let arms = Baseline::Fixed(Fixed::Arms(vec!["dear".to_owned()]));
    let report = play(&small(), &settings(5.0, 3), arms);
    assert_eq!((report.reward.mean, report.cost.mean), (0.75, 4.0));
    assert_eq!(report.budget_use.unwrap().mean, 0.8);
    assert_eq!(
        (report.shares[0].arm.as_str(), report.shares[0].share),
        ("dear", 1.0)
    );
    let json = serde_json::to_value(&report).unwrap();
    for key in ["reward", "cost", "budget_use", "oracle", "best_single"] {
        assert!(!json[key].is_null(), "{key}");
    }
    assert_eq!(json["best_single"]["arm"], "dear");
}

#[test]
fn a_table_that_cannot_be_replayed_is_refused_with_a_sentence() {
    let check = |name: &str, text: &str, expected: &str| {
        let files = [
            ("scores.csv", SCORES),
            ("costs.csv", COSTS),
            ("contexts.csv", CONTEXTS),
        ];
        let files = files.map(|file| if file.0 == name { (name, text) } else { file });
        let error = Table::read(&Written::new(&files).files()).unwrap_err();
        let told = error.kind.to_string();
        assert!(
            told.contains(expected) && error.path.ends_with(name),
            "{error}: {told}"
        );
    };
    check(
        "scores.csv",
        "id,a\n1,2\n",
        "line 2: a score is from 0 to 1, not 2",
    );
    check(
        "scores.csv",
        "id,cheap\n1,1\n1,1\n",
        "line 3: `1` is there twice",
    );
    check("scores.csv", "id\n1\n", "no model answered enough");
    check("scores.csv", "id,a b\n1,1\n", "is not a model name");
    check("scores.csv", "id,cheap\n9,1\n", "no query was answered");
    check("costs.csv", "id,cheap\n1,1\n", "there is no column `dear`");
    check(
        "costs.csv",
        "id,cheap,dear\n1,-1,1\n",
        "line 2: -1 is less than nothing",
    );
}

/// What a router was told of the arms, and of the prompt's length.
pub type Told = (Vec<Candidate>, u32);

/// Always the first arm; keeps what it was told.
pub struct Probe(pub Arc<Mutex<Vec<Told>>>, pub Arc<Mutex<Vec<Feedback>>>);

impl Router for Probe {
    fn name(&self) -> &str {
        "probe"
    }

    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        let told = (request.candidates.to_vec(), request.prompt_tokens);
        self.0.lock().unwrap().push(told);
        Ok(Decision {
            choices: vec![0],
            mode: request.allowed_modes[0],
            propensity: 1.0,
            marginals: vec![],
            reason: String::new(),
            source: DecisionSource::Router,
        })
    }

    fn feedback(&mut self, feedback: &Feedback) -> Result<(), RouterError> {
        self.1.lock().unwrap().push(feedback.clone());
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        Err(RouterError::State("not here".to_owned()))
    }

    fn restore(&mut self, _: &Snapshot) -> Result<(), RouterError> {
        Err(RouterError::State("not here".to_owned()))
    }
}

#[test]
fn prices_are_told_as_dispatch_tells_them_or_not_at_all() {
    let written = Written::new(&[
        ("correct.csv", "id,a,b\n1,1,1\n2,1,1\n"),
        ("output_chars.csv", "id,a,b\n1,400,80\n2,400,120\n"),
        (
            "questions_meta.csv",
            "id,category,prompt_chars\n1,x,200\n2,x,200\n",
        ),
        (
            "models.csv",
            "model,usd_per_m_in,usd_per_m_out\na,1,2\nb,3,4\n",
        ),
        ("latencies.csv", "id,a,b\n1,30,9\n2,30,9\n"),
    ]);
    let folder = Utf8Path::from_path(written.0.path()).unwrap();
    let table = Table::read(&TableFiles::around(folder)).unwrap();
    let (asked, learnt): (Arc<Mutex<Vec<Told>>>, Arc<_>) = Default::default();
    let start = || Ok(Box::new(Probe(Arc::clone(&asked), Arc::clone(&learnt))) as Box<dyn Router>);
    let mut settings = settings(1.0, 1);
    let report = replay(&table, &settings, "", &start, &Watch::default()).unwrap();
    assert_eq!(report.latency_ms.unwrap().mean, 30.0);
    // 50 tokens in, 100 out of a: (50·1 + 100·2)/10⁶.
    assert_eq!((report.cost.mean, report.known_prices), (250e-6, true));
    let told = asked.lock().unwrap().split_off(0);
    let of = |round: usize, arm: usize| {
        let candidate: &Candidate = &told[round].0[arm];
        (candidate.price_in, candidate.price_out, candidate.cost_max)
    };
    assert_eq!(of(0, 0), (1.0, 2.0, 250e-6));
    // b's longest answer is 30 tokens, whatever the query.
    assert_eq!(of(0, 1), (3.0, 4.0, 270e-6));
    assert!(
        told[0]
            .0
            .iter()
            .all(|candidate| candidate.est_cost.is_nan())
    );
    // After one answer of 100 tokens: a writes as much again; b, which never ran, would too,
    // but no answer of b's can be that long.
    let expected: Vec<f64> = told[1]
        .0
        .iter()
        .map(|candidate| candidate.est_cost)
        .collect();
    assert_eq!((expected, told[1].1), (vec![250e-6, 270e-6], 50));
    let seen = learnt.lock().unwrap()[0].clone();
    assert_eq!((seen.prompt_tokens, seen.completion_tokens), (50, 100));
    assert_eq!(seen.latency_ms, 30.0);

    settings.known_prices = false;
    let report = replay(&table, &settings, "", &start, &Watch::default()).unwrap();
    assert!(!report.known_prices);
    for (candidates, _) in asked.lock().unwrap().iter() {
        let unknown = |c: &Candidate| c.est_cost.is_nan() && c.price_in.is_nan();
        assert!(candidates.iter().all(unknown));
        // a: 400 characters each time; b: the longer one.
        let bounds: Vec<f64> = candidates.iter().map(|c| c.cost_max).collect();
        assert_eq!(bounds, [250e-6, 270e-6]);
    }
}

/// The MMLU-Pro table, or `None` with a line where the data is not here.
fn mmlu_pro() -> Option<Table> {
    let data = match std::env::var("LLMPICK_TEST_DATA") {
        Ok(path) => Utf8PathBuf::from(path),
        Err(_) => Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
    };
    let scores = data.join("mmlu-pro-replay/correct.csv");
    if !scores.is_file() {
        println!("skipped: no mmlu-pro-replay in {data}");
        return None;
    }
    // The file alone and its folder mean the same.
    let files = TableFiles::around(&scores);
    assert_eq!(TableFiles::around(scores.parent().unwrap()), files);
    assert_eq!(files.costs, Costs::MmluPro);
    Some(Table::read(&files).unwrap())
}

#[test]
fn the_anchors_of_mmlu_pro() {
    let Some(table) = mmlu_pro() else { return };
    assert_eq!((table.arms().len(), table.rows()), (28, 12_002));
    assert_eq!(
        table.left_out_arms,
        [("DeepSeek-Coder-V2".to_owned(), 10_351)]
    );
    let found = references(&table, f64::INFINITY);
    let check = |figure: Figure, reward: f64, cost: f64| {
        assert!(
            (figure.reward - reward).abs() < 6e-4,
            "{figure:?}, not {reward}"
        );
        assert!(
            (figure.cost / cost - 1.0).abs() < 0.01,
            "{figure:?}, not {cost}"
        );
    };
    check(found.random, 0.395, 0.000152);
    assert_eq!(found.best_single.arm.as_str(), "gemini-1.5-pro-002");
    check(found.best_single.figure, 0.7024, 0.000542);
    check(found.best_per_context.unwrap(), 0.719, 0.000466);
    check(found.oracle, 0.945, 0.00005);
    assert_eq!(found.static_mix.figure, found.best_single.figure);
    // Round-robin is random choice, replayed.
    let report = play(&table, &settings(f64::INFINITY, 2), Baseline::RoundRobin);
    assert!(
        (report.reward.mean - found.random.reward).abs() < 0.01,
        "{:?}",
        report.reward
    );
    assert_eq!(report.budget_use, None);
}

/// `c2mabv` as it is shipped, but for how it keeps a budget.
fn ours(table: &Table, settings: &ReplaySettings, budget_mode: BudgetMode) -> ReplayReport {
    let config = C2mabvConfig {
        budget_mode,
        ..C2mabvConfig::default()
    };
    let learner = C2mabv::new(config).unwrap();
    let watch = Watch::default();
    let report = replay(table, settings, "it", &native(learner), &watch).unwrap();
    println!(
        "{budget_mode:?} at {}, contexts {}, prices {}: {:.4}, use {:?}",
        settings.budget,
        settings.by_context,
        settings.known_prices,
        report.reward.mean,
        report.budget_use
    );
    report
}

#[test]
fn on_mmlu_pro_c2mabv_beats_every_baseline_and_keeps_its_budget() {
    let Some(table) = mmlu_pro() else { return };
    let of = |budget, by_context, known_prices| ReplaySettings {
        by_context,
        known_prices,
        ..settings(budget, 3)
    };
    let greedy = Baseline::EpsilonGreedy {
        epsilon: 0.1,
        budgeted: true,
    };
    let used = |report: &ReplayReport| report.budget_use.map(|used| used.mean).unwrap();
    for known_prices in [true, false] {
        let free = of(f64::INFINITY, false, known_prices);
        let best = ours(&table, &free, BudgetMode::Paced).reward.mean;
        let cucb = Baseline::Cucb { exploration: 1.5 };
        let baselines = [
            Baseline::Thompson,
            cucb,
            greedy.clone(),
            Baseline::RoundRobin,
        ];
        let others = baselines.map(|baseline| play(&table, &free, baseline).reward.mean);
        assert!(best > 0.68, "{best}");
        assert!(
            others.iter().all(|other| best > *other),
            "{best} {others:?}"
        );
        let free = of(f64::INFINITY, true, known_prices);
        let told = ours(&table, &free, BudgetMode::Paced).reward.mean;
        assert!(told > best - 0.003, "{told} {best}");
        for budget in [3e-5, 1e-4, 3e-4] {
            let limited = of(budget, false, known_prices);
            let paced = ours(&table, &limited, BudgetMode::Paced);
            let hard = ours(&table, &limited, BudgetMode::Hard);
            assert!(used(&paced) <= 1.02 && used(&hard) <= 1.0);
            if budget != 1e-4 {
                continue;
            }
            let other = play(&table, &limited, greedy.clone()).reward.mean;
            let best = paced.reward.mean;
            assert!(best > 0.625 && best > other, "{best} {other}");
            let limited = of(budget, true, known_prices);
            let told = ours(&table, &limited, BudgetMode::Paced).reward.mean;
            assert!(told > best - 0.003 - 0.001, "{told} {best}");
        }
    }
}
