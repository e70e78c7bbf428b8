//! What ALGORITHMS 1.8, 1.9 and 2.3 measured, measured again with the shipped plugins.

use llmpick_core::Mode;

use super::plugins::source;
use super::simulating::settings;
use crate::{
    ConvergeReport, ConvergeSettings, Environment, SimReport, SimSettings, Watch, converge,
    simulate,
};

/// The reference's settings of c2mabv for a horizon.
fn figures(alphas: &str, horizon: u64) -> String {
    format!(
        "c2mabv,{alphas},horizon={horizon},cost_scale=1,awc=greedy,order=cost,budget_mode=average"
    )
}

/// Plays a plugin; `None` with a line where it is not built.
fn play(world: &Environment, settings: &SimSettings, router: &str) -> Option<SimReport> {
    let source = source(router)?;
    let start = || source.start();
    let report = simulate(world, settings, source.label(), &start, &Watch::default()).unwrap();
    assert_eq!(report.fallbacks, 0, "{:?}", report.fallback_reason);
    Some(report)
}

fn ratio(report: &SimReport) -> f64 {
    report.checkpoints.last().unwrap().reward_per_hinge.unwrap()
}

#[test]
fn any_win_on_set_s_is_ordered_like_the_reference() {
    let world = Environment::synthetic();
    let settings = settings(Mode::AnyWin, 4, 0.5, 1000, 10);
    let of = |router: &str| play(&world, &settings, router).map(|report| ratio(&report));
    let Some(ours) = of(&figures("alpha_mu=0.3,alpha_c=0.05", 1000)) else {
        return;
    };
    let others = [
        "baselines:epsilon-greedy,budgeted=true",
        "baselines:epsilon-greedy,budgeted=false",
        "baselines:thompson",
        "baselines:cucb",
        "baselines:fixed,arms=[\"s9\"]",
    ]
    .map(|router| of(router).unwrap());
    println!("any win on S: {ours} {others:?}");
    let [budgeted, greedy, thompson, cucb, dearest] = others;
    assert!(budgeted > ours && ours > greedy, "{ours} {others:?}");
    assert!(greedy.min(thompson) > cucb && cucb > dearest, "{others:?}");
    assert!((dearest / 1.9).ln().abs() < 0.1, "{dearest}");
}

#[test]
fn the_violation_decays_like_one_over_the_root_of_t() {
    let world = Environment::synthetic();
    let settings = settings(Mode::SumUp, 4, 0.5, 8000, 10);
    let Some(report) = play(
        &world,
        &settings,
        &figures("alpha_mu=0.3,alpha_c=0.05", 8000),
    ) else {
        return;
    };
    let points = report.checkpoints.iter().filter(|point| point.t >= 500);
    let points: Vec<(f64, f64)> = points
        .map(|point| ((point.t as f64).ln(), point.violation.mean.ln()))
        .collect();
    let n = points.len() as f64;
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let covariance: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let slope = covariance / points.iter().map(|p| (p.0 - x) * (p.0 - x)).sum::<f64>();
    let last = report.checkpoints.last().unwrap();
    let regret = last.regret.mean / (8000.0 * 8000f64.ln()).sqrt();
    println!(
        "slope {slope}, V(8000) {}, regret {regret}",
        last.violation.mean
    );
    assert!((-0.75..=-0.3).contains(&slope), "{slope}");
    assert!(last.violation.mean <= 0.03, "{last:?}");
    assert!(regret <= 1.0, "{regret}");
}

#[test]
fn forgetting_pays_after_a_shock() {
    let world = Environment::drift();
    let settings = settings(Mode::SumUp, 4, 0.5, 4000, 10);
    let of = |discount: &str| {
        let router = figures("alpha_mu=0.3,alpha_c=0.05", 4000);
        let report = play(&world, &settings, &format!("{router},discount={discount}"))?;
        let shock = report.shock.unwrap();
        println!(
            "{discount}: {:.3} / {:.3}, optimum {:.3} / {:.3}",
            shock.before.mean, shock.after.mean, report.optimum, shock.optimum_after
        );
        assert!((shock.optimum_after - 2.55).abs() < 0.005, "{shock:?}");
        Some((shock.before.mean, shock.after.mean))
    };
    let Some(keeps) = of("1") else { return };
    let [slow, forgets, quick] = ["0.999", "0.997", "0.99"].map(|discount| of(discount).unwrap());
    assert!(forgets.1 - keeps.1 >= 0.05, "{keeps:?} {forgets:?}");
    assert!(
        forgets.1 > slow.1.min(quick.1),
        "{slow:?} {forgets:?} {quick:?}"
    );
    assert!(
        keeps.0 > quick.0,
        "forgetting costs something while nothing changes"
    );
}

/// Plays one of PickLLM's learners on scores alone.
fn settle(settings: &ConvergeSettings, learner: &str) -> Option<ConvergeReport> {
    let router = format!("pickllm,learner={learner},weight_cost=0,weight_latency=0");
    let source = source(&router)?;
    let start = || source.start();
    let report = converge(settings, source.label(), &start, &Watch::default()).unwrap();
    println!(
        "{learner}: P(best) {:.3}, median {:?}",
        report.best.mean, report.median_steps
    );
    Some(report)
}

#[test]
fn pickllm_settles_as_the_reference_did() {
    let settings = ConvergeSettings::reference();
    let q = ConvergeSettings {
        steps: 500,
        ..settings.clone()
    };
    for (learner, best, median) in [
        ("automaton,b=0.05", 0.977, Some(418.0)),
        ("automaton,b=0.1", 0.867, Some(170.0)),
        ("automaton,b=0.2", 0.647, Some(63.0)),
        ("automaton,b=0.3", 0.537, Some(38.0)),
        ("automaton,b=0.5", 0.443, Some(17.0)),
        ("pursuit,b=0.05", 1.0, Some(105.0)),
        ("pursuit,b=0.1", 1.0, Some(61.0)),
        (
            "q,alpha=0.1,q_start=0,epsilon_min=0.02,lock=false",
            0.48,
            None,
        ),
        (
            "q,alpha=0.1,q_start=1,epsilon_min=0.02,lock=false",
            1.0,
            None,
        ),
        (
            "q,alpha=0.3,q_start=0,epsilon_min=0.02,lock=false",
            0.97,
            None,
        ),
        (
            "q,alpha=0.3,q_start=1,epsilon_min=0.02,lock=false",
            0.99,
            None,
        ),
    ] {
        let settings = if median.is_some() { &settings } else { &q };
        let Some(report) = settle(settings, learner) else {
            return;
        };
        // .03, and two standard errors of 300 seeds there and 300 here.
        let spread = 2.0 * (best * (1.0 - best) * 2.0 / 300f64).sqrt();
        assert!(
            (report.best.mean - best).abs() <= 0.03 + spread,
            "{report:?}"
        );
        if let Some(median) = median {
            let steps = report.median_steps.unwrap() as f64;
            assert!((steps - median).abs() <= 6.0 + 0.08 * median, "{report:?}");
        }
    }
}
