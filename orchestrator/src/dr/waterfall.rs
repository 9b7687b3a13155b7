//! The charts of a drill report as SVG: a bar for each phase, and the client's results of each second.

use std::fmt::Write;

use serde_json::{Value, json};

use super::findings::Findings;
use super::ledger::Mark;
use super::report::DrillPhase;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 70.0;
const ROW: f64 = 26.0;

/// The phases as rows of a table.
pub(super) fn rows(phases: &[DrillPhase]) -> Value {
    let row = |phase: &DrillPhase| json!({ "name": phase.name, "from": format!("{:.2} s", phase.from_s), "took": took(phase), "says": phase.says, "class": class(&phase.name) });
    phases.iter().map(row).collect()
}

/// A bar for each phase, from its start to its end.
pub(super) fn bars(phases: &[DrillPhase], seconds: f64) -> String {
    let most = phases.iter().map(|phase| phase.to_s).fold(seconds.max(1.0), f64::max);
    let x_of = |s: f64| LEFT + s / most * (WIDTH - LEFT - RIGHT);
    let bottom = ROW * phases.len() as f64 + 8.0;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">", bottom + 20.0);
    axis(&mut svg, most, 4.0, bottom, &x_of);
    for (row, phase) in phases.iter().enumerate() {
        let y = ROW * row as f64 + 6.0;
        let (from, to) = (x_of(phase.from_s), x_of(phase.to_s));
        let width = (to - from).max(2.0);
        put(
            &mut svg,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 10.0,
                y + 14.0,
                plain(&phase.name)
            ),
        );
        put(
            &mut svg,
            format_args!(
                "<rect class=\"bar {}\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"3\"/>",
                class(&phase.name),
                ROW - 8.0
            ),
        );
        put(
            &mut svg,
            format_args!("<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", from + width + 6.0, y + 14.0, took(phase)),
        );
    }
    svg + "</svg>"
}

/// Successful and failed requests of each second, with the milestones of the drill.
pub(super) fn requests(found: &Findings, marks: &[(Mark, f64)]) -> String {
    const TOP: f64 = 26.0;
    const BOTTOM: f64 = 190.0;
    let most_x = (found.seconds.len() as f64).max(1.0);
    let most_y = found.seconds.iter().map(|s| f64::from(s.ok + s.failed)).fold(1.0, f64::max);
    let (left, right) = (40.0, 12.0);
    let x_of = |s: f64| left + s / most_x * (WIDTH - left - right);
    let tall = |n: u32| f64::from(n) / most_y * (BOTTOM - TOP);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">", BOTTOM + 22.0);
    axis(&mut svg, most_x, TOP, BOTTOM, &x_of);
    put(
        &mut svg,
        format_args!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{most_y:.0}</text>", left - 6.0, TOP + 8.0),
    );
    let width = ((WIDTH - left - right) / most_x * 0.86).max(0.5);
    for (at, second) in found.seconds.iter().enumerate() {
        let x = x_of(at as f64 + 0.07);
        let (ok, failed) = (tall(second.ok), tall(second.failed));
        put(
            &mut svg,
            format_args!(
                "<rect class=\"bar good\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{ok:.1}\"/>",
                BOTTOM - ok
            ),
        );
        if second.failed > 0 {
            put(
                &mut svg,
                format_args!(
                    "<rect class=\"bar bad\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{failed:.1}\"/>",
                    BOTTOM - ok - failed
                ),
            );
        }
    }
    let mut last = f64::MIN;
    for (mark, t) in marks {
        let (x, name) = (x_of(t / 1000.0), name(*mark));
        put(&mut svg, format_args!("<line class=\"limit\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>"));
        // The later of two overlapping labels moves up one line.
        let y = if x - last < 62.0 { TOP - 15.0 } else { TOP - 4.0 };
        last = if x - last < 62.0 { f64::MIN } else { x };
        put(&mut svg, format_args!("<text x=\"{:.1}\" y=\"{y:.1}\">{name}</text>", x + 2.0));
    }
    svg + "</svg>"
}

fn axis(svg: &mut String, most: f64, top: f64, bottom: f64, x_of: &dyn Fn(f64) -> f64) {
    let step = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0]
        .into_iter()
        .find(|step| most / step <= 12.0)
        .unwrap_or(3600.0);
    let mut s = 0.0;
    while s <= most {
        let x = x_of(s);
        put(svg, format_args!("<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom:.1}\"/>"));
        put(svg, format_args!("<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{s} s</text>", bottom + 15.0));
        s += step;
    }
}

fn put(svg: &mut String, part: std::fmt::Arguments<'_>) {
    svg.write_fmt(part).expect("writing to a text succeeds");
}

fn took(phase: &DrillPhase) -> String {
    let s = phase.to_s - phase.from_s;
    if s < 0.995 { format!("{:.0} ms", s * 1000.0) } else { format!("{s:.2} s") }
}

fn class(phase: &str) -> &'static str {
    match phase {
        "fault" | "detection" | "fencing" | "promotion" => "bad",
        "shift" => "wait",
        "revert" | "recovery" | "failback" => "a",
        _ => "good",
    }
}

fn name(mark: Mark) -> &'static str {
    match mark {
        Mark::Fault => "fault",
        Mark::Detected => "detected",
        Mark::Granted => "granted",
        Mark::Read => "read",
        Mark::Revert => "reverted",
        Mark::Recovered => "recovered",
        Mark::Home => "home",
    }
}

/// Phase names are built in, but a report that was read from a file may contain anything.
fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == ' ').take(20).collect()
}
