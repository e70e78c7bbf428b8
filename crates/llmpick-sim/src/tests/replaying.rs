//! Replay: a small table by hand, and the anchors of the MMLU-Pro table.

use camino::{Utf8Path, Utf8PathBuf};
use llmpick_bandit::baselines::{Baseline, BaselineLearner, Fixed};
use llmpick_bandit::stats::TableConfig;

use super::native::native;
use crate::{Costs, Figure, ReplayReport, ReplaySettings, Table, TableFiles, references, replay};

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
    }
}

fn play(table: &Table, settings: &ReplaySettings, baseline: Baseline) -> ReplayReport {
    let pooled = TableConfig {
        discount: 1.0,
        shrinkage: None,
    };
    let learner = BaselineLearner::new(baseline, pooled).unwrap();
    replay(table, settings, "it", &native(learner)).unwrap()
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
    let files = TableFiles {
        scores,
        costs: Costs::MmluPro,
        contexts: None,
        min_answered: 0.99,
    };
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
