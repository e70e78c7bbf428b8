//! The routers we ship keep every promise of the contract, through the real shared libraries.

#![allow(clippy::unwrap_used)]

use camino::Utf8PathBuf;
use llmpick_plugin_host::{
    Isolation, Library, LoadOptions, PluginKind, RouterOptions, find, router,
};
use llmpick_testkit::router_suite;

/// `plugins/` beside the test's own build; `cargo xtask test` stages them there.
fn staged() -> Option<Vec<Utf8PathBuf>> {
    let test = Utf8PathBuf::from_path_buf(std::env::current_exe().unwrap()).unwrap();
    let folder = test.ancestors().nth(2).unwrap().join("plugins");
    if !folder.is_dir() {
        println!("skipped: no plugins are staged; cargo xtask test does it");
        return None;
    }
    Some(vec![folder])
}

fn check(library: &str, routers: usize) {
    let Some(folders) = staged() else { return };
    let path = find(&folders, library).unwrap();
    // A build folder may be writable for one's group.
    let loaded = Library::load(&path, &LoadOptions::ANYWHERE).unwrap();
    let supervision = RouterOptions {
        isolation: Isolation::Inline,
        ..RouterOptions::default()
    };
    let infos = loaded.plugins().iter();
    let names: Vec<&str> = infos
        .filter(|info| info.kind == PluginKind::Router)
        .map(|info| info.name.as_str())
        .collect();
    assert_eq!(names.len(), routers, "{names:?}");
    for name in names {
        router_suite(|| router(&loaded, name, "", &supervision).unwrap());
    }
}

#[test]
fn c2mabv_keeps_the_contract() {
    check("c2mabv", 2);
}

#[test]
fn pickllm_keeps_the_contract() {
    check("pickllm", 3);
}

#[test]
fn the_baselines_keep_the_contract() {
    check("baselines", 5);
}
