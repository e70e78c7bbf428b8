//! The shipped plugins through the real loader, where they have been built.

use std::sync::Arc;

use camino::Utf8PathBuf;
use llmpick_bandit::baselines::{Baseline, BaselineLearner};
use llmpick_bandit::stats::TableConfig;
use llmpick_core::Mode;
use llmpick_plugin_host::{Library, LoadOptions, find};

use super::native::native;
use super::simulating::{figures, settings};
use crate::{Environment, RouterSource, SimReport, SourceError, Watch, simulate};

/// The shipped library of this name, built beside this test (`target/release`); without it the
/// test is skipped with a line.
fn library(name: &str) -> Option<Arc<Library>> {
    let test = std::env::current_exe().unwrap();
    let folder = test
        .parent()
        .and_then(|deps| deps.parent())
        .unwrap()
        .to_owned();
    let folder = Utf8PathBuf::try_from(folder).unwrap();
    let Ok(path) = find(&[folder], name) else {
        println!("skipped: the plugin {name} is not built beside this test");
        return None;
    };
    // Target folders may be writable by the group; that is not what is tested here.
    Some(Library::load(&path, &LoadOptions::ANYWHERE).unwrap())
}

/// A router as the command line names it, or `None` with a line where it is not built.
pub fn source(text: &str) -> Option<RouterSource> {
    let (name, settings) = text.split_once(',').unwrap_or((text, ""));
    let library = library(name.split(':').next().unwrap())?;
    let settings = settings.split(',').filter(|setting| !setting.is_empty());
    Some(RouterSource::of_library(library, name, settings).unwrap())
}

fn curves(report: SimReport) -> SimReport {
    SimReport {
        router: String::new(),
        ..report
    }
}

#[test]
fn a_loaded_plugin_plays_exactly_like_its_learner() {
    let (Some(ours), Some(baselines)) = (library("c2mabv"), library("baselines")) else {
        return;
    };
    let (world, watch) = (Environment::gpqa(), Watch::default());
    let figures_of = [
        "horizon=500",
        "cost_scale=1",
        "awc=greedy",
        "order=cost",
        "budget_mode=average",
    ];
    for mode in [Mode::Single, Mode::AnyWin, Mode::SumUp, Mode::AllIn] {
        let settings = settings(mode, 3, 0.3, 500, 3);
        let source = RouterSource::of_library(ours.clone(), "c2mabv", figures_of.into_iter());
        let source = source.unwrap();
        let loaded = simulate(
            &world,
            &settings,
            source.label(),
            &|| source.start(),
            &watch,
        )
        .unwrap();
        assert_eq!(loaded.fallbacks, 0, "{:?}", loaded.fallback_reason);
        let learner = native(figures(0.3, 0.05, 500));
        let inside = simulate(&world, &settings, "", &learner, &watch).unwrap();
        assert_eq!(curves(loaded), inside);
        let name = "baselines:thompson";
        let source = RouterSource::of_library(baselines.clone(), name, [].into_iter()).unwrap();
        let loaded = simulate(
            &world,
            &settings,
            source.label(),
            &|| source.start(),
            &watch,
        )
        .unwrap();
        let thompson = BaselineLearner::new(Baseline::Thompson, TableConfig::default());
        let inside = simulate(&world, &settings, "", &native(thompson.unwrap()), &watch).unwrap();
        assert_eq!(curves(loaded), inside);
    }
}

#[test]
fn a_router_that_cannot_be_played_is_told_before_the_first_round() {
    let (Some(ours), Some(baselines)) = (library("c2mabv"), library("baselines")) else {
        return;
    };
    let open = |library: &Arc<Library>, name: &str, setting: &'static str| {
        let settings = Some(setting).filter(|s| !s.is_empty()).into_iter();
        RouterSource::of_library(library.clone(), name, settings)
    };
    let error = open(&baselines, "baselines", "").unwrap_err();
    assert!(matches!(&error, SourceError::Which { .. }), "{error}");
    assert!(error.to_string().contains("baselines:NAME"), "{error}");
    let error = open(&ours, "c2mabv", "alpha_c=-1").unwrap_err();
    assert!(matches!(&error, SourceError::Create(_)), "{error}");
    let error = open(&ours, "c2mabv:other", "").unwrap_err();
    assert!(matches!(&error, SourceError::Create(_)), "{error}");
    let source = open(&baselines, "baselines:cucb", "exploration=0.5").unwrap();
    assert_eq!(source.label(), "cucb,exploration=0.5");
    let missing = RouterSource::open(&[], "nowhere", &[]).unwrap_err();
    assert!(matches!(missing, SourceError::Find(_)), "{missing}");
}
