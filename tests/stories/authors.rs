//! A plugin of one's own: a project is written, built, tested, tried out, trusted, used.

use std::path::{Path, PathBuf};
use std::process::Command;

use llmpick_stories::{Home, SMALL, has_pool};

/// Builds a project as its author would, and says where the library is.
fn build(project: &Path, command: &str, library: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-plugins");
    let run = |more: &[&str]| {
        let mut words = command.split(' ');
        let output = Command::new(words.next().unwrap())
            .args(words)
            .args(more)
            .current_dir(project)
            .env("CARGO_TARGET_DIR", &target)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), errors)
    };
    let is_cargo = command.starts_with("cargo");
    let (mut built, mut errors) = run(if is_cargo { &["--offline"] } else { &[] });
    if !built && is_cargo {
        // Nothing was downloaded yet.
        (built, errors) = run(&[]);
    }
    assert!(built, "{errors}");
    match library.strip_prefix("target/") {
        Some(inside) => target.join(inside),
        None => project.join(library),
    }
}

#[test]
fn a_new_project_builds_and_keeps_the_contract() {
    let home = Home::new();
    for (lang, kind, tests) in [
        ("rust", "router", 22),
        ("rust", "scorer", 13),
        ("c", "router", 22),
        ("c", "scorer", 13),
    ] {
        let name = format!("my-{lang}_{kind}");
        let new = ["plugin", "new", &name, "--lang", lang, "--kind", kind];
        let made = home.run(&[&new[..], &["--json"]].concat()).ok().json();
        let project = home.path("work").join(&name);
        let text = |key: &str| made[key].as_str().unwrap().to_owned();
        let library = build(&project, &text("build"), &text("library"));
        let file = library.to_str().unwrap();
        let said = home.run(&["plugin", "test", file, "--json"]).ok().json();
        assert_eq!(
            said,
            serde_json::json!({"passed": tests, "failed": 0}),
            "{name}"
        );
        let again = home.run(&new);
        again.fails(2, &["is there already"]);
    }
    home.run(&["plugin", "new", "My Router"])
        .fails(2, &["cannot be a plugin's name"]);
}

#[test]
fn a_broken_plugin_is_told_what_is_broken() {
    let home = Home::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/careless.c");
    let library = home.path("work").join("careless.so");
    let built = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-I"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/llmpick-plugin-abi/include"))
        .arg("-o")
        .args([&library, &source])
        .arg("-lm")
        .status()
        .unwrap();
    assert!(built.success());
    let said = home.run(&[
        "plugin",
        "test",
        "./careless.so",
        "--plugin",
        "careless",
        "--settings",
        r#"{"fault": "id_overread"}"#,
        "--only",
        "strict",
    ]);
    for text in [
        "✓ it loads",
        "router careless",
        "✗ strict memory",
        "it crashed with SIGSEGV (invalid memory) while choosing at most 1 of 1 arms: it went past \
         the end of the id of an arm",
        "1 passed, 1 failed",
    ] {
        assert!(said.out.contains(text), "no `{text}` in {said:#?}");
    }
    said.fails(
        7,
        &["`./careless.so` breaks 1 promise of the plugin contract"],
    );
}

#[test]
fn a_changed_library_is_tried_out_and_trusted() {
    let home = Home::new();
    let project = home.path("work").join("small");
    home.run(&["plugin", "new", "small", "--lang", "c"]).ok();
    let file = build(&project, "make", "librouter_small.so");
    let file = file.to_str().unwrap();
    let probe = || home.run(&["plugin", "probe", file, "--json"]).ok().json();
    let first = probe();
    assert_eq!(first["standing"], "new: its first use records it");
    assert_eq!(first["plugins"][0]["name"], "small");
    home.run(&["plugin", "trust", file]).ok();
    assert_eq!(probe()["standing"], "trusted");

    // Another build of it.
    let source = project.join("router.c");
    let text = std::fs::read_to_string(&source).unwrap();
    std::fs::write(&source, text.replace("0.1.0", "0.2.0")).unwrap();
    build(&project, "make", "librouter_small.so");
    let changed = probe();
    let standing = changed["standing"].as_str().unwrap();
    let old = first["sha256"].as_str().unwrap();
    assert!(
        standing.starts_with(&format!("changed: trusted is sha256 {old}")),
        "{standing}"
    );
    let accepted = home.run(&["plugin", "trust", file, "--json"]).ok().json();
    assert_eq!(
        (&accepted["old"], &accepted["new"]),
        (&first["sha256"], &changed["sha256"])
    );
    let forgotten = home.run(&["plugin", "trust", file, "--forget"]).ok();
    assert!(forgotten.out.starts_with("forgot "), "{forgotten:?}");
    home.run(&["plugin", "reload"])
        .fails(1, &["no daemon answers on"]);
}

#[test]
fn a_scorer_plugin_grades_answers() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    home.settings("[plugins]\nscorers = [\"rouge,variant=rouge1\"]\n");
    let ask = |more: &[&str]| {
        let ask = ["chat", "-m", SMALL, "Say: the sky is blue", "--json"];
        let said = home.run(&[&ask[..], more].concat());
        said.ok().json()
    };
    let said = ask(&["--reference", "sky blue sky", "--scorer", "rouge"]);
    let words = said["text"].as_str().unwrap().to_lowercase();
    let words: Vec<&str> = words
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let count = |wanted| words.iter().filter(|word| **word == wanted).count();
    let shared = count("sky").min(2) + count("blue").min(1);
    // 2PR / (P + R) with P = shared / words and R = shared / 3.
    let expected = 2.0 * shared as f64 / (words.len() + 3) as f64;
    let score = said["score"].as_f64().unwrap();
    assert!((score - expected).abs() < 1e-9, "{said}: {expected}");

    // Unasked, it comes before `exact`, which would give 0 or 1, and after `choice`.
    let told = ask(&["--reference", "sky blue sky"]);
    let route = told["route_id"].as_str().unwrap();
    let shown = home.run(&["route", "show", route]).ok().out;
    assert!(shown.contains("(rouge)"), "{shown}");
    let told = ask(&["--reference", "B"]);
    let route = told["route_id"].as_str().unwrap();
    let shown = home.run(&["route", "show", route]).ok().out;
    assert!(!shown.contains("(rouge)"), "{shown}");

    home.settings("[plugins]\nscorers = [\"rouge,variant=rouge9\"]\n");
    let refused = home.run(&["chat", "-m", SMALL, "Hello"]);
    refused.fails(7, &["configure plugin `rouge`: unknown variant `rouge9`"]);
}
