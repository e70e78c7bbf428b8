//! Curves as an SVG: what a simulation or a replay came to, against rounds.
//!
//! Made for print: black and grey alone, lines told apart by dashes and marks, each named at
//! its end. Rounds are drawn on a logarithmic axis; grey bands are 95 % intervals. Violation,
//! hinge and regret are drawn on logarithmic axes, too, since a bound that holds for any world
//! lies far above what one world shows; what is not above 0 lies on the axis's floor.

use std::fmt::Write;

use llmpick_core::Mode;

use crate::{Estimate, ReplayReport, SimReport};

const PANEL: (f64, f64) = (520.0, 300.0);
/// Around each panel's axes: left, top, right, bottom. The right holds the names.
const MARGIN: [f64; 4] = [62.0, 30.0, 158.0, 36.0];
const TITLE: f64 = 34.0;
/// Names of lines stay so far apart.
const LEADING: f64 = 12.0;
/// A longer name does not fit beside a panel; its line is named by a letter, and the key below
/// the panels says which it is.
const LONGEST: usize = 22;
/// A logarithmic axis spans at most so many powers of ten below its largest value.
const DECADES: f64 = 6.0;

/// Dashes and grey of each line in turn.
const STYLES: [(&str, &str); 8] = [
    ("none", "#000"),
    ("7 3", "#000"),
    ("2 3", "#000"),
    ("9 3 2 3", "#000"),
    ("none", "#777"),
    ("7 3", "#777"),
    ("2 3", "#777"),
    ("9 3 2 3", "#777"),
];

/// One line of a panel.
struct Line {
    name: String,
    points: Vec<(u64, Estimate)>,
}

/// A level or a bound that is no measurement: thin, grey, named on the line.
struct Guide {
    name: String,
    points: Vec<(u64, f64)>,
}

/// One picture with its own axes.
struct Panel {
    title: String,
    axis: Axis,
    lines: Vec<Line>,
    guides: Vec<Guide>,
}

#[derive(Clone, Copy, PartialEq)]
enum Axis {
    /// From wherever the values are.
    Close,
    /// From 0.
    Zero,
    /// Powers of ten.
    Powers,
}

/// The picture of these reports, one line for each, with the paper's bounds of violation and
/// regret. All should share a world and its settings; the first one's are in the title.
pub fn svg(reports: &[SimReport]) -> String {
    let line = |of: fn(&crate::Checkpoint) -> Estimate| {
        let line = |(place, report): (usize, &SimReport)| Line {
            name: mark(place, &report.router),
            points: report.checkpoints.iter().map(|p| (p.t, of(p))).collect(),
        };
        reports.iter().enumerate().map(line).collect()
    };
    let bound = |name: &str, of: fn(&SimReport, f64) -> f64| {
        let guide = |report: &SimReport| Guide {
            name: name.to_owned(),
            points: (report.checkpoints.iter())
                .map(|point| (point.t, of(report, point.t as f64)))
                .collect(),
        };
        let first = reports.first().filter(|report| report.budget.is_finite());
        first.map(guide).into_iter().collect()
    };
    let optimum = |report: &SimReport| Guide {
        name: "relaxed optimum".to_owned(),
        points: level(&report.checkpoints, |p| p.t, report.optimum),
    };
    let panels = [
        Panel {
            title: "reward per round".to_owned(),
            axis: Axis::Close,
            lines: line(|point| point.reward),
            guides: reports.first().map(optimum).into_iter().collect(),
        },
        Panel {
            title: "violation V = [mean cost − ρ]⁺".to_owned(),
            axis: Axis::Powers,
            lines: line(|point| point.violation),
            guides: bound("bound of the theorem", SimReport::violation_bound),
        },
        Panel {
            title: "hinge h = mean [cost − ρ]⁺".to_owned(),
            axis: Axis::Powers,
            lines: line(|point| point.hinge),
            guides: Vec::new(),
        },
        Panel {
            title: "regret, summed".to_owned(),
            axis: Axis::Powers,
            lines: line(|point| point.regret),
            guides: bound("bound of the theorem", SimReport::regret_bound),
        },
    ];
    let names = reports.iter().map(|report| report.router.as_str());
    let title = reports.first().map(sim_title);
    picture(&title.unwrap_or_default(), "round t", &panels, names)
}

/// The picture of a replay under one budget: reward and use of the budget so far, one line for
/// each router, with the references as levels.
pub fn replay_svg(reports: &[ReplayReport]) -> String {
    let line = |of: fn(&crate::ReplayPoint) -> Option<Estimate>| {
        let line = |(place, report): (usize, &ReplayReport)| Line {
            name: mark(place, &replay_name(report)),
            points: (report.checkpoints.iter())
                .filter_map(|point| Some((point.queries, of(point)?)))
                .collect(),
        };
        reports.iter().enumerate().map(line).collect()
    };
    let mut guides = Vec::new();
    if let Some(report) = reports.first() {
        let found = &report.references;
        let mut level = |name: &str, value: f64| {
            guides.push(Guide {
                name: name.to_owned(),
                points: level(&report.checkpoints, |p| p.queries, value),
            });
        };
        level("best static mix", found.static_mix.figure.reward);
        level("any model", found.random.reward);
        if report.budget_use.is_none() {
            level(
                "best per context",
                found.best_per_context.map_or(f64::NAN, |f| f.reward),
            );
        }
    }
    let budget = reports.first().filter(|report| report.budget_use.is_some());
    let whole = budget.map(|report| Guide {
        name: "all of it".to_owned(),
        points: level(&report.checkpoints, |p| p.queries, 1.0),
    });
    let costs = match budget {
        Some(_) => Panel {
            title: "use of the budget so far".to_owned(),
            axis: Axis::Zero,
            lines: line(|point| point.budget_use),
            guides: whole.into_iter().collect(),
        },
        None => Panel {
            title: "cost per query so far, dollars".to_owned(),
            axis: Axis::Zero,
            lines: line(|point| Some(point.cost)),
            guides: Vec::new(),
        },
    };
    let rewards = Panel {
        title: "reward per query so far".to_owned(),
        axis: Axis::Close,
        lines: line(|point| Some(point.reward)),
        guides,
    };
    let names: Vec<String> = reports.iter().map(replay_name).collect();
    let title = reports.first().map(replay_title).unwrap_or_default();
    picture(
        &title,
        "queries",
        &[rewards, costs],
        names.iter().map(String::as_str),
    )
}

fn level<T>(points: &[T], at: fn(&T) -> u64, value: f64) -> Vec<(u64, f64)> {
    points.iter().map(|point| (at(point), value)).collect()
}

fn replay_name(report: &ReplayReport) -> String {
    match report.by_context {
        true => format!("{}, by context", report.router),
        false => report.router.clone(),
    }
}

fn replay_title(report: &ReplayReport) -> String {
    let budget = match report.budget {
        budget if budget.is_finite() => format!("budget {budget:.1e} dollars per query"),
        _ => "no budget".to_owned(),
    };
    format!(
        "{} queries, {} models, {budget}, {} shuffles; bands: 95 % intervals",
        report.rows, report.arms, report.shuffles
    )
}

/// All panels, two in a row, with a title above and a key of long names below.
fn picture<'a>(
    title: &str,
    axis: &str,
    panels: &[Panel],
    names: impl Iterator<Item = &'a str>,
) -> String {
    let key: Vec<(String, &str)> = names
        .enumerate()
        .map(|(place, name)| (mark(place, name), name))
        .filter(|(mark, name)| mark != name)
        .collect();
    let rows = PANEL.1 * panels.len().div_ceil(2) as f64 + TITLE;
    let (width, height) = (2.0 * PANEL.0, rows + LEADING * (key.len() as f64 + 0.5));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (line, (mark, name)) in key.iter().enumerate() {
        let at = (MARGIN[0], rows + LEADING * (line as f64 + 0.5));
        text(&mut out, at, "start", &format!("{mark}: {name}"));
    }
    text(&mut out, (MARGIN[0], 22.0), "start", title);
    for (place, panel) in panels.iter().enumerate() {
        let row = (place / 2) as f64;
        let origin = (PANEL.0 * (place % 2) as f64, TITLE + PANEL.1 * row);
        draw(&mut out, panel, axis, origin);
    }
    out.push_str("</svg>\n");
    out
}

/// What stands beside a line: its router's name, or a letter for a long one.
fn mark(place: usize, name: &str) -> String {
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    match u8::try_from(place).ok().filter(|place| *place < 26) {
        Some(place) => char::from(b'A' + place).to_string(),
        None => format!("line {}", place + 1),
    }
}

fn sim_title(report: &SimReport) -> String {
    let mode = match report.mode {
        Mode::Single => "single",
        Mode::AnyWin => "any-win",
        Mode::SumUp => "sum-up",
        Mode::AllIn => "all-in",
    };
    let budget = match report.budget {
        budget if budget.is_finite() => format!("ρ = {budget}"),
        _ => "no budget".to_owned(),
    };
    format!(
        "environment {}, {mode}, N = {}, {budget}, {} seeds; bands: 95 % intervals",
        report.environment, report.max_arms, report.seeds
    )
}

/// Where values lie on the paper.
struct Axes {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    /// ln of the first and the last round.
    rounds: (f64, f64),
    /// Of a logarithmic axis: powers of ten.
    values: (f64, f64),
    axis: Axis,
}

impl Axes {
    fn x(&self, t: u64) -> f64 {
        let span = (self.rounds.1 - self.rounds.0).max(1e-9);
        self.left + ((t.max(1) as f64).ln() - self.rounds.0) / span * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        let value = match self.axis {
            Axis::Powers if value > 0.0 => value.log10(),
            Axis::Powers => f64::NEG_INFINITY,
            Axis::Close | Axis::Zero => value,
        };
        let span = (self.values.1 - self.values.0).max(1e-300);
        let share = ((value - self.values.0) / span).clamp(0.0, 1.0);
        self.bottom - share * (self.bottom - self.top)
    }
}

fn draw(out: &mut String, panel: &Panel, axis: &str, origin: (f64, f64)) {
    let lines = || panel.lines.iter().flat_map(|line| &line.points);
    let guides = || panel.guides.iter().flat_map(|guide| &guide.points);
    let ends = |estimate: Estimate| [estimate.low, estimate.high, Some(estimate.mean)];
    // On a logarithmic axis the lower end of an interval may be anything; means decide.
    let values = lines().flat_map(|(_, estimate)| match panel.axis {
        Axis::Powers => [None, estimate.high, Some(estimate.mean)],
        Axis::Close | Axis::Zero => ends(*estimate),
    });
    let values = values.flatten().chain(guides().map(|(_, value)| *value));
    let values = range(values.filter(|value| value.is_finite()), panel.axis);
    let rounds = || lines().map(|(t, _)| *t);
    let first = rounds().min().unwrap_or(1).max(1) as f64;
    let last = rounds().max().unwrap_or(1).max(1) as f64;
    let axes = Axes {
        left: origin.0 + MARGIN[0],
        right: origin.0 + PANEL.0 - MARGIN[2],
        top: origin.1 + MARGIN[1],
        bottom: origin.1 + PANEL.1 - MARGIN[3],
        rounds: (first.ln(), last.ln()),
        values,
        axis: panel.axis,
    };
    frame(out, panel, axis, &axes);
    for line in &panel.lines {
        band(out, line, &axes);
    }
    for guide in &panel.guides {
        draw_guide(out, guide, &axes);
    }
    for (place, line) in panel.lines.iter().enumerate() {
        curve(out, line, place, &axes);
    }
    names(out, panel, &axes);
}

/// The least and the largest value with a little air; of powers, their exponents.
fn range(values: impl Iterator<Item = f64>, axis: Axis) -> (f64, f64) {
    let values = values.filter(|value| axis != Axis::Powers || *value > 0.0);
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return (0.0, 1.0);
    }
    if axis == Axis::Powers {
        let high = high.log10();
        let low = low.log10().max(high - DECADES);
        return ((low - 0.15).min(high - 0.5), high + 0.15);
    }
    let from_zero = axis == Axis::Zero;
    let low = if from_zero { low.min(0.0) } else { low };
    let air = match high - low {
        span if span > 0.0 => 0.06 * span,
        _ if high != 0.0 => 0.1 * high.abs(),
        _ => 1.0,
    };
    let below = if from_zero && low == 0.0 { 0.0 } else { air };
    (low - below, high + air)
}

fn frame(out: &mut String, panel: &Panel, axis: &str, axes: &Axes) {
    let Axes {
        left,
        right,
        top,
        bottom,
        ..
    } = *axes;
    text(out, (left, top - 10.0), "start", &panel.title);
    let _ = writeln!(
        out,
        "<path d=\"M{left:.1} {top:.1}V{bottom:.1}H{right:.1}\" fill=\"none\" stroke=\"#000\"/>"
    );
    let marks = match panel.axis {
        Axis::Powers => powers(axes.values),
        Axis::Close | Axis::Zero => ticks(axes.values),
    };
    for value in marks {
        let y = axes.y(value);
        let _ = writeln!(
            out,
            "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"#ddd\" stroke-width=\"0.6\"/>"
        );
        text(out, (left - 6.0, y + 4.0), "end", &number(value));
    }
    let points = panel.lines.first().map(|line| line.points.as_slice());
    let mut free = f64::NEG_INFINITY;
    for (t, _) in points.unwrap_or_default() {
        let x = axes.x(*t);
        let _ = writeln!(out, "<path d=\"M{x:.1} {bottom:.1}v4\" stroke=\"#000\"/>");
        if x >= free {
            text(out, (x, bottom + 16.0), "middle", &t.to_string());
            free = x + 34.0;
        }
    }
    text(out, (right, bottom + 30.0), "end", axis);
}

/// The 95 % interval of each point, joined.
fn band(out: &mut String, line: &Line, axes: &Axes) {
    let ends = line.points.iter().filter_map(|(t, estimate)| {
        let (low, high) = estimate.low.zip(estimate.high)?;
        Some((axes.x(*t), axes.y(low), axes.y(high)))
    });
    let ends: Vec<(f64, f64, f64)> = ends
        .filter(|(_, low, high)| low.is_finite() && high.is_finite())
        .collect();
    if ends.len() < 2 {
        return;
    }
    let above = ends.iter().map(|(x, _, high)| format!("{x:.1} {high:.1}"));
    let below = ends
        .iter()
        .rev()
        .map(|(x, low, _)| format!("{x:.1} {low:.1}"));
    let outline: Vec<String> = above.chain(below).collect();
    let _ = writeln!(
        out,
        "<path d=\"M{}Z\" fill=\"#000\" fill-opacity=\"0.09\"/>",
        outline.join("L")
    );
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    format!("M{}", points.join("L"))
}

fn draw_guide(out: &mut String, guide: &Guide, axes: &Axes) {
    let points = guide.points.iter().filter(|(_, value)| value.is_finite());
    let points: Vec<(f64, f64)> = points
        .map(|(t, value)| (axes.x(*t), axes.y(*value)))
        .collect();
    let Some(&(x, y)) = points.first() else {
        return;
    };
    let _ = writeln!(
        out,
        "<path d=\"{}\" fill=\"none\" stroke=\"#999\" stroke-width=\"3\"/>",
        path(points.into_iter())
    );
    // Under a line at the top of the panel, above any other.
    let y = if y < axes.top + 14.0 {
        y + 13.0
    } else {
        y - 5.0
    };
    text(out, (x + 4.0, y), "start", &guide.name);
}

fn curve(out: &mut String, line: &Line, place: usize, axes: &Axes) {
    let (dashes, grey) = STYLES[place % STYLES.len()];
    let points = line
        .points
        .iter()
        .filter(|(_, estimate)| estimate.mean.is_finite());
    let points: Vec<(f64, f64)> = points
        .map(|(t, estimate)| (axes.x(*t), axes.y(estimate.mean)))
        .collect();
    if points.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "<path d=\"{}\" fill=\"none\" stroke=\"{grey}\" stroke-width=\"1.4\" stroke-dasharray=\"{dashes}\"/>",
        path(points.iter().copied())
    );
    for (x, y) in points {
        let _ = writeln!(out, "{}", marker(place, x, y, grey));
    }
}

/// A shape for each line in turn: six of them, so that shape and dashes together repeat after
/// two dozen lines.
fn marker(place: usize, x: f64, y: f64, grey: &str) -> String {
    let shape = match place % 6 {
        0 => format!("M{:.1} {y:.1}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z", x - 3.0),
        1 => format!("M{:.1} {:.1}h5.6v5.6h-5.6Z", x - 2.8, y - 2.8),
        2 => format!("M{x:.1} {:.1}l3.6 6.2h-7.2Z", y - 3.8),
        3 => format!("M{x:.1} {:.1}l3.8 3.8l-3.8 3.8l-3.8 -3.8Z", y - 3.8),
        4 => format!("M{:.1} {:.1}l6 6m0 -6l-6 6", x - 3.0, y - 3.0),
        _ => format!("M{:.1} {y:.1}h7m-3.5 -3.5v7", x - 3.5),
    };
    let fill = if place % 12 < 6 { "#fff" } else { grey };
    format!("<path d=\"{shape}\" fill=\"{fill}\" stroke=\"{grey}\" stroke-width=\"1.1\"/>")
}

/// Each line's mark and name beside its end, moved apart where ends are close.
fn names(out: &mut String, panel: &Panel, axes: &Axes) {
    let end = |line: &Line| {
        let last = line.points.last().map(|(_, estimate)| estimate.mean);
        axes.y(last
            .filter(|mean| mean.is_finite())
            .unwrap_or(f64::NEG_INFINITY))
    };
    let ends: Vec<f64> = panel.lines.iter().map(end).collect();
    let places = apart(&ends, axes);
    for (nth, ((line, end), place)) in panel.lines.iter().zip(&ends).zip(places).enumerate() {
        let x = axes.right;
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {end:.1}L{:.1} {place:.1}\" stroke=\"#aaa\" stroke-width=\"0.6\"/>",
            x + 3.0,
            x + 10.0
        );
        let grey = STYLES[nth % STYLES.len()].1;
        let _ = writeln!(out, "{}", marker(nth, x + 14.0, place, grey));
        text(out, (x + 21.0, place + 4.0), "start", &line.name);
    }
}

/// The powers of ten within the range.
fn powers((low, high): (f64, f64)) -> Vec<f64> {
    let (first, last) = (low.ceil() as i32, high.floor() as i32);
    (first..=last).map(|power| 10f64.powi(power)).collect()
}

/// Heights near the given ones, at least [`LEADING`] apart, within the panel if they fit.
fn apart(heights: &[f64], axes: &Axes) -> Vec<f64> {
    let mut order: Vec<usize> = (0..heights.len()).collect();
    order.sort_by(|&a, &b| heights[a].total_cmp(&heights[b]));
    let mut places = heights.to_vec();
    let mut free = axes.top - LEADING;
    for &k in &order {
        places[k] = places[k].max(free);
        free = places[k] + LEADING;
    }
    let mut limit = axes.bottom;
    for &k in order.iter().rev() {
        places[k] = places[k].min(limit);
        limit = places[k] - LEADING;
    }
    places
}

/// About five round numbers within the range.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return vec![];
    }
    let rough = span / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = match rough / power {
        r if r < 1.5 => power,
        r if r < 3.5 => 2.0 * power,
        r if r < 7.5 => 5.0 * power,
        _ => 10.0 * power,
    };
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Short, and without the dust of floating-point multiples.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value.abs() < 1e-3 || value.abs() >= 1e6 => format!("{value:.1e}"),
        value => {
            let text = format!("{value:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            ticks((0.0, 1.0)),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(ticks((-3.0, 21.0)), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert!(ticks((1.0, 1.0)).is_empty());
        assert_eq!(number(0.6000000000000001), "0.6");
        assert_eq!(number(1500.0), "1500");
        assert_eq!(range([2.0, 2.0].into_iter(), Axis::Zero), (0.0, 2.12));
        assert_eq!(powers((-2.15, 1.2)), [0.01, 0.1, 1.0, 10.0]);
        // What is not above 0 has no power; the axis goes no deeper than it must.
        let (low, high) = range([-3.0, 0.0, 1e-12, 10.0].into_iter(), Axis::Powers);
        assert!(low < -5.0 && low > -5.5 && high > 1.0 && high < 1.5);
    }
}
