//! An evaluation measures every arm, and the router learns from what it chose.

use llmpick_stories::{Home, data, fixture, has_pool};

#[test]
fn one_seed_gives_the_same_decisions() {
    if !has_pool() {
        return;
    }
    let questions = fixture("questions.jsonl");
    let decide = || {
        let home = Home::new();
        let said = home
            .run(&["eval", questions.to_str().unwrap(), "--seed", "3", "--json"])
            .ok()
            .json();
        let decisions = said["router"]["decisions"].as_array().unwrap();
        let arms: Vec<String> = decisions.iter().map(|one| one["arm"].to_string()).collect();
        (arms, said["arms"].clone())
    };
    let (first, arms) = decide();
    assert_eq!(first.len(), 12, "{first:?}");
    assert_eq!(decide().0, first);
    for arm in arms.as_array().unwrap() {
        let (low, high) = (
            arm["acc"]["low"].as_f64().unwrap(),
            arm["acc"]["high"].as_f64().unwrap(),
        );
        assert!(
            low < arm["acc"]["mean"].as_f64().unwrap() + 1e-9 && low < high,
            "{arm}"
        );
    }
}

#[test]
fn an_interrupted_evaluation_goes_on() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let questions = fixture("questions.jsonl");
    let questions = questions.to_str().unwrap();
    home.run(&["eval", questions, "--limit", "4"]).ok();
    let said = home.run(&["eval", questions]).ok();
    assert!(said.err.contains("8 answers are known"), "{said:?}");
    let table = home.run(&["route", "stats"]).ok().out;
    assert!(table.contains("pulls"), "{table}");
}

#[test]
fn real_questions_are_answered_above_chance() {
    let (true, Some(file)) = (has_pool(), data("qa/arc_easy.jsonl")) else {
        return;
    };
    let home = Home::new();
    let said = home
        .run(&[
            "eval",
            file.to_str().unwrap(),
            "--limit",
            "40",
            "--run",
            "pool",
            "--json",
        ])
        .ok()
        .json();
    for arm in said["arms"].as_array().unwrap() {
        // Four choices: chance is 0.25; both models are far above on the whole file.
        assert!(arm["acc"]["mean"].as_f64().unwrap() > 0.33, "{arm}");
    }
}
