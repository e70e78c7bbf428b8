//! A task is dealt over the models of the pool, with and without a daemon.

use std::collections::BTreeSet;

use llmpick_stories::{Home, LARGE, SMALL, Said, fixture, has_pool};

/// Runs a task whose file holds this.
fn task(home: &Home, toml: &str, rest: &[&str]) -> Said {
    let file = home.path("work/task.toml");
    std::fs::write(&file, toml).unwrap_or_else(|error| panic!("{error}"));
    let mut arguments = vec!["task", "task.toml"];
    arguments.extend(rest);
    home.run(&arguments)
}

#[test]
fn parts_go_to_both_models_and_are_recorded() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    // The one router that takes both arms from the start.
    home.settings("[router]\nplugin = \"baselines:round-robin\"\n");
    let file = fixture("task.toml");
    let file = file.to_str().unwrap_or_default();
    let said = home.run(&["task", file, "--json"]).ok();
    assert!(said.err.contains("[3/3]"), "{said:?}");
    let report = said.json();
    assert_eq!(report["success"], true, "{report}");
    let parts = report["parts"].as_array().cloned().unwrap_or_default();
    assert_eq!(parts.len(), 3);
    let models: BTreeSet<&str> = parts.iter().filter_map(|p| p["model"].as_str()).collect();
    assert_eq!(models, BTreeSet::from([SMALL, LARGE]), "{report}");
    assert!(
        parts.iter().all(|part| part["score"].is_number()),
        "{report}"
    );
    assert_eq!(
        report["score_sum"].as_f64().map(|sum| sum > 0.0),
        Some(true)
    );

    let route = report["route_id"].as_str().unwrap_or_default();
    let shown = home.run(&["route", "show", route]).ok().out;
    for text in ["france", "sum", "sky", "sum_up", SMALL, LARGE] {
        assert!(shown.contains(text), "no {text} in\n{shown}");
    }
    let record = home.run(&["route", "show", route, "--json"]).ok().json();
    assert_eq!(
        record["feedback"].as_array().map(Vec::len),
        Some(2),
        "{record}"
    );
    assert_eq!(record["status"], "done");
}

#[test]
fn all_in_fails_with_the_name_of_the_part() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let _daemon = home.serve(&[]);
    let toml = "mode = \"all_in\"\nmax_tokens = 8\ntemperature = 0.0\n\
                [[parts]]\nname = \"easy\"\nprompt = \"Say hello.\"\nreference = \"/./\"\n\
                [[parts]]\nname = \"impossible\"\nprompt = \"Say hello.\"\nreference = \"/xyzzy-42/\"\n";
    let said = task(&home, toml, &[]).fails(1, &["part `impossible` scored 0.000"]);
    // What there is, is shown all the same.
    for text in ["easy", "impossible", "2 of 2 parts answered", "1.000"] {
        assert!(said.out.contains(text), "no {text} in {said:?}");
    }
    assert_eq!(
        home.run(&["route", "last", "--json"]).ok().json()["status"],
        "failed"
    );
}

#[test]
fn an_interrupted_task_leaves_nothing_open() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let toml = "max_tokens = 800\nmax_arms = 1\n\
                [[parts]]\nname = \"a\"\nprompt = \"Count to one thousand.\"\n\
                [[parts]]\nname = \"b\"\nprompt = \"Count to two thousand.\"\n";
    std::fs::write(home.path("work/task.toml"), toml).unwrap_or_else(|error| panic!("{error}"));
    let child = home
        .command(&["task", "task.toml", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{error}"));
    let start = std::time::Instant::now();
    let began = || {
        let last = home.run(&["route", "last", "--json"]);
        last.code == Some(0)
            && last.json()["calls"]
                .as_array()
                .is_some_and(|c| !c.is_empty())
    };
    while !began() {
        assert!(start.elapsed().as_secs() < 120, "the task never began");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let pid = child.id().to_string();
    let killed = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(killed.is_ok_and(|status| status.success()));
    let said: Said = child
        .wait_with_output()
        .unwrap_or_else(|error| panic!("{error}"))
        .into();
    said.fails(130, &["stopped"]);
    let record = home.run(&["route", "last", "--json"]).ok().json();
    assert_eq!(record["status"], "cancelled", "{record}");
    assert_eq!(record["calls"][0]["outcome"], "cancelled", "{record}");
}

#[test]
fn a_wrong_file_is_told_with_its_line() {
    let home = Home::new();
    task(
        &home,
        "mode = \"any_win\"\n[[parts]]\nname = \"a\"\nprompt = \"b\"\n",
        &[],
    )
    .fails(2, &["task.toml:1:", "sum_up or all_in"]);
    task(&home, "[[parts]]\nname = \"a\"\npromt = \"b\"\n", &[])
        .fails(2, &["task.toml:3:", "promt", "--example"]);
    home.run(&["task", "nowhere.toml"])
        .fails(2, &["nowhere.toml"]);
    let example = home.run(&["task", "--example"]).ok().out;
    task(&home, &example, &["--set", "budget.limit=nonsense"]).fails(9, &["budget"]);
}
