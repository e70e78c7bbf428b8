//! The conformance kit passes what keeps the contract, and says of each broken plugin what
//! is broken.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::process::Command;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use common::{Folder, cargo, cc};
use llmpick_plugin_host::kit::{Kit, Summary, Task, TestResult, run_task};
use llmpick_plugin_host::{PluginKind, find};

/// The process of one test is this very program, told to run the next function only.
fn child(task: &Task) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["the_process_of_one_test", "--exact", "--nocapture"])
        .env("KIT_FILE", &task.file)
        .env("KIT_TEST", &task.test)
        .env("KIT_SETTINGS", &task.settings);
    if let Some((kind, name)) = &task.plugin {
        command
            .env("KIT_KIND", kind.to_string())
            .env("KIT_PLUGIN", name);
    }
    command
}

#[test]
fn the_process_of_one_test() {
    let get = |name: &str| std::env::var(name).ok();
    let Some(file) = get("KIT_FILE") else { return };
    let kind = match get("KIT_KIND").as_deref() {
        Some("scorer") => PluginKind::Scorer,
        _ => PluginKind::Router,
    };
    run_task(&Task {
        file: file.into(),
        plugin: get("KIT_PLUGIN").map(|name| (kind, name)),
        test: get("KIT_TEST").unwrap(),
        settings: get("KIT_SETTINGS").unwrap(),
    });
}

fn kit<'a>(file: &'a Utf8Path, plugin: Option<&'a str>, settings: &'a str) -> Kit<'a> {
    Kit {
        file,
        plugin,
        settings,
        only: None,
        time_limit: Duration::from_secs(300),
        child: &child,
    }
}

fn results(kit: &Kit<'_>) -> Vec<TestResult> {
    let mut all = Vec::new();
    let summary = kit.run(|result| all.push(result.clone())).unwrap();
    let count = |passed| all.iter().filter(|result| result.passed == passed).count() as u32;
    let (passed, failed) = (count(true), count(false));
    assert_eq!(summary, Summary { passed, failed });
    all
}

fn passes(kit: &Kit<'_>, tests: usize) {
    let all = results(kit);
    let failed: Vec<&TestResult> = all.iter().filter(|result| !result.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(all.len(), tests, "{all:#?}");
}

/// Runs the one test that is meant to find the fault.
fn finds(file: &Utf8Path, plugin: &str, fault: &str, test: &str, sentence: &str) {
    let settings = format!(r#"{{"fault": "{fault}"}}"#);
    let kit = Kit {
        only: Some(test),
        ..kit(file, Some(plugin), &settings)
    };
    let all = results(&kit);
    let found = all.iter().any(|result| {
        !result.passed && result.test.contains(test) && result.note.contains(sentence)
    });
    assert!(found, "{fault}: no `{sentence}` in {all:#?}");
}

fn careless(folder: &Folder) -> Utf8PathBuf {
    cc(folder, "tests/plugins/careless.c", "careless.so", &[])
}

#[test]
fn what_keeps_the_contract_passes() {
    let folder = Folder::new();
    passes(&kit(&careless(&folder), None, "{}"), 1 + 21 + 12);
    let panics = cargo("tests/plugins/panics", "libpanics.so");
    passes(&kit(&panics, None, "{}"), 1 + 21 + 12);
}

#[test]
fn the_templates_pass() {
    let folder = Folder::new();
    for (kind, tests) in [("router", 21), ("scorer", 12)] {
        let source = format!("plugins/examples/c-{kind}/{kind}.c");
        let c = cc(&folder, &source, &format!("{kind}.so"), &[]);
        passes(&kit(&c, None, "{}"), 1 + tests);
        let folder = format!("plugins/examples/rust-{kind}");
        let rust = cargo(&folder, &format!("lib{kind}_example.so"));
        passes(&kit(&rust, None, "{}"), 1 + tests);
    }
}

#[test]
fn what_we_ship_passes() {
    let test = Utf8PathBuf::from_path_buf(std::env::current_exe().unwrap()).unwrap();
    let folder = test.ancestors().nth(2).unwrap().join("plugins");
    if !folder.is_dir() {
        println!("skipped: no plugins are staged; cargo xtask test does it");
        return;
    }
    // A library may come to hold more routers; each is tested.
    for (plugin, each) in [
        ("c2mabv", 21),
        ("pickllm", 21),
        ("baselines", 21),
        ("rouge", 12),
    ] {
        let file = find(std::slice::from_ref(&folder), plugin).unwrap();
        let all = results(&kit(&file, None, "{}"));
        let failed: Vec<&TestResult> = all.iter().filter(|result| !result.passed).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        assert!(
            all.len() > 1 && (all.len() - 1).is_multiple_of(each),
            "{all:#?}"
        );
    }
}

#[test]
fn every_broken_promise_of_a_router_is_found() {
    let folder = Folder::new();
    let file = careless(&folder);
    for (fault, test, sentence) in [
        (
            "create_aborts",
            "starts",
            "it crashed with SIGABRT (abort) while it started with its settings",
        ),
        (
            "create_exits",
            "starts",
            "it ended the process with code 3 while it started with its settings",
        ),
        (
            "config_overread",
            "strict",
            "while creating an instance: it went past the end of the settings",
        ),
        (
            "destroy_crashes",
            "starts",
            "it crashed with SIGSEGV (invalid memory) while it started",
        ),
        (
            "many_crash",
            "1 to 64",
            "it crashed with SIGSEGV (invalid memory) while choosing among 41 candidates",
        ),
        (
            "never_abstains",
            "it abstains",
            "with 3 candidates, none eligible, it chose [0]",
        ),
        (
            "error_not_abstain",
            "it abstains",
            "none eligible, it answered status -6 where LLMPICK_E_ABSTAIN (-1) is meant: nobody \
             is eligible",
        ),
        ("own_chance", "same seed", "decision "),
        ("own_chance", "only eligible", "which is not eligible"),
        (
            "one_mode",
            "allowed mode",
            "it chose mode 0x1, and allowed were 0x2",
        ),
        (
            "learns_in_select",
            "select learns nothing",
            "select changed what snapshot writes; only feedback may",
        ),
        (
            "forgets",
            "snapshot, restore",
            "after a restore, decision 1 differs: arms [",
        ),
        (
            "takes_any_state",
            "bad state",
            "it took a state that is garbage",
        ),
        (
            "any_version",
            "bad state",
            "it took a state of a newer version",
        ),
        (
            "silent_refusal",
            "bad state",
            "it refused a state that is garbage without a sentence in `err`",
        ),
        (
            "half_restores",
            "bad state",
            "it refused a state that is garbage, and had changed its own",
        ),
        (
            "nan_breaks",
            "NaN",
            "it crashed with SIGFPE (division by zero) while choosing where nothing is known",
        ),
        (
            "stranger_aborts",
            "unknown feedback",
            "it crashed with SIGABRT (abort) while taking feedback about an arm that it was never \
             asked about",
        ),
        (
            "thread_bound",
            "rotating",
            "select failed: called from a thread that is not mine",
        ),
        (
            "thread_local",
            "rotating",
            "called from rotating threads, decision 2 differs: arms [1] against [0]",
        ),
        (
            "shared",
            "two instances",
            "beside another instance, decision ",
        ),
        (
            "writes_inputs",
            "strict",
            "it wrote to the candidates, which it may only read",
        ),
        (
            "overruns_choices",
            "strict",
            "it went past the end of choices (room for choices_cap indexes)",
        ),
        (
            "overruns_reason",
            "strict",
            "it went past the end of reason (room for reason_cap bytes)",
        ),
        (
            "id_overread",
            "strict",
            "it went past the end of the id of an arm",
        ),
        (
            "keeps_pointer",
            "strict",
            "it used the candidates after the call had returned",
        ),
        ("ignores_stride", "newer host", ""),
        (
            "leaks_instance",
            "1,000 instances",
            "in 1,000 instances; allowed are 1024 KiB",
        ),
        (
            "leaks",
            "100,000 selects",
            "in 90,000 selects; allowed are 1024 KiB",
        ),
    ] {
        finds(&file, "careless", fault, test, sentence);
    }
}

#[test]
fn every_broken_promise_of_a_scorer_is_found() {
    let folder = Folder::new();
    let file = careless(&folder);
    for (fault, test, sentence) in [
        (
            "percent",
            "from 0 to 1",
            "; a grade is a number from 0 to 1",
        ),
        (
            "sure",
            "from 0 to 1",
            "its confidence is 7; it is 0 to 1, or NaN",
        ),
        ("own_chance", "same seed", "the grade of `"),
        (
            "writes_inputs",
            "strict",
            "it wrote to a text of the request, which it may only read",
        ),
        (
            "text_overread",
            "strict",
            "it went past the end of a text of the request",
        ),
        (
            "huge_crash",
            "huge",
            "it crashed with SIGABRT (abort) while grading an answer of 360,000 letters",
        ),
        ("leaks", "10,000 grades", "in 9,000 grades; allowed are"),
    ] {
        finds(&file, "byte-match", fault, test, sentence);
    }
}

#[test]
fn the_broken_plugins_of_the_host_are_found() {
    let folder = Folder::new();
    let moody = cc(&folder, "tests/plugins/moody.c", "moody.so", &[]);
    for (fault, sentence) in [
        ("range", "it chose arm 1 of 1"),
        (
            "million",
            "it says that it chose 1000000 arms where 1 may run",
        ),
        (
            "empty",
            "it chose no arm, and NaN is no marginal to draw `arm-0` by",
        ),
        ("no_mode", "it chose mode 0x0, which is not one mode"),
        ("two_modes", "it chose mode 0x3, which is not one mode"),
        ("other_mode", "it chose mode 0x8, and allowed were 0x3"),
        (
            "odd_numbers",
            "its propensity is inf, which is no probability",
        ),
        (
            "escape",
            "it says that its reason has 4294967295 bytes where there is room for 256",
        ),
        ("abstain", "it abstained where 1 arms were eligible"),
        ("error", "select failed: out of sorts"),
        ("unknown_status", "select failed: it answered status 42"),
    ] {
        finds(&moody, "moody", fault, "1 to 64", sentence);
    }
    for (fault, test, sentence) in [
        ("ineligible", "only eligible", "which is not eligible"),
        (
            "duplicate",
            "1 to 64",
            "it says that it chose 2 arms where 1 may run",
        ),
        (
            "refuse",
            "starts",
            "it did not start: refused, as the configuration asks",
        ),
        (
            "crash",
            "1 to 64",
            "it crashed with SIGSEGV (invalid memory) while choosing among 1 candidates",
        ),
        (
            "abort",
            "1 to 64",
            "it crashed with SIGABRT (abort) while choosing among 1 candidates",
        ),
        ("exit", "1 to 64", " while choosing among 1 candidates"),
        (
            "create_crash",
            "starts",
            "it crashed with SIGSEGV (invalid memory) while it started with its settings",
        ),
        (
            "feedback_crash",
            "only eligible",
            "it crashed with SIGSEGV (invalid memory) while choosing where only some",
        ),
        (
            "snapshot_crash",
            "snapshot, restore",
            "it crashed with SIGSEGV (invalid memory) while writing a snapshot",
        ),
        (
            "gib_snapshot",
            "snapshot, restore",
            "its snapshot has more than 64 MiB",
        ),
        (
            "long_error",
            "1 to 64",
            "select failed: it answered status -6",
        ),
        (
            "feedback_error",
            "only eligible",
            "feedback failed: will not learn",
        ),
        (
            "huge_snapshot",
            "snapshot, restore",
            "snapshot failed: its snapshot has more than 64 MiB",
        ),
        (
            "flood",
            "logs in measure",
            "it wrote 10000000 warnings and errors in 100 rounds; the host keeps 50 at once",
        ),
    ] {
        finds(&moody, "moody", fault, test, sentence);
    }
    finds(
        &moody,
        "says",
        "",
        "from 0 to 1",
        "it graded `42` with 42; a grade is a number from 0 to 1",
    );
    let panics = cargo("tests/plugins/panics", "libpanics.so");
    for (place, test) in [
        ("create", "starts"),
        ("select", "1 to 64"),
        ("feedback", "only eligible"),
        ("snapshot", "snapshot, restore"),
    ] {
        let settings = format!(r#"{{"panic_in": "{place}"}}"#);
        let kit = Kit {
            only: Some(test),
            ..kit(&panics, Some("panics"), &settings)
        };
        let all = results(&kit);
        assert!(all[1].note.contains("panicked: "), "{place}: {all:#?}");
    }
}

#[test]
fn what_only_looks_odd_passes() {
    let folder = Folder::new();
    let moody = cc(&folder, "tests/plugins/moody.c", "moody.so", &[]);
    // Rounding is asked of the host; nothing is known of the odds; standard output is the
    // kit's own channel.
    for fault in ["round", "nan", "print"] {
        let settings = format!(r#"{{"fault": "{fault}"}}"#);
        let kit = Kit {
            only: Some("1 to 64"),
            ..kit(&moody, Some("moody"), &settings)
        };
        passes(&kit, 2);
    }
}

#[test]
fn a_plugin_that_is_slow_or_hangs_is_found() {
    let folder = Folder::new();
    let moody = cc(&folder, "tests/plugins/moody.c", "moody.so", &[]);
    for (fault, what) in [("slow", "select"), ("slow_feedback", "feedback")] {
        let settings = format!(r#"{{"fault": "{fault}", "sleep": {{"ms": 120}}}}"#);
        let kit = Kit {
            only: Some("100,000 selects"),
            ..kit(&moody, Some("moody"), &settings)
        };
        let all = results(&kit);
        let sentence = format!("11 of 11 calls of {what} took longer than the budget of 100ms");
        assert!(all[1].note.starts_with(&sentence), "{all:#?}");
    }
    let file = careless(&folder);
    for (file, plugin, fault, test, doing) in [
        (
            &moody,
            "moody",
            "create_hangs",
            "starts",
            "it started with its settings",
        ),
        (
            &moody,
            "moody",
            "spin",
            "1 to 64",
            "choosing among 1 candidates",
        ),
        (
            &moody,
            "moody",
            "busy_loop",
            "1 to 64",
            "choosing among 1 candidates",
        ),
        (
            &file,
            "careless",
            "many_hang",
            "1 to 64",
            "choosing among 41 candidates",
        ),
    ] {
        let settings = format!(r#"{{"fault": "{fault}"}}"#);
        let kit = Kit {
            only: Some(test),
            time_limit: Duration::from_secs(5),
            ..kit(file, Some(plugin), &settings)
        };
        let all = results(&kit);
        let sentence = format!("it did not come back within 5s while {doing}");
        assert_eq!(all[1].note, sentence, "{fault}");
    }
}

#[test]
fn a_library_that_does_not_load_fails_one_test() {
    let folder = Folder::new();
    let refused = |name: &str, source: &str, flags: &[&str]| {
        let file = cc(&folder, source, name, flags);
        let all = results(&kit(&file, None, "{}"));
        assert_eq!((all.len(), all[0].passed), (1, false), "{all:#?}");
        all[0].note.clone()
    };
    let module = "tests/plugins/module.c";
    for (fault, sentence) in [
        ("OTHER_MAJOR", "it was built for ABI 2.x"),
        ("NEEDS_NEWER", "it needs ABI 1.9 or newer"),
        ("WRONG_MAGIC", "its entry does not return an llmpick module"),
        ("NO_SYMBOL", "it exports no `llmpick_plugin_entry`"),
        ("NULL_SELECT", "`first` has no function `select`"),
        ("SHORT_TABLE", "`first` has no function `select`"),
        ("BAD_NAME", "a plugin in it is called `Not A Name`"),
        ("REFUSES", "it does not serve plugin ABI 1.0"),
        ("EMPTY", "it holds no router and no scorer"),
        ("UNKNOWN_KIND", "it holds no router and no scorer"),
        (
            "UNDEFINED",
            "nothing defines the symbol `nobody_defines_this`",
        ),
        ("TWINS", "it holds two of router `first`"),
        ("NULL_PLUGIN", "one of its plugins is NULL"),
        ("BAD_TEXT", "its description is no UTF-8 text"),
        (
            "CRASH_LOAD",
            "it crashed with SIGSEGV (invalid memory) while loading the library",
        ),
        (
            "EXIT_LOAD",
            "it ended the process with code 0 while loading the library",
        ),
    ] {
        let flag = format!("-DFAULT={fault}");
        let note = refused(fault, module, &[&flag, "-Wno-unused"]);
        assert!(
            note.starts_with(sentence) || note.contains(sentence),
            "{fault}: {note}"
        );
    }
    let careless = "tests/plugins/careless.c";
    let note = refused("constructor.so", careless, &["-DCONSTRUCTOR_ABORTS"]);
    assert_eq!(
        note,
        "it crashed with SIGABRT (abort) while loading the library"
    );
    let file = cc(&folder, careless, "version.so", &["-DODD_VERSION"]);
    finds(
        &file,
        "careless",
        "",
        "says of itself",
        "its version `one` is not like 1.2.3",
    );
    for (fault, sentence) in [
        (
            "ABORT_CREATE",
            "it crashed with SIGABRT (abort) while it started with its settings (it said: cannot \
             go on)",
        ),
        (
            "CRASH_DESTROY",
            "it crashed with SIGSEGV (invalid memory) while it started with its settings",
        ),
        ("WANTS_CONFIG", "it did not start: needs a secret"),
    ] {
        let flag = format!("-DFAULT={fault}");
        let file = cc(
            &folder,
            module,
            &format!("{fault}.so"),
            &[&flag, "-Wno-unused"],
        );
        finds(&file, "first", "", "starts", sentence);
    }
    // The smallest library that loads chooses arm 0 whatever happens.
    let first = cc(&folder, module, "first.so", &[]);
    finds(
        &first,
        "first",
        "",
        "garbage",
        "it took the settings `{\\\"b`",
    );
    finds(
        &first,
        "first",
        "",
        "only eligible",
        "it chose `arm-0`, which is not eligible",
    );
}

#[test]
fn what_cannot_be_tested_is_an_error() {
    let folder = Folder::new();
    let file = careless(&folder);
    let error = |kit: Kit<'_>| kit.run(|_| ()).unwrap_err().to_string();
    assert_eq!(
        error(kit(&file, Some("nobody"), "{}")),
        "test plugin `nobody`: the library holds router `careless`, scorer `byte-match`"
    );
    assert_eq!(
        error(kit(&file, None, "[]")),
        "read the settings for the test: they must be a JSON object"
    );
    let only = Kit {
        only: Some("juggling"),
        ..kit(&file, None, "{}")
    };
    assert!(error(only).starts_with("find a test whose name holds `juggling`: there are\n"));
}
