//! What is refused before it runs, and in which words.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::error::Error;
use std::os::unix::fs::PermissionsExt;

use camino::Utf8Path;
use common::{ANYWHERE, Folder, cc, load};
use llmpick_plugin_host::{Library, LoadOptions};

/// The sentence that a broken library is refused with.
fn refusal(path: &Utf8Path, options: &LoadOptions) -> String {
    match Library::load(path, options) {
        Ok(library) => panic!("`{path}` was loaded: {library:?}"),
        Err(error) => {
            assert_eq!(error.to_string(), format!("load plugin `{path}`"));
            error.source().unwrap().to_string()
        }
    }
}

#[test]
fn every_broken_module_is_refused_with_a_sentence_of_its_own() {
    let folder = Folder::new();
    let cases = [
        (
            "OTHER_MAJOR",
            "it was built for ABI 2.x, this llmpick speaks 1.0: rebuild it with the matching SDK",
        ),
        (
            "NEEDS_NEWER",
            "it needs ABI 1.9 or newer, this llmpick speaks 1.0: update llmpick, \
             or rebuild the plugin with an older SDK",
        ),
        (
            "WRONG_MAGIC",
            "its entry does not return an llmpick module: rebuild it with the matching header",
        ),
        (
            "NO_SYMBOL",
            "it exports no `llmpick_plugin_entry`, so it is no llmpick plugin: \
             use `export_plugins!` in Rust, or `LLMPICK_EXPORT` in C",
        ),
        (
            "NULL_SELECT",
            "`first` has no function `select`: every router must have one",
        ),
        (
            "SHORT_TABLE",
            "`first` has no function `select`: every router must have one",
        ),
        (
            "BAD_NAME",
            "a plugin in it is called `Not A Name`: names are 1 to 64 of a-z, 0-9, _ and -",
        ),
        (
            "REFUSES",
            "it does not serve plugin ABI 1.0: rebuild it with the matching SDK",
        ),
        (
            "EMPTY",
            "it holds no router and no scorer that this llmpick knows",
        ),
        (
            "UNKNOWN_KIND",
            "it holds no router and no scorer that this llmpick knows",
        ),
        (
            "UNDEFINED",
            "the dynamic linker refused it: nothing defines the symbol `nobody_defines_this`; \
             link it into the plugin",
        ),
        (
            "TWINS",
            "it holds two of router `first`: rebuild it with the matching header",
        ),
        (
            "NULL_PLUGIN",
            "one of its plugins is NULL: rebuild it with the matching header",
        ),
        (
            "BAD_TEXT",
            "its description is no UTF-8 text: rebuild it with the matching header",
        ),
    ];
    for (fault, expected) in cases {
        let flag = format!("-DFAULT={fault}");
        let name = format!("{fault}.so");
        let library = cc(
            &folder,
            "tests/plugins/module.c",
            &name,
            &[&flag, "-Wno-unused"],
        );
        assert_eq!(refusal(&library, &ANYWHERE), expected, "{fault}");
    }
}

#[test]
fn what_is_no_plugin_file_is_refused() {
    let folder = Folder::new();
    let at = |name: &str| folder.path().join(name);
    let missing = "there is no such file: check the path, or build the plugin first";
    assert_eq!(refusal(&at("nowhere.so"), &ANYWHERE), missing);
    let not_a_file = "it is not a regular file: name the shared library itself";
    assert_eq!(refusal(folder.path(), &ANYWHERE), not_a_file);
    std::fs::write(at("text.so"), "#!/bin/sh\nexit 1\n").unwrap();
    let refused = refusal(&at("text.so"), &ANYWHERE);
    assert!(refused.contains("it is no ELF file"), "{refused}");
    let program = std::env::current_exe().unwrap();
    let library = cc(&folder, "tests/plugins/module.c", "good.so", &[]);
    let mut bytes = std::fs::read(&library).unwrap();
    bytes[18] = 0xf3; // RISC-V
    std::fs::write(at("riscv.so"), &bytes).unwrap();
    let refused = refusal(&at("riscv.so"), &ANYWHERE);
    assert!(refused.contains("it is for another processor"), "{refused}");
    bytes[18] = std::fs::read(program).unwrap()[18];
    // The dynamic linker would die of each of these, and we with it.
    for length in [0, 5, 19, 63, 64, 200, 600, 4096, bytes.len() / 2] {
        std::fs::write(at("cut.so"), &bytes[..length.min(bytes.len() - 1)]).unwrap();
        let refused = refusal(&at("cut.so"), &ANYWHERE);
        let fair = refused.contains("it is cut short") || refused.contains("it is no ELF file");
        assert!(fair, "{length} bytes: {refused}");
    }
}

#[test]
fn a_file_that_others_may_change_is_refused() {
    let folder = Folder::new();
    let strict = LoadOptions::default();
    let set = |path: &Utf8Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let library = cc(&folder, "tests/plugins/module.c", "plugin.so", &[]);
    set(&library, 0o755);
    assert_eq!(Library::load(&library, &strict).unwrap().plugins().len(), 1);
    set(&library, 0o757);
    let canonical = library.canonicalize_utf8().unwrap();
    assert_eq!(
        refusal(&library, &strict),
        format!("`{canonical}` may be changed by others (mode 0757): run `chmod go-w {canonical}`")
    );
    assert!(
        Library::load(&library, &ANYWHERE).is_ok(),
        "the check can be turned off"
    );
    set(&library, 0o755);
    set(folder.path(), 0o777);
    let refused = refusal(&library, &strict);
    assert!(refused.contains("(mode 0777)"), "{refused}");
    // A link does not hide where the file really is.
    let elsewhere = Folder::new();
    let link = elsewhere.path().join("link.so");
    std::os::unix::fs::symlink(&library, &link).unwrap();
    assert!(refusal(&link, &strict).contains("(mode 0777)"));
}

#[test]
fn a_good_library_says_what_it_holds() {
    let folder = Folder::new();
    let path = cc(&folder, "tests/plugins/module.c", "good.so", &[]);
    let library = load(&path);
    let info = &library.plugins()[0];
    assert_eq!(
        (
            info.kind.to_string(),
            info.name.as_str(),
            info.version.as_str()
        ),
        ("router".to_owned(), "first", "1.2.3")
    );
    assert_eq!((library.abi(), library.built_with()), ((1, 0), "cc"));
    let sum = std::process::Command::new("sha256sum")
        .arg(&path)
        .output()
        .unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert!(
        sum.starts_with(library.sha256()),
        "{sum} against {}",
        library.sha256()
    );
    assert_eq!(library.sha256().len(), 64);
}

#[test]
fn other_bytes_under_the_same_path_are_other_code() {
    let folder = Folder::new();
    let first = load(&cc(&folder, "tests/plugins/module.c", "same.so", &[]));
    let again = load(first.path());
    assert_eq!(first.sha256(), again.sha256());
    // Written over in place: a library mapped from this file would crash us now.
    let path = cc(&folder, "tests/plugins/moody.c", "same.so", &[]);
    let second = load(&path);
    assert_ne!(first.sha256(), second.sha256());
    assert_eq!(second.plugins()[0].name, "moody");
    assert_eq!(first.plugins()[0].name, "first");
    let options = common::patient(llmpick_plugin_host::Isolation::Inline);
    let arms = [llmpick_testkit::candidate(0)];
    for (library, name) in [(&first, "first"), (&second, "moody")] {
        let mut router = common::make(library, name, "", &options);
        let decision = router
            .select(&llmpick_testkit::select_request(&arms, 1))
            .unwrap();
        assert_eq!(decision.choices, [0]);
    }
}
