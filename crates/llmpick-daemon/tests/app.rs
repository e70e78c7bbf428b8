//! The parts together: what is missing is told, and the rest goes on.

#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

use camino::Utf8PathBuf;
use llmpick_core::{ContextKey, Locality, Price};
use llmpick_daemon::plugins::PluginError;
use llmpick_daemon::{
    App, AppError, AppOptions, ModelError, Paths, Settings, SettingsError, SettingsSources,
    open_ledger,
};
use tempfile::TempDir;

fn load(folder: &TempDir, flags: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let root = Utf8PathBuf::from_path_buf(folder.path().to_path_buf()).unwrap();
    let sources = SettingsSources {
        overrides: flags
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        directory: root.clone(),
        system_file: root.join("none.toml"),
        ..SettingsSources::default()
    };
    Settings::load_with(sources, Paths::below(root.join("h")))
}

fn settings(folder: &TempDir, flags: &[(&str, &str)]) -> Settings {
    load(folder, flags).unwrap()
}

const TOLERANT: AppOptions = AppOptions {
    tolerate_plugin: true,
};

#[test]
fn a_missing_plugin_stops_a_command_and_not_the_daemon() {
    let folder = TempDir::new().unwrap();
    let settings = settings(&folder, &[("router.plugin", "no-such-router")]);
    let error = App::open(settings.clone(), AppOptions::default())
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error, AppError::Plugin(PluginError::Find(_))),
        "{error:?}"
    );
    assert!(error.to_string().contains("no-such-router"));
    let app = App::open(settings, TOLERANT).unwrap();
    assert!(app.router_fault().unwrap().contains("no-such-router"));
    assert_ne!(app.dispatch().router_name(), "no-such-router");
}

#[test]
fn a_file_that_is_no_plugin_is_told() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("text.so");
    std::fs::write(&file, "not a library").unwrap();
    let settings = settings(&folder, &[("router.plugin", file.to_str().unwrap())]);
    let error = App::open(settings, AppOptions::default())
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error, AppError::Plugin(PluginError::Load(_))),
        "{error:?}"
    );
}

#[test]
fn a_model_that_is_not_here_is_an_arm_that_says_how_to_get_it() {
    let folder = TempDir::new().unwrap();
    let app = App::open(
        settings(&folder, &[("compute.usd_per_hour", "0.5")]),
        TOLERANT,
    )
    .unwrap();
    let arms = app.dispatch().arms();
    assert_eq!(arms.len(), 2);
    let arm = app.arm("smollm2-135m-instruct").unwrap();
    assert!(
        arm.state()
            .unavailable
            .unwrap()
            .contains("llmpick pull smollm2-135m-instruct")
    );
    assert_eq!(arm.arm().context_tokens, 8192);
    assert_eq!(arm.arm().price, Price::PerHour { usd: 0.5 });
    assert!(app.arm("nobody").is_none());
    let error = app
        .local_backend("smollm2-135m-instruct")
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, ModelError::Resolve(_)), "{error:?}");
    let text = folder.path().join("letter.gguf");
    std::fs::write(&text, "Dear Sir or Madam").unwrap();
    let error = app
        .local_backend(text.to_str().unwrap())
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().contains("letter.gguf"), "{error}");
}

#[test]
fn remotes_are_arms_with_the_price_of_the_settings() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("h/config/llmpick.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(
        &file,
        "[[remote]]\nname = \"far\"\nbase_url = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\ncontext_tokens = 99\n\
         input_usd_per_mtok = 1\noutput_usd_per_mtok = 2.5\napi_key_env = \"NOT_SET\"\n",
    )
    .unwrap();
    let app = App::open(settings(&folder, &[]), TOLERANT).unwrap();
    let far = app.arm("far").unwrap();
    assert_eq!(far.arm().locality, Locality::Remote);
    assert_eq!(
        far.arm().price,
        Price::PerToken {
            input_usd: 1.0,
            output_usd: 2.5
        }
    );
    assert!(far.state().unavailable.unwrap().contains("NOT_SET"));
}

#[test]
fn a_limit_is_set_changed_and_taken_back() {
    let folder = TempDir::new().unwrap();
    let limit = |flags: &[(&str, &str)]| {
        let ledger = open_ledger(&settings(&folder, flags)).unwrap();
        ledger
            .budget("total", 0)
            .unwrap()
            .limit
            .map(|limit| limit.usd())
    };
    assert_eq!(limit(&[]), None);
    assert_eq!(limit(&[("budget.limit_usd", "2")]), Some(2.0));
    assert_eq!(
        limit(&[("budget.limit_usd", "3"), ("budget.window", "1day")]),
        Some(3.0)
    );
    assert_eq!(limit(&[]), None);
}

#[test]
fn what_others_must_not_read_is_in_a_folder_of_our_own() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let settings = settings(&folder, &[]);
    open_ledger(&settings).unwrap();
    let mode = std::fs::metadata(&settings.paths.data)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_corrupt_ledger_is_told_and_left_as_it_is() {
    let folder = TempDir::new().unwrap();
    let settings = settings(&folder, &[]);
    std::fs::create_dir_all(&settings.paths.data).unwrap();
    std::fs::write(
        &settings.ledger.path,
        "no database, no database, no database",
    )
    .unwrap();
    let error = App::open(settings.clone(), TOLERANT).map(drop).unwrap_err();
    assert!(matches!(error, AppError::Ledger(_)), "{error:?}");
    assert!(
        std::fs::read_to_string(&settings.ledger.path)
            .unwrap()
            .starts_with("no database")
    );
}

#[test]
fn texts_are_graded_by_name_or_by_whoever_can() {
    let folder = TempDir::new().unwrap();
    let app = App::open(settings(&folder, &[]), TOLERANT).unwrap();
    let grade = |reply: &str, reference: &str, scorer| {
        app.score("?", reply, reference, scorer).map(f64::from)
    };
    assert_eq!(grade("It is 42.", "42", None), Some(1.0));
    assert_eq!(grade("Paris", "Paris", Some("exact")), Some(1.0));
    assert_eq!(grade("London", "Paris", Some("exact")), Some(0.0));
    assert_eq!(grade("London", "Paris", Some("no-such-scorer")), None);
    // Without its plugin, no fresh learner can be made; that is told.
    let isolated = app.isolate_learner(&ContextKey("x".into()));
    assert!(matches!(isolated, Err(AppError::Plugin(_))));
}
