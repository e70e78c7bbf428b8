//! A plugin is only used as it was trusted, and hurts nobody but itself.

use std::path::Path;
use std::process::Command;

use llmpick_stories::{Home, SMALL, has_pool};
use serde_json::Value;

/// Builds a fixture of `tests/plugins` over whatever is in its place.
fn build(home: &Home, source: &str, flag: &str) -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (library, fresh) = (home.path("work/p.so"), home.path("work/p.so.new"));
    let output = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-shared", "-fPIC", flag, "-I"])
        .arg(here.join("../crates/llmpick-plugin-abi/include"))
        .arg("-o")
        .arg(&fresh)
        .arg(here.join("plugins").join(source))
        .arg("-lm")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    std::fs::rename(fresh, &library).unwrap();
    library.to_str().unwrap().to_owned()
}

#[test]
fn a_changed_plugin_is_refused_until_it_is_trusted() {
    let home = Home::new();
    let library = build(&home, "module.c", "-DVERSION=\"1.0.0\"");
    home.run(&["plugin", "inspect", &library]).ok();
    let lock = std::fs::read_to_string(home.path("state/llmpick/plugins.lock")).unwrap();
    let lock: Value = serde_json::from_str(&lock).unwrap();
    assert_eq!(lock["plugins"][0]["path"], library.as_str());
    assert_eq!(lock["plugins"][0]["trusted_by"], "first_use");
    build(&home, "module.c", "-DVERSION=\"1.0.1\"");
    let refused = ["it changed since it was trusted", "llmpick plugin trust"];
    home.run(&["plugin", "inspect", &library])
        .fails(7, &refused);
    home.run(&["--set", "plugins.pin=false", "plugin", "inspect", &library])
        .ok();
}

#[test]
fn a_plugin_that_kills_its_process_does_not_kill_this_one() {
    let home = Home::new();
    let library = build(&home, "module.c", "-DFAULT=CRASH_LOAD");
    let tried = "it was tried out in a process of its own, and its process died of SIGSEGV";
    home.run(&["plugin", "inspect", &library])
        .fails(7, &[tried]);
    let library = build(&home, "module.c", "-DFAULT=ABORT_CREATE");
    let chosen = format!("router.plugin=\"{library}\"");
    home.run(&["chat", "Hi", "--set", &chosen])
        .fails(7, &["SIGABRT", "cannot go on"]);
}

#[test]
fn a_crash_or_an_endless_loop_in_a_process_costs_one_decision() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let library = build(&home, "moody.c", "-DREASON=\"mine\"");
    for (fault, says) in [("crash", "SIGSEGV"), ("busy_loop", "did not answer")] {
        home.settings(&format!(
            "[pool]\narms = [\"{SMALL}\"]\n[plugins]\nisolation = \"process\"\n\
             [router]\nplugin = \"{library}\"\n[router.config]\nfault = \"{fault}\"\n"
        ));
        home.run(&["chat", "Say hi.", "--json"]).ok();
        let route = home.run(&["route", "last", "--json"]).ok().json();
        let source = &route["decision"]["source"]["fallback"];
        assert!(
            source.as_str().is_some_and(|why| why.contains(says)),
            "{route}"
        );
    }
    // Without a fault the decision is its own.
    home.settings(&format!(
        "[pool]\narms = [\"{SMALL}\"]\n[plugins]\nisolation = \"process\"\n\
         [router]\nplugin = \"{library}\"\n"
    ));
    home.run(&["chat", "Say hi.", "--json"]).ok();
    let route = home.run(&["route", "last", "--json"]).ok().json();
    assert_eq!(route["decision"]["source"], "router");
    assert_eq!(route["decision"]["reason"], "mine");
}
