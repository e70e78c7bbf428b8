//! Fixed policies against their closed forms; the reference figures of ALGORITHMS 1.8.

use std::num::NonZeroUsize;

use llmpick_bandit::baselines::{Baseline, BaselineLearner, Fixed};
use llmpick_bandit::budget::BudgetMode;
use llmpick_bandit::c2mabv::{C2mabv, C2mabvConfig, CostScale};
use llmpick_bandit::cascade::{self, Order};
use llmpick_bandit::stats::{Delta, TableConfig};
use llmpick_bandit::{Learner, awc};
use llmpick_core::Mode;

use super::native::native;
use crate::{
    Environment, Estimate, PlayError, SimReport, SimSettings, Watch, optimum, simulate, svg,
};

pub fn settings(mode: Mode, max_arms: u32, budget: f64, rounds: u64, seeds: u32) -> SimSettings {
    SimSettings {
        mode,
        max_arms,
        budget,
        rounds,
        seeds,
        first_seed: 1,
        known_costs: false,
    }
}

fn baseline(baseline: Baseline) -> BaselineLearner {
    BaselineLearner::new(baseline, TableConfig::default()).unwrap()
}

fn play<L: Learner + Clone + Send + Sync + 'static>(
    environment: &Environment,
    settings: &SimSettings,
    learner: L,
) -> SimReport {
    let watch = Watch::default();
    simulate(environment, settings, "it", &native(learner), &watch).unwrap()
}

/// The settings of the reference figures.
pub fn figures(alpha_reward: f64, alpha_cost: f64, horizon: u64) -> C2mabv {
    let config = C2mabvConfig {
        alpha_reward,
        alpha_cost,
        delta: Delta::Horizon(horizon),
        cost_scale: CostScale::Fixed(1.0),
        awc: awc::Method::Greedy,
        order: Order::Cost,
        budget_mode: BudgetMode::Average,
        ..C2mabvConfig::default()
    };
    C2mabv::new(config).unwrap()
}

/// Always these arms of set S, in this order.
fn always(arms: &[&str]) -> BaselineLearner {
    let arms = arms.iter().map(|arm| (*arm).to_owned()).collect();
    baseline(Baseline::Fixed(Fixed::Arms(arms)))
}

/// Within five standard errors of the truth (the half-width of 40 seeds is two).
fn agrees(estimate: Estimate, truth: f64) {
    let margin = 2.5 * estimate.half_width().unwrap() + 1e-12;
    assert!(
        (estimate.mean - truth).abs() <= margin,
        "{estimate:?}, not {truth}"
    );
}

#[test]
fn a_fixed_set_earns_and_costs_what_it_must() {
    let world = Environment::synthetic();
    let names = ["s3", "s2", "s9"];
    let arms: Vec<_> = names
        .iter()
        .map(|name| {
            world
                .arms
                .iter()
                .find(|arm| arm.id.as_str() == *name)
                .unwrap()
        })
        .collect();
    let means: Vec<f64> = arms.iter().map(|arm| arm.mean).collect();
    let costs: Vec<f64> = arms.iter().map(|arm| world.mean_cost(arm)).collect();
    let whole: f64 = costs.iter().sum();
    let cases = [
        (Mode::Single, means[0], costs[0]),
        (Mode::SumUp, means.iter().sum(), whole),
        (Mode::AllIn, means.iter().product(), whole),
        (
            Mode::AnyWin,
            1.0 - means.iter().map(|mean| 1.0 - mean).product::<f64>(),
            cascade::expected_cost(&[0, 1, 2], &means, &costs),
        ),
    ];
    for (mode, reward, cost) in cases {
        let rho = 0.5;
        let settings = settings(mode, 3, rho, 2000, 40);
        let report = play(&world, &settings, always(&names));
        assert_eq!(report.fallbacks, 0);
        let last = report.checkpoints.last().unwrap();
        assert_eq!(last.t, 2000);
        // r(S; μ) of one set is no random number.
        assert!(
            (last.reward.mean - reward).abs() < 1e-9,
            "{mode:?} {last:?}"
        );
        let regret = 2000.0 * (optimum(&world, &settings) - reward);
        assert!(
            (last.regret.mean - regret).abs() < 1e-6,
            "{mode:?} {last:?}"
        );
        agrees(last.cost, cost);
        if cost > rho + 0.1 {
            agrees(last.violation, cost - rho);
        }
    }
}

#[test]
fn violation_and_hinge_differ_as_they_should() {
    let world = Environment::synthetic();
    // The dearest arm alone: y ≥ ρ always, so V = h = E[y] − ρ = 0.875 − 0.5.
    let dearest = play(
        &world,
        &settings(Mode::Single, 1, 0.5, 1000, 40),
        always(&["s9"]),
    );
    let last = dearest.checkpoints.last().unwrap();
    agrees(last.violation, 0.375);
    agrees(last.hinge, 0.375);
    // s4 alone costs U(0.09, 0.27): at ρ = 0.18 half the rounds cost too much, by 0.045 on
    // average, and the others save as much.
    let even = play(
        &world,
        &settings(Mode::Single, 1, 0.18, 4000, 40),
        always(&["s4"]),
    );
    let last = even.checkpoints.last().unwrap();
    agrees(last.hinge, 0.0225);
    assert!(last.violation.mean < 1e-3, "{last:?}");
    // No budget: nothing is violated.
    let free = play(
        &world,
        &settings(Mode::Single, 1, f64::INFINITY, 100, 2),
        always(&["s9"]),
    );
    let last = free.checkpoints.last().unwrap();
    assert_eq!(
        (last.violation.mean, last.hinge.mean, last.reward_per_hinge),
        (0.0, 0.0, None)
    );
}

#[test]
fn the_relaxed_optima_are_the_references() {
    let of = |world: &Environment, mode, rho| optimum(world, &settings(mode, 4, rho, 1, 1));
    let (s, g) = (Environment::synthetic(), Environment::gpqa());
    assert!((of(&s, Mode::SumUp, 0.5) - 2.4216).abs() < 5e-5);
    assert!((of(&g, Mode::SumUp, 0.4) - 3.0227).abs() < 5e-5);
    // Without a budget the best set is the N best arms.
    let best = 0.8485 * 0.8485 * 0.803 * 0.763;
    assert!((of(&g, Mode::AllIn, f64::INFINITY) - best).abs() < 1e-9);
    assert!((of(&s, Mode::Single, f64::INFINITY) - 0.732).abs() < 1e-12);
}

#[test]
fn sum_up_on_set_g_is_ordered_like_the_reference() {
    let world = Environment::gpqa();
    let settings = settings(Mode::SumUp, 4, 0.4, 4000, 10);
    let greedy = |budgeted| Baseline::EpsilonGreedy {
        epsilon: 0.1,
        budgeted,
    };
    let ratio = |report: SimReport| report.checkpoints.last().unwrap().reward_per_hinge.unwrap();
    let other = |b| ratio(play(&world, &settings, baseline(b)));
    let ours: Vec<f64> = [(0.3, 0.05), (1.0, 0.05), (0.3, 0.01), (1.0, 0.01)]
        .map(|(a, b)| ratio(play(&world, &settings, figures(a, b, 4000))))
        .to_vec();
    for (ratio, expected) in ours.iter().zip([26.9, 28.4, 29.7, 31.5]) {
        assert!((ratio / expected).ln().abs() < 0.15, "{ours:?}");
    }
    assert!(ours.windows(2).all(|pair| pair[0] < pair[1]), "{ours:?}");
    let budgeted = other(greedy(true));
    assert!(
        (budgeted / 22.9).ln().abs() < 0.2 && budgeted < ours[0],
        "{budgeted} {ours:?}"
    );
    for (blind, expected) in [
        (greedy(false), 3.1),
        (Baseline::Cucb { exploration: 1.5 }, 2.9),
        (Baseline::Thompson, 2.9),
    ] {
        let ratio = other(blind.clone());
        assert!((ratio / expected).ln().abs() < 0.1, "{blind:?}: {ratio}");
    }
}

#[test]
fn one_seed_gives_one_report_however_many_run_beside_it() {
    let world = Environment::synthetic();
    let run = |first_seed, seeds| {
        let settings = SimSettings {
            first_seed,
            ..settings(Mode::AnyWin, 3, 0.3, 300, seeds)
        };
        play(&world, &settings, figures(0.3, 0.05, 300))
    };
    assert_eq!(run(1, 5), run(1, 5));
    assert_ne!(run(1, 1).checkpoints, run(2, 1).checkpoints);
    let mean = |report: SimReport| report.checkpoints[0].cost.mean;
    let pair = (mean(run(3, 1)) + mean(run(4, 1))) / 2.0;
    assert!((mean(run(3, 2)) - pair).abs() < 1e-12);
    // Threads change nothing.
    let on = |threads| {
        let watch = Watch::new(NonZeroUsize::new(threads));
        let settings = settings(Mode::AnyWin, 3, 0.3, 300, 5);
        let learner = native(figures(0.3, 0.05, 300));
        let report = simulate(&world, &settings, "it", &learner, &watch).unwrap();
        assert_eq!(watch.rounds(), 5 * 300);
        report
    };
    assert_eq!(on(1), on(2));
    assert_eq!(on(2), run(1, 5));
    // Bit for bit, on any machine.
    let cost = mean(run(1, 1));
    assert_eq!(cost.to_bits(), GOLDEN, "{cost}: {:#x}", cost.to_bits());
}

#[test]
fn whoever_looks_on_can_stop_it() {
    let watch = Watch::default();
    watch.stop();
    let settings = settings(Mode::SumUp, 4, 0.5, 1_000_000_000, 3);
    let learner = native(figures(0.3, 0.05, 300));
    let world = Environment::synthetic();
    let stopped = simulate(&world, &settings, "it", &learner, &watch);
    assert_eq!(stopped, Err(PlayError::Stopped));
}

/// The mean cost of the first hundred rounds above.
const GOLDEN: u64 = 0x3fc2_bc8d_d70f_ee0c;

#[test]
fn the_plot_names_each_line_and_is_well_formed() {
    let world = Environment::synthetic();
    let settings = settings(Mode::SumUp, 4, 0.5, 1000, 3);
    let mut one = play(&world, &settings, figures(0.3, 0.05, 1000));
    one.router = "a<b&c".to_owned();
    let mut other = play(&world, &settings, baseline(Baseline::Thompson));
    other.router = "thompson".to_owned();
    let mut long = other.clone();
    long.router = "thompson,shrinkage=pooled,discount=0.997".to_owned();
    let picture = svg(&[one, other, long]);
    // A name too long for the margin is a letter, explained once.
    assert_eq!(picture.matches(">C<").count(), 4);
    assert_eq!(
        picture
            .matches(">C: thompson,shrinkage=pooled,discount=0.997<")
            .count(),
        1
    );
    assert_eq!(picture.matches("a&lt;b&amp;c").count(), 4);
    assert_eq!(picture.matches(">thompson<").count(), 4);
    assert_eq!(picture.matches("stroke-dasharray=\"7 3\"").count(), 4);
    assert_eq!(picture.matches(">bound of the theorem<").count(), 2);
    assert!(!picture.contains("NaN") && !picture.contains("inf"));
    let opened = picture.matches("<text").count();
    assert_eq!(opened, picture.matches("</text>").count());
    assert!(svg(&[]).ends_with("</svg>\n"));
}
