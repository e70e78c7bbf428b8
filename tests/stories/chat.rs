//! A prompt finds a model, the choice is explained, and nothing is forgotten.

use std::time::{Duration, Instant};

use llmpick_stories::{Home, LARGE, SMALL, has_pool};

fn short(prompt: &str) -> Vec<&str> {
    vec!["chat", prompt, "--max-tokens", "12", "--json"]
}

#[test]
fn a_routed_answer_is_explained() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let answer = home.run(&short("Say hello.")).ok().json();
    let (route, model) = (
        answer["route_id"].as_str().unwrap(),
        answer["model"].as_str().unwrap(),
    );
    assert!([SMALL, LARGE].contains(&model), "{answer}");

    let shown = home.run(&["route", "show", route]).ok().out;
    for text in [route, SMALL, LARGE, "c2mabv"] {
        assert!(shown.contains(text), "no {text} in\n{shown}");
    }
    let last = home.run(&["route", "last", "--json"]).ok().json();
    assert_eq!(last["id"], route, "{last}");
    home.run(&["route", "show", "r999"]).fails(1, &["r999"]);
}

#[test]
fn feedback_is_learnt_and_survives_a_restart() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let answer = home.run(&short("One word, please.")).ok().json();
    let route = answer["route_id"].as_str().unwrap().to_owned();
    home.run(&["feedback", &route, "0.25"]).ok();
    home.run(&["feedback", &route, "1.5"]).fails(2, &["0 to 1"]);
    home.run(&["feedback", "r77", "1"]).fails(1, &["r77"]);
    // Every command is a new process: what stats says comes from the disk.
    let stats = home.run(&["route", "stats", "--json"]).ok().json();
    let pulls: u64 = stats
        .as_array()
        .unwrap()
        .iter()
        .map(|arm| arm["pulls"].as_u64().unwrap())
        .sum();
    assert_eq!(pulls, 1, "{stats}");
    let table = home.run(&["route", "stats"]).ok().out;
    for column in ["arm", "pulls", "score", "cost", "latency", "share"] {
        assert!(table.contains(column), "no {column} in\n{table}");
    }
}

#[test]
fn a_killed_process_loses_no_answer_it_gave() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    home.run(&short("First.")).ok();
    let arguments = ["chat", "Count to one hundred.", "--max-tokens", "400"];
    let mut child = home
        .command(&arguments)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Somewhere in the middle of the answer: a route that has begun and not ended.
    let start = Instant::now();
    while home.run(&["route", "last", "--json"]).json()["id"] != "r2" {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the second route never began"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let third = home.run(&short("Third.")).ok().json();
    assert_eq!(third["route_id"], "r3");
    let first = home.run(&["route", "show", "r1", "--json"]).ok().json();
    assert_eq!(first["id"], "r1");
}

#[test]
fn a_prompt_may_come_through_a_pipe() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let arguments = [
        "chat",
        "-m",
        LARGE,
        "--max-tokens",
        "8",
        "--temperature",
        "0",
    ];
    let said = home
        .run_with(&arguments, b"What is 2 + 2? Answer with the number.")
        .ok();
    assert!(said.out.contains('4'), "{said:?}");
    assert!(
        !said.out.contains('\u{1b}'),
        "a pipe gets plain text: {said:?}"
    );
}

#[test]
fn one_seed_gives_one_text() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let ask = || {
        let arguments = [
            "chat",
            "-m",
            SMALL,
            "Tell me a story.",
            "--max-tokens",
            "24",
            "--temperature",
            "1",
            "--seed",
            "5",
            "--json",
        ];
        home.run(&arguments).ok().json()["text"].clone()
    };
    assert_eq!(ask(), ask());
}
