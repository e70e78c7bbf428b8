//! The process of a plugin, for the tests of this crate, whose own programs cannot be one.
//!
//! With `load FOLDER FILE…` it loads each file as a daemon would whose state is in FOLDER, and
//! makes a router of it: for tests of what one process leaves to the next. With `hold FILE` it
//! says which process its router runs in, and waits to be ended.
#![allow(missing_docs, reason = "a program")]

use std::time::Duration;

use camino::Utf8Path;
use llmpick_core::{ArmId, Candidate, Locality, Mode, RouteId, SelectRequest};
use llmpick_plugin_host::{
    Isolation, Library, LoadOptions, PluginLock, RouterOptions, router, run_if_child,
};

fn main() {
    run_if_child();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load", folder, ref files @ ..] => load(folder, files),
        ["hold", file] => hold(file),
        _ => {
            eprintln!("this program only runs plugins for the tests of llmpick-plugin-host");
            std::process::exit(2);
        }
    }
}

fn hold(file: &str) {
    let options = RouterOptions {
        isolation: Isolation::Process,
        deadline: Duration::from_secs(10),
        ..RouterOptions::default()
    };
    let library = Library::load_apart(Utf8Path::new(file), &LoadOptions::ANYWHERE);
    let library = library.expect("a library that loads");
    let mut router = router(&library, "moody", "", &options).expect("a router that starts");
    // Built to give its process as the reason.
    println!(
        "{}",
        router
            .select(&request(&[arm()]))
            .expect("a decision")
            .reason
    );
    loop {
        std::thread::park();
    }
}

fn load(folder: &str, files: &[&str]) {
    let options = LoadOptions {
        lock: Some(PluginLock::at(folder)),
        ..LoadOptions::ANYWHERE
    };
    for file in files {
        match Library::load(Utf8Path::new(file), &options) {
            Ok(library) => {
                let name = library.plugins()[0].name.clone();
                match router(&library, &name, "", &RouterOptions::default()) {
                    Ok(router) => println!("{} runs", router.name()),
                    Err(error) => println!("{error}"),
                }
            }
            Err(error) => println!("{}", error.kind),
        }
    }
}

fn arm() -> Candidate {
    Candidate {
        id: ArmId::new("arm").expect("a name"),
        locality: Locality::Local,
        warm: true,
        eligible: true,
        context_tokens: 1024,
        price_in: 0.0,
        price_out: 0.0,
        est_cost: 0.0,
        cost_max: 0.0,
        latency_ms: f64::NAN,
        ttft_ms: f64::NAN,
        score: f64::NAN,
        n_ok: 0,
        n_err: 0,
        inflight: 0,
    }
}

fn request(candidates: &[Candidate]) -> SelectRequest<'_> {
    SelectRequest {
        route_id: RouteId(1),
        seed: 1,
        arms_epoch: 1,
        time_budget: Duration::from_secs(10),
        candidates,
        allowed_modes: &[Mode::Single],
        task: "",
        session: "",
        prompt: None,
        features: None,
        prompt_tokens: 1,
        max_new_tokens: 1,
        max_cost: f64::NAN,
        max_latency_ms: f64::NAN,
        min_score: f64::NAN,
        cost_budget: f64::NAN,
        max_arms: 1,
    }
}
