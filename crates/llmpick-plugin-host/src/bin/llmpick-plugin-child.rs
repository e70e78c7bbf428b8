//! The process of a plugin, for the tests of this crate, whose own programs cannot be one.
//!
//! With `load FOLDER FILE…` it loads each file as a daemon would whose state is in FOLDER, and
//! makes a router of it: for tests of what one process leaves to the next.
#![allow(missing_docs, reason = "a program")]

use camino::Utf8Path;
use llmpick_plugin_host::{Library, LoadOptions, PluginLock, RouterOptions, router, run_if_child};

fn main() {
    run_if_child();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, folder, files @ ..] = arguments.as_slice() else {
        eprintln!("this program only runs plugins for the tests of llmpick-plugin-host");
        std::process::exit(2);
    };
    assert_eq!(verb, "load");
    let options = LoadOptions {
        lock: Some(PluginLock::at(folder.as_str())),
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
