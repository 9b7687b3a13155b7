//! Line and bar charts as SVG. Colours come from the page's style sheet, for light and dark mode.

use std::fmt::Write;

use serde_json::{Value, json};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;

/// The most points of a line; more would overlap.
const MOST_POINTS: usize = 600;

pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) class: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

pub(super) struct Chart {
    pub(super) x_unit: &'static str,
    pub(super) lines: Vec<Line>,
    /// The limit line with its label.
    pub(super) limit: Option<(f64, String)>,
}

impl Chart {
    pub(super) fn legend(&self) -> Value {
        self.lines.iter().map(|l| json!({"name": l.name, "class": l.class})).collect()
    }

    pub(super) fn to_svg(&self) -> String {
        let all = || self.lines.iter().flat_map(|l| &l.points);
        let most_x = all().map(|(x, _)| *x).fold(1.0, f64::max);
        let (most_y, step) =
            scale(all().map(|(_, y)| *y).chain(self.limit.iter().map(|(y, _)| *y)).fold(0.0, f64::max));
        let x_of = |x: f64| LEFT + x / most_x * (WIDTH - LEFT - RIGHT);
        let y_of = |y: f64| HEIGHT - BOTTOM - y / most_y * (HEIGHT - TOP - BOTTOM);
        let mut svg = open();
        grid(&mut svg, most_y, step, &y_of);
        let (_, step) = scale(most_x);
        let mut x = 0.0;
        while x <= most_x {
            text(&mut svg, x_of(x), HEIGHT - 8.0, "middle", &format!("{} {}", short(x), self.x_unit));
            x += step;
        }
        if let Some((limit, name)) = &self.limit {
            let y = y_of(*limit);
            put(
                &mut svg,
                &format!("<line class=\"limit\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT),
            );
            // Above the line if there is room, else below.
            let at = if y > TOP + 14.0 { y - 5.0 } else { y + 14.0 };
            text(&mut svg, WIDTH - RIGHT, at, "end", name);
        }
        for line in &self.lines {
            let every = line.points.len().div_ceil(MOST_POINTS).max(1);
            // The last point is always shown: of percentiles, it is the maximum.
            let last = line.points.last().filter(|_| !(line.points.len() - 1).is_multiple_of(every));
            let shown = line.points.iter().step_by(every).chain(last);
            let points: Vec<String> = shown.map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y))).collect();
            match points.as_slice() {
                [] => {}
                [one] => {
                    let (x, y) = one.split_once(',').unwrap_or(("0", "0"));
                    put(&mut svg, &format!("<circle class=\"dot {}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"/>", line.class));
                }
                _ => {
                    put(&mut svg, &format!("<polyline class=\"line {}\" points=\"{}\"/>", line.class, points.join(" ")))
                }
            }
        }
        svg + "</svg>"
    }
}

/// Bars of a histogram of (upper bound in ms, count); empty buckets at both ends are omitted.
pub(super) fn bars(histogram: &[(f64, u64)]) -> String {
    let first = histogram.iter().position(|(_, n)| *n > 0).unwrap_or(0);
    let last = histogram.iter().rposition(|(_, n)| *n > 0).unwrap_or(0);
    let shown = &histogram[first..=last.max(first).min(histogram.len().saturating_sub(1))];
    let (most, step) = scale(shown.iter().map(|(_, n)| *n as f64).fold(0.0, f64::max));
    let y_of = |y: f64| HEIGHT - BOTTOM - y / most * (HEIGHT - TOP - BOTTOM);
    let slot = (WIDTH - LEFT - RIGHT) / shown.len().max(1) as f64;
    let width = slot.min(90.0) * 0.8;
    let mut svg = open();
    grid(&mut svg, most, step, &y_of);
    for (i, (bound, n)) in shown.iter().enumerate() {
        let middle = LEFT + (i as f64 + 0.5) * slot;
        let (x, y) = (middle - width / 2.0, y_of(*n as f64));
        let tall = HEIGHT - BOTTOM - y;
        put(
            &mut svg,
            &format!(
                "<rect class=\"bar a\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{tall:.1}\" rx=\"2\"><title>{n}</title></rect>"
            ),
        );
        text(&mut svg, middle, HEIGHT - 8.0, "middle", &format!("≤ {}", duration(*bound)));
    }
    svg + "</svg>"
}

fn duration(ms: f64) -> String {
    if ms >= 1000.0 { format!("{} s", short((ms / 100.0).round() / 10.0)) } else { format!("{} ms", short(ms)) }
}

fn open() -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">")
}

fn put(svg: &mut String, part: &str) {
    svg.push_str(part);
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, what: &str) {
    write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{what}</text>")
        .expect("writing to a text succeeds");
}

fn grid(svg: &mut String, most: f64, step: f64, y_of: &dyn Fn(f64) -> f64) {
    let mut y = 0.0;
    while y <= most + step / 2.0 {
        let at = y_of(y);
        put(
            svg,
            &format!("<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", WIDTH - RIGHT),
        );
        text(svg, LEFT - 6.0, at + 4.0, "end", &short(y));
        y += step;
    }
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
