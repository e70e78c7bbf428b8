//! What is installed, what a name means, and what is refused.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::support::{Home, Recorder, read, sha256, whole};
use crate::Store;

const NOWHERE: &str = "[[source]]\nkind = \"file\"\npath = \"/nowhere/tiny.gguf\"\n";

/// A home where somebody put the file of `tiny` by hand.
fn by_hand(content: &[u8]) -> Home {
    let home = Home::new();
    home.card("tiny", b"published", NOWHERE);
    fs::create_dir_all(home.model_dir("tiny")).unwrap();
    fs::write(home.installed_file("tiny"), content).unwrap();
    home
}

#[test]
fn a_file_without_a_sidecar_is_hashed_once() {
    let home = by_hand(b"published");
    let model = home.store().installed("tiny").unwrap();
    assert_eq!(
        (model.bytes, model.source.as_str()),
        (9, "a file that was here")
    );
    let sidecar = home.model_dir("tiny").join("tiny.json");
    let text = fs::read_to_string(&sidecar).unwrap();
    assert!(text.contains(&sha256(b"published")), "{text}");

    // From now on length and time are enough: other bytes with both the same pass.
    let file = home.installed_file("tiny");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, b"pUblished").unwrap();
    fs::File::open(&file)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    assert_eq!(home.store().installed("tiny"), Some(model));
    // A new time has it hashed again, and found out.
    fs::write(&file, b"pUblished").unwrap();
    let store = home.store();
    assert_eq!(store.installed("tiny"), None);
    assert_eq!(store.list_installed().unwrap(), []);
    let said = whole(&store.resolve("tiny").unwrap_err());
    assert!(
        said.contains("are damaged (`tiny.gguf` has the sha256"),
        "{said}"
    );
    assert!(
        said.ends_with("run `llmpick pull tiny` to fetch them again"),
        "{said}"
    );
}

#[test]
fn a_truncated_file_is_not_a_model() {
    let home = by_hand(b"publ");
    let said = whole(&home.store().resolve("tiny").unwrap_err());
    assert!(
        said.contains("`tiny.gguf` has 4 bytes instead of 9"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_model_is_replaced_from_a_file_of_the_user() {
    let home = by_hand(b"damaged!!");
    let own = home.dir.path().join("own.gguf");
    let source = format!(
        "[[source]]\nkind = \"file\"\npath = \"{}\"\n",
        own.display()
    );
    home.card("tiny", b"published", &source);

    fs::write(&own, b"wrong too").unwrap();
    let error = home
        .store()
        .pull("tiny", Recorder::new())
        .await
        .unwrap_err();
    assert!(whole(&error).contains("wrong sha256"), "{}", whole(&error));
    // It is the user's, so it stays.
    assert_eq!(read(&own), b"wrong too");

    fs::write(&own, b"published").unwrap();
    let store = home.store();
    let model = store.pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(read(&model.path), b"published");
    assert_eq!(store.list_installed().unwrap(), [model]);
    store.remove("tiny").unwrap();
    assert_eq!(read(&own), b"published");
}

#[test]
fn names_and_paths_resolve() {
    let home = by_hand(b"published");
    let store = home.store();
    let resolved = store.resolve("tiny").unwrap();
    assert_eq!(resolved.path, home.installed_file("tiny"));
    assert_eq!(resolved.card.unwrap().name, "tiny");

    let path = home.dir.path().join("My Model v1.2.Q4_K.gguf");
    fs::write(&path, "x").unwrap();
    let resolved = store.resolve(path.to_str().unwrap()).unwrap();
    assert_eq!(resolved.arm_name, "My-Model-v1.2.Q4_K");
    assert_eq!((resolved.path, resolved.card), (path, None));

    let hub = home.dir.path().join("Own-1.5B");
    fs::create_dir(&hub).unwrap();
    fs::write(hub.join("config.json"), "{}").unwrap();
    fs::write(hub.join("model.safetensors"), "x").unwrap();
    for path in [
        hub.clone(),
        hub.join("model.safetensors"),
        hub.join("../Own-1.5B/"),
    ] {
        let resolved = store.resolve(path.to_str().unwrap()).unwrap();
        assert_eq!(resolved.arm_name, "Own-1.5B");
        assert_eq!((resolved.path, resolved.card), (path, None));
    }

    let folder = home.dir.path().display().to_string();
    for (text, expected) in [
        (
            "gemma-3-270m",
            "`gemma-3-270m` is not pulled yet: run `llmpick pull gemma-3-270m`",
        ),
        (
            "gema-3-270m",
            "no model is named `gema-3-270m`; did you mean `gemma-3-270m`?",
        ),
        (
            "quux",
            "no model is named `quux`; `llmpick ls` shows the names there are",
        ),
        ("no/such.gguf", "there is no file `no/such.gguf`"),
        ("../tiny", "there is no file `../tiny`"),
        (
            "",
            "no model is named ``; `llmpick ls` shows the names there are",
        ),
        (
            &folder,
            &format!(
                "`{folder}` cannot be used as a model: it is a folder without a `config.json`"
            ),
        ),
    ] {
        assert_eq!(whole(&store.resolve(text).unwrap_err()), *expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_and_a_cache_that_cannot_be_written_are_one_sentence() {
    let mut home = Home::new();
    home.card("tiny", b"published", NOWHERE);
    let store = home.store();
    let said = whole(&store.pull("tinny", Recorder::new()).await.unwrap_err());
    assert_eq!(
        said,
        "pull `tinny`: no model is named `tinny`; did you mean `tiny`?"
    );
    let said = whole(&store.pull("../tiny", Recorder::new()).await.unwrap_err());
    assert!(said.contains("no model is named `../tiny`"), "{said}");
    let said = whole(&store.pull("tiny", Recorder::new()).await.unwrap_err());
    assert_eq!(
        said,
        "pull `tiny`: no source gave it: file /nowhere/tiny.gguf: not there"
    );

    let file = home.dir.path().join("file");
    fs::write(&file, "").unwrap();
    home.options.models_dir = file.join("models");
    let said = whole(
        &home
            .store()
            .pull("tiny", Recorder::new())
            .await
            .unwrap_err(),
    );
    let expected = format!("the model cache `{}", file.display());
    assert!(
        said.contains(&expected) && said.contains("cannot be written"),
        "{said}"
    );
}

#[test]
fn removing_is_refused_where_there_is_nothing_or_somebody_works() {
    let home = by_hand(b"published");
    let store = home.store();
    for (name, expected) in [
        ("gemma-3-270m", "`gemma-3-270m` is not installed"),
        (
            "nonsense",
            "no model is named `nonsense`; `llmpick ls` shows the names there are",
        ),
        (
            "..",
            "no model is named `..`; `llmpick ls` shows the names there are",
        ),
    ] {
        assert_eq!(whole(&store.remove(name).unwrap_err()), expected);
    }
    let locks = home.options.models_dir.join(".locks");
    fs::create_dir_all(&locks).unwrap();
    let lock = fs::File::create(locks.join("tiny.lock")).unwrap();
    lock.lock().unwrap();
    assert!(whole(&store.remove("tiny").unwrap_err()).contains("is being pulled"));
    drop(lock);
    assert!(store.remove("tiny").unwrap() >= 9);
    assert!(!home.model_dir("tiny").exists());
}

#[test]
fn a_model_of_an_older_catalogue_is_still_listed() {
    let home = by_hand(b"published");
    let model = home.store().installed("tiny").unwrap();
    fs::remove_file(home.dir.path().join("cards/tiny.toml")).unwrap();
    let store: Store = home.store();
    assert!(store.card("tiny").is_err());
    assert_eq!(store.list_installed().unwrap(), [model]);
    assert!(store.remove("tiny").is_ok());
}

/// The weights on this machine, if any, against the published hashes.
#[test]
fn the_installed_models_of_this_user_are_right() {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
    let cache =
        cache.or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let models = std::env::var_os("LLMPICK_TEST_MODELS").map(std::path::PathBuf::from);
    let Some(models) = models.or_else(|| Some(cache?.join("llmpick/models"))) else {
        println!("skipped: no home folder");
        return;
    };
    let mut home = Home::new();
    home.options.models_dir = models;
    let store = home.store();
    for name in crate::pool("default").unwrap() {
        match store.resolve(name) {
            Ok(model) => assert!(model.path.is_file()),
            Err(crate::ResolveError::NotPulled { .. }) => {
                let required = std::env::var_os("LLMPICK_REQUIRE_MODELS").is_some_and(|v| v == "1");
                assert!(!required, "{name} is not pulled");
                println!("skipped: {name} is not pulled");
            }
            Err(error) => panic!("{}", whole(&error)),
        }
    }
}
