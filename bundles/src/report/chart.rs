//! Line and bar charts: as SVG of a page, whose style sheet has the colours for light and dark mode, and on the pages of a PDF.

use std::fmt::Write;

use serde_json::{Value, json};

pub(super) const WIDTH: f64 = 640.0;
pub(super) const HEIGHT: f64 = 220.0;
/// Where the lines of a chart begin.
pub(super) const LEFT: f64 = 52.0;
/// The margin after their end.
pub(super) const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;
/// Where the bars of amounts begin, after their names, and where they end at the latest, before their texts.
const AMOUNTS: (f64, f64) = (190.0, WIDTH - 90.0);
/// The most amounts of a chart, and the most characters of their names; more would overlap.
const MOST_AMOUNTS: usize = 8;
const LONGEST_NAME: usize = 32;

/// The most points of a line; more would overlap.
const MOST_POINTS: usize = 600;

/// A chart with its title.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Its title, with the unit of the values.
    pub title: &'static str,
    /// What it shows.
    pub plot: Plot,
}

/// What a chart shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Plot {
    /// Lines over one axis.
    Lines {
        /// The unit of the axis.
        x_unit: &'static str,
        /// The lines; those without points are in the legend only.
        lines: Vec<Line>,
        /// A limit of the values, with its label.
        limit: Option<(f64, String)>,
    },
    /// A histogram of (upper bound in ms, count); empty buckets at both ends are omitted.
    Bars(Vec<(f64, u64)>),
    /// A bar to the right per amount, the largest first. Those after the seventh of more than eight are one bar.
    Amounts(Vec<Amount>),
}

/// An amount of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Amount {
    /// What it is of.
    pub name: String,
    /// Its size.
    pub value: f64,
    /// The size as text.
    pub text: String,
}

/// A line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its name in the legend.
    pub name: &'static str,
    /// Its colour.
    pub colour: LineColour,
    /// Its points, by rising x.
    pub points: Vec<(f64, f64)>,
}

/// The colour of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineColour {
    /// Of what the chart is about.
    Blue,
    /// Of what it is compared with.
    Brown,
    /// Of errors, and of the slowest requests.
    Red,
}

impl LineColour {
    /// Its class in the style sheet of pages.
    fn class(self) -> &'static str {
        match self {
            Self::Blue => "a",
            Self::Brown => "b",
            Self::Red => "c",
        }
    }
}

/// Where a text is relative to its position.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A part of a drawn chart: x to the right and y down, in a box of [`WIDTH`] and [`HEIGHT`].
pub(super) enum Mark {
    /// A line across the chart.
    Grid { y: f64 },
    /// A line across the chart, which values should not cross.
    Limit { y: f64 },
    /// A line with at least two points.
    Line { colour: LineColour, points: Vec<(f64, f64)> },
    /// A line that has one point.
    Dot { colour: LineColour, x: f64, y: f64 },
    /// A bar, which begins or ends at the axis, and its value.
    Bar { x: f64, y: f64, width: f64, height: f64, value: String },
    /// A label.
    Text { x: f64, y: f64, anchor: Anchor, text: String },
}

impl Chart {
    /// The title, the drawing and the legend, for the template of a page.
    pub fn to_page(&self) -> Value {
        let legend: Value =
            self.lines().iter().map(|line| json!({ "name": line.name, "class": line.colour.class() })).collect();
        json!({ "title": self.title, "svg": self.to_svg(), "legend": legend })
    }

    pub(super) fn lines(&self) -> &[Line] {
        match &self.plot {
            Plot::Lines { lines, .. } => lines,
            Plot::Bars(_) | Plot::Amounts(_) => &[],
        }
    }

    pub(super) fn marks(&self) -> Vec<Mark> {
        match &self.plot {
            Plot::Lines { x_unit, lines, limit } => marks_of_lines(x_unit, lines, limit.as_ref()),
            Plot::Bars(histogram) => marks_of_bars(histogram),
            Plot::Amounts(amounts) => marks_of_amounts(amounts),
        }
    }

    fn to_svg(&self) -> String {
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
        for mark in self.marks() {
            put(&mut svg, &mark).expect("writing to a text succeeds");
        }
        svg + "</svg>"
    }
}

fn put(svg: &mut String, mark: &Mark) -> std::fmt::Result {
    let across = |svg: &mut String, class: &str, y: f64| {
        write!(svg, "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT)
    };
    match mark {
        Mark::Grid { y } => across(svg, "grid", *y),
        Mark::Limit { y } => across(svg, "limit", *y),
        Mark::Line { colour, points } => {
            let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            write!(svg, "<polyline class=\"line {}\" points=\"{}\"/>", colour.class(), points.join(" "))
        }
        Mark::Dot { colour, x, y } => {
            write!(svg, "<circle class=\"dot {}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>", colour.class())
        }
        Mark::Bar { x, y, width, height, value } => write!(
            svg,
            "<rect class=\"bar a\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\">\
             <title>{}</title></rect>",
            escaped(value)
        ),
        Mark::Text { x, y, anchor, text } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escaped(text))
        }
    }
}

/// A text of SVG: names of sites and regions are an operator's.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn marks_of_lines(x_unit: &str, lines: &[Line], limit: Option<&(f64, String)>) -> Vec<Mark> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let most_x = all().map(|(x, _)| *x).fold(1.0, f64::max);
    let (most_y, step) = scale(all().map(|(_, y)| *y).chain(limit.iter().map(|(y, _)| *y)).fold(0.0, f64::max));
    let x_of = |x: f64| LEFT + x / most_x * (WIDTH - LEFT - RIGHT);
    let y_of = |y: f64| HEIGHT - BOTTOM - y / most_y * (HEIGHT - TOP - BOTTOM);
    let mut marks = grid(most_y, step, &y_of);
    let (_, step) = scale(most_x);
    let mut x = 0.0;
    while x <= most_x {
        marks.push(text(x_of(x), HEIGHT - 8.0, Anchor::Middle, format!("{} {x_unit}", short(x)).trim_end().to_owned()));
        x += step;
    }
    if let Some((limit, name)) = limit {
        let y = y_of(*limit);
        marks.push(Mark::Limit { y });
        // Above the line if there is room, else below.
        let at = if y > TOP + 14.0 { y - 5.0 } else { y + 14.0 };
        marks.push(text(WIDTH - RIGHT, at, Anchor::End, name.clone()));
    }
    for line in lines {
        let every = line.points.len().div_ceil(MOST_POINTS).max(1);
        // The last point is always shown: of percentiles, it is the maximum.
        let last = line.points.last().filter(|_| !(line.points.len() - 1).is_multiple_of(every));
        let shown = line.points.iter().step_by(every).chain(last);
        let points: Vec<(f64, f64)> = shown.map(|(x, y)| (x_of(*x), y_of(*y))).collect();
        match points.as_slice() {
            [] => {}
            [(x, y)] => marks.push(Mark::Dot { colour: line.colour, x: *x, y: *y }),
            _ => marks.push(Mark::Line { colour: line.colour, points }),
        }
    }
    marks
}

fn marks_of_bars(histogram: &[(f64, u64)]) -> Vec<Mark> {
    let first = histogram.iter().position(|(_, n)| *n > 0).unwrap_or(0);
    let last = histogram.iter().rposition(|(_, n)| *n > 0).map_or(0, |last| last + 1);
    let shown = histogram.get(first..last).unwrap_or_default();
    let (most, step) = scale(shown.iter().map(|(_, n)| *n as f64).fold(0.0, f64::max));
    let y_of = |y: f64| HEIGHT - BOTTOM - y / most * (HEIGHT - TOP - BOTTOM);
    let slot = (WIDTH - LEFT - RIGHT) / shown.len().max(1) as f64;
    let width = slot.min(90.0) * 0.8;
    let mut marks = grid(most, step, &y_of);
    for (i, (bound, count)) in shown.iter().enumerate() {
        let middle = LEFT + (i as f64 + 0.5) * slot;
        let y = y_of(*count as f64);
        marks.push(Mark::Bar {
            x: middle - width / 2.0,
            y,
            width,
            height: HEIGHT - BOTTOM - y,
            value: count.to_string(),
        });
        marks.push(text(middle, HEIGHT - 8.0, Anchor::Middle, format!("≤ {}", duration(*bound))));
    }
    marks
}

fn marks_of_amounts(amounts: &[Amount]) -> Vec<Mark> {
    const THICKEST: f64 = 26.0;
    let mut sorted: Vec<&Amount> = amounts.iter().collect();
    sorted.sort_by(|a, b| b.value.total_cmp(&a.value));
    let shown = if sorted.len() > MOST_AMOUNTS { MOST_AMOUNTS - 1 } else { sorted.len() };
    let (largest, rest) = sorted.split_at(shown);
    let mut bars: Vec<(String, f64, String)> =
        largest.iter().map(|amount| (cut(&amount.name), amount.value, amount.text.clone())).collect();
    if !rest.is_empty() {
        let sum = rest.iter().map(|amount| amount.value).sum();
        bars.push((format!("{} others", rest.len()), sum, short((sum * 100.0).round() / 100.0)));
    }
    let most = bars.iter().map(|(_, value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let slot = ((HEIGHT - TOP) / bars.len().max(1) as f64).min(THICKEST);
    let mut marks = Vec::new();
    for (at, (name, value, amount)) in bars.into_iter().enumerate() {
        let y = TOP + at as f64 * slot;
        let (start, width, height) = (AMOUNTS.0, value.max(0.0) / most * (AMOUNTS.1 - AMOUNTS.0), slot * 0.65);
        let base = y + height / 2.0 + 4.0;
        marks.push(text(start - 6.0, base, Anchor::End, name));
        marks.push(text(start + width + 6.0, base, Anchor::Start, amount.clone()));
        marks.push(Mark::Bar { x: start, y, width, height, value: amount });
    }
    marks
}

/// A name that fits before its bar.
fn cut(name: &str) -> String {
    match name.chars().count() > LONGEST_NAME {
        true => name.chars().take(LONGEST_NAME - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

fn duration(ms: f64) -> String {
    if ms >= 1000.0 { format!("{} s", short((ms / 100.0).round() / 10.0)) } else { format!("{} ms", short(ms)) }
}

fn text(x: f64, y: f64, anchor: Anchor, text: String) -> Mark {
    Mark::Text { x, y, anchor, text }
}

fn grid(most: f64, step: f64, y_of: &dyn Fn(f64) -> f64) -> Vec<Mark> {
    let mut marks = Vec::new();
    let mut y = 0.0;
    while y <= most + step / 2.0 {
        let at = y_of(y);
        marks.push(Mark::Grid { y: at });
        marks.push(text(LEFT - 6.0, at + 4.0, Anchor::End, short(y)));
        y += step;
    }
    marks
}

/// The maximum of an axis and the step of its lines: 1, 2 or 5 times a power of ten, for four to six lines.
fn scale(most: f64) -> (f64, f64) {
    let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
    let rough = most / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(10.0 * power);
    ((most / step).ceil() * step, step)
}

fn short(n: f64) -> String {
    match n {
        n if n >= 1_000_000.0 => format!("{}M", (n / 100_000.0).round() / 10.0),
        n if n >= 10_000.0 => format!("{}k", (n / 100.0).round() / 10.0),
        n => format!("{}", (n * 1000.0).round() / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_axes_end_above_the_maximum_in_round_steps() {
        assert_eq!(scale(487.0), (500.0, 100.0));
        assert_eq!(scale(7.0), (8.0, 2.0));
        for most in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9, 3.0, 1e12] {
            let (top, step) = scale(most);
            assert!(top.is_finite() && step > 0.0 && top / step <= 10.5, "{most}: {top} {step}");
        }
    }
}
