//! Whatever is wrong, one clear sentence says so, and nothing is lost.

use std::os::unix::fs::PermissionsExt;

use llmpick_stories::{Home, LARGE, SMALL, has_pool, models_dir};

#[test]
fn no_model_and_no_network() {
    let home = Home::new();
    let mut command = home.command(&["chat", "Hello", "--set", "store.offline=true"]);
    command.env("LLMPICK_STORE__MODELS_DIR", home.path("cache/empty"));
    let said: llmpick_stories::Said = command.output().unwrap().into();
    said.fails(3, &[SMALL, "offline"]);
}

#[test]
fn unknown_models_are_corrected() {
    let home = Home::new();
    home.run(&["pull", "smolm2-135m-instruct"])
        .fails(3, &["smollm2-135m-instruct"]);
    home.run(&["chat", "-m", "qwen2.5-coder-0.5b-instuct", "Hi"])
        .fails(3, &[LARGE]);
}

#[test]
fn files_that_are_no_models() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let whole = std::fs::read(models_dir().join(SMALL).join(format!("{SMALL}.gguf"))).unwrap();
    let check = |name: &str, bytes: &[u8], texts: &[&str]| {
        std::fs::write(home.path("work").join(name), bytes).unwrap();
        home.run(&["chat", "-m", &format!("./{name}"), "Hi", "--json"])
            .fails(5, texts);
    };
    check("torn.gguf", &whole[..whole.len() / 2], &["torn.gguf"]);
    check("header.gguf", &whole[..1000], &["header.gguf"]);
    check("text.gguf", b"This is a text, not a model.\n", &["GGUF"]);
    check("empty.gguf", b"", &["empty.gguf"]);

    let mut alien = whole.clone();
    replace_first(&mut alien, b"llama", b"alien");
    check("alien.gguf", &alien, &["alien"]);
    home.run(&["chat", "-m", "./nowhere.gguf", "Hi"])
        .fails(3, &["nowhere.gguf"]);
}

fn replace_first(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let at = bytes
        .windows(old.len())
        .position(|window| window == old)
        .unwrap();
    bytes[at..at + old.len()].copy_from_slice(new);
}

#[test]
fn a_prompt_beyond_the_context() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let prompt = "word ".repeat(9000);
    home.run_with(&["chat", "-m", SMALL], prompt.as_bytes())
        .fails(6, &["8192", "token"]);
}

#[test]
fn text_that_is_no_text() {
    let home = Home::new();
    home.run_with(&["chat"], b"caf\xe9 au lait")
        .fails(2, &["UTF-8"]);
    home.run_with(&["chat"], b"  \n").fails(2, &["empty"]);
}

#[test]
fn settings_that_do_not_exist() {
    let home = Home::new();
    home.settings("[routr]\nplugin = \"c2mabv\"\n");
    home.run(&["config", "show"]).fails(9, &["routr", "router"]);
    home.settings("[router]\nmode = \"sometimes\"\n");
    home.run(&["config", "show"])
        .fails(9, &["router.mode", "single"]);
    home.settings("[router\n");
    home.run(&["config", "show"]).fails(9, &["llmpick.toml"]);
    home.settings("");
    home.run(&["config", "show", "--set", "router.plugn=x"])
        .fails(9, &["router.plugin"]);
}

#[test]
fn a_ledger_that_is_none_stays_untouched() {
    let home = Home::new();
    std::fs::create_dir_all(home.path("data/llmpick")).unwrap();
    let ledger = home.path("data/llmpick/ledger.db");
    std::fs::write(&ledger, "not a database, but somebody's file").unwrap();
    home.run(&["route", "stats"]).fails(8, &["ledger.db"]);
    assert_eq!(
        std::fs::read_to_string(&ledger).unwrap(),
        "not a database, but somebody's file"
    );
}

#[test]
fn a_plugin_that_is_not_there() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let said = home.run(&["chat", "Hi", "--set", "router.plugin=nosuch"]);
    said.fails(7, &["nosuch"]);
}

#[test]
fn a_home_that_cannot_be_written() {
    let home = Home::new();
    // Root writes everywhere, so a file in the folder's place stands for a read-only home.
    std::fs::remove_dir_all(home.path("data")).unwrap();
    std::fs::write(home.path("data"), "").unwrap();
    std::fs::set_permissions(home.path("data"), std::fs::Permissions::from_mode(0o444)).unwrap();
    home.run(&["route", "stats"]).fails(8, &["data"]);
}

/// Builds one of the broken plugins of `tests/plugins`.
fn broken_plugin(home: &Home, source: &str, fault: &str) -> String {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = home.path("work").join(format!("lib{source}.so"));
    let built = std::process::Command::new("cc")
        .args([
            "-std=gnu11",
            "-O1",
            "-shared",
            "-fPIC",
            &format!("-DFAULT={fault}"),
        ])
        .arg("-I")
        .arg(here.join("../crates/llmpick-plugin-abi/include"))
        .arg("-o")
        .arg(&library)
        .arg(here.join("plugins").join(format!("{source}.c")))
        .arg("-lm")
        .status();
    assert!(built.unwrap().success(), "{source} does not build");
    // The host refuses what others can write; some machines' temporary folders are like that.
    std::fs::set_permissions(&library, std::fs::Permissions::from_mode(0o755)).unwrap();
    library.to_str().unwrap().to_owned()
}

#[test]
fn a_plugin_for_another_abi_says_which() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let library = broken_plugin(&home, "module", "OTHER_MAJOR");
    let plugin = format!("router.plugin=\"{library}\"");
    home.run(&["chat", "Hi", "--set", &plugin])
        .fails(7, &["ABI", "1.0"]);
}

#[test]
fn a_plugin_that_hangs_or_answers_nonsense_costs_no_answer() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let library = broken_plugin(&home, "moody", "0");
    for fault in ["spin", "range"] {
        home.settings(&format!(
            "[router]\nplugin = \"{library}\"\n[router.config]\nfault = \"{fault}\"\n"
        ));
        let answer = home
            .run(&["chat", "Say hi.", "--max-tokens", "4", "--json"])
            .ok()
            .json();
        let route = answer["route_id"].as_str().unwrap();
        let shown = home.run(&["route", "show", route]).ok().out;
        assert!(
            shown.contains("the built-in fallback chose"),
            "{fault}:\n{shown}"
        );
    }
}
