//! Curves as an SVG: reward, violation, hinge and regret against rounds.
//!
//! Made for print: black and grey alone, lines told apart by their dashes, each named at its
//! end. Rounds are drawn on a logarithmic axis; upright bars are 95 % intervals.

use std::fmt::Write;

use crate::{Checkpoint, Estimate, SimReport};

const PANEL: (f64, f64) = (520.0, 300.0);
/// Around each panel's axes: left, top, right, bottom. The right holds the names.
const MARGIN: [f64; 4] = [62.0, 30.0, 158.0, 36.0];
const TITLE: f64 = 34.0;
/// Names of lines stay so far apart.
const LEADING: f64 = 12.0;
/// A longer name does not fit beside a panel; its line is named by a letter, and the key below
/// the panels says which it is.
const LONGEST: usize = 22;

/// Dashes and grey of each line in turn.
const STYLES: [(&str, &str); 8] = [
    ("none", "#000"),
    ("7 3", "#000"),
    ("2 3", "#000"),
    ("9 3 2 3", "#000"),
    ("none", "#888"),
    ("7 3", "#777"),
    ("2 3", "#777"),
    ("9 3 2 3", "#777"),
];

/// One of the four panels.
struct Panel {
    title: &'static str,
    of: fn(&Checkpoint) -> Estimate,
    /// The axis begins at 0 even where all values are far from it.
    from_zero: bool,
}

const PANELS: [Panel; 4] = [
    Panel {
        title: "reward per round",
        of: |point| point.reward,
        from_zero: false,
    },
    Panel {
        title: "violation V = [mean cost − ρ]⁺",
        of: |point| point.violation,
        from_zero: true,
    },
    Panel {
        title: "hinge h = mean [cost − ρ]⁺",
        of: |point| point.hinge,
        from_zero: true,
    },
    Panel {
        title: "regret, summed",
        of: |point| point.regret,
        from_zero: true,
    },
];

/// The picture of these reports, one line for each. All should share a world and its settings;
/// the first one's are named in the title.
pub fn svg(reports: &[SimReport]) -> String {
    let key: Vec<(String, &str)> = (reports.iter().enumerate())
        .map(|(place, report)| (mark(place, &report.router), report.router.as_str()))
        .filter(|(mark, name)| mark != name)
        .collect();
    let panels = 2.0 * PANEL.1 + TITLE;
    let (width, height) = (2.0 * PANEL.0, panels + LEADING * (key.len() as f64 + 0.5));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (line, (mark, name)) in key.iter().enumerate() {
        let y = panels + LEADING * (line as f64 + 0.5);
        text(
            &mut out,
            (MARGIN[0], y),
            "start",
            &format!("{mark}: {name}"),
        );
    }
    if let Some(first) = reports.first() {
        text(&mut out, (MARGIN[0], 22.0), "start", &title(first));
    }
    for (place, panel) in PANELS.iter().enumerate() {
        let origin = (
            PANEL.0 * (place % 2) as f64,
            TITLE + PANEL.1 * (place / 2) as f64,
        );
        draw(&mut out, panel, reports, origin);
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

fn title(report: &SimReport) -> String {
    let mode = match report.mode {
        llmpick_core::Mode::Single => "single",
        llmpick_core::Mode::AnyWin => "any-win",
        llmpick_core::Mode::SumUp => "sum-up",
        llmpick_core::Mode::AllIn => "all-in",
    };
    let budget = match report.budget {
        budget if budget.is_finite() => format!("ρ = {budget}"),
        _ => "no budget".to_owned(),
    };
    format!(
        "environment {}, {mode}, N = {}, {budget}, {} seeds; bars: 95 % intervals; relaxed optimum {:.4}",
        report.environment, report.max_arms, report.seeds, report.optimum
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
    values: (f64, f64),
}

impl Axes {
    fn x(&self, t: u64) -> f64 {
        let span = (self.rounds.1 - self.rounds.0).max(1e-9);
        self.left + ((t.max(1) as f64).ln() - self.rounds.0) / span * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        let span = (self.values.1 - self.values.0).max(1e-300);
        let share = ((value - self.values.0) / span).clamp(0.0, 1.0);
        self.bottom - share * (self.bottom - self.top)
    }
}

fn draw(out: &mut String, panel: &Panel, reports: &[SimReport], origin: (f64, f64)) {
    let points = || reports.iter().flat_map(|report| &report.checkpoints);
    let ends = |estimate: Estimate| [estimate.low, estimate.high, Some(estimate.mean)];
    let values = points().flat_map(|point| ends((panel.of)(point))).flatten();
    let (low, high) = range(values.filter(|value| value.is_finite()), panel.from_zero);
    let rounds = points().map(|point| point.t);
    let first = rounds.clone().min().unwrap_or(1).max(1) as f64;
    let last = rounds.max().unwrap_or(1).max(1) as f64;
    let axes = Axes {
        left: origin.0 + MARGIN[0],
        right: origin.0 + PANEL.0 - MARGIN[2],
        top: origin.1 + MARGIN[1],
        bottom: origin.1 + PANEL.1 - MARGIN[3],
        rounds: (first.ln(), last.ln()),
        values: (low, high),
    };
    frame(out, panel, reports, &axes);
    for (report, style) in reports.iter().zip(STYLES.iter().cycle()) {
        curve(out, report, panel.of, &axes, *style);
    }
    names(out, reports, panel.of, &axes);
}

/// The least and the largest value with a little air.
fn range(values: impl Iterator<Item = f64>, from_zero: bool) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return (0.0, 1.0);
    }
    let low = if from_zero { low.min(0.0) } else { low };
    let air = match high - low {
        span if span > 0.0 => 0.06 * span,
        _ if high != 0.0 => 0.1 * high.abs(),
        _ => 1.0,
    };
    let below = if from_zero && low == 0.0 { 0.0 } else { air };
    (low - below, high + air)
}

fn frame(out: &mut String, panel: &Panel, reports: &[SimReport], axes: &Axes) {
    let Axes {
        left,
        right,
        top,
        bottom,
        ..
    } = *axes;
    text(out, (left, top - 10.0), "start", panel.title);
    let _ = writeln!(
        out,
        "<path d=\"M{left:.1} {top:.1}V{bottom:.1}H{right:.1}\" fill=\"none\" stroke=\"#000\"/>"
    );
    for value in ticks(axes.values) {
        let y = axes.y(value);
        let _ = writeln!(
            out,
            "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"#ddd\" stroke-width=\"0.6\"/>"
        );
        text(out, (left - 6.0, y + 4.0), "end", &number(value));
    }
    let checkpoints = reports.first().map(|report| report.checkpoints.as_slice());
    let mut free = f64::NEG_INFINITY;
    for point in checkpoints.unwrap_or_default() {
        let x = axes.x(point.t);
        let _ = writeln!(out, "<path d=\"M{x:.1} {bottom:.1}v4\" stroke=\"#000\"/>");
        if x >= free {
            text(out, (x, bottom + 16.0), "middle", &point.t.to_string());
            free = x + 34.0;
        }
    }
    text(out, (right, bottom + 30.0), "end", "round t");
}

fn curve(
    out: &mut String,
    report: &SimReport,
    of: fn(&Checkpoint) -> Estimate,
    axes: &Axes,
    (dashes, grey): (&str, &str),
) {
    let mut path = String::new();
    for point in &report.checkpoints {
        let estimate = of(point);
        if !estimate.mean.is_finite() {
            continue;
        }
        let (x, y) = (axes.x(point.t), axes.y(estimate.mean));
        let _ = write!(
            path,
            "{}{x:.1} {y:.1}",
            if path.is_empty() { "M" } else { "L" }
        );
        if let Some((low, high)) = estimate.low.zip(estimate.high) {
            let _ = writeln!(
                out,
                "<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"{grey}\" stroke-width=\"0.7\"/>",
                axes.y(low),
                axes.y(high)
            );
        }
    }
    let _ = writeln!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{grey}\" stroke-width=\"1.5\" stroke-dasharray=\"{dashes}\"/>"
    );
}

/// Each line's name beside its end, moved apart where ends are close.
fn names(out: &mut String, reports: &[SimReport], of: fn(&Checkpoint) -> Estimate, axes: &Axes) {
    let end = |report: &SimReport| {
        let last = report.checkpoints.last().map(|point| of(point).mean);
        axes.y(last
            .filter(|mean| mean.is_finite())
            .unwrap_or(axes.values.0))
    };
    let ends: Vec<f64> = reports.iter().map(end).collect();
    let places = apart(&ends, axes);
    for (nth, ((report, end), place)) in reports.iter().zip(&ends).zip(places).enumerate() {
        let x = axes.right;
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {end:.1}L{:.1} {place:.1}\" stroke=\"#aaa\" stroke-width=\"0.6\"/>",
            x + 1.0,
            x + 9.0
        );
        let mark = mark(nth, &report.router);
        text(out, (x + 11.0, place + 4.0), "start", &mark);
    }
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
        assert_eq!(range([2.0, 2.0].into_iter(), true), (0.0, 2.12));
    }
}
