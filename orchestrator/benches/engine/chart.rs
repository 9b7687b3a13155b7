//! Cost against size, both in powers of ten, as one SVG.

use std::fmt::Write;

use crate::Row;

const WIDTH: f64 = 780.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 46.0;
/// A thousandth of a second to a thousand seconds.
const DECADES: (i32, i32) = (-4, 3);

type Figure = fn(&Row) -> Option<f64>;

const LINES: [(&str, &str, Figure); 8] = [
    ("plan", "#1f77b4", |row| Some(row.plan)),
    ("plan, nothing to do", "#17a2b8", |row| Some(row.plan_same)),
    ("first up, durable", "#2ca02c", |row| Some(row.first_up)),
    ("second up", "#98a61c", |row| Some(row.second_up)),
    ("open the state", "#7f7f7f", |row| Some(row.open)),
    ("terraform plan", "#d62728", |row| row.peer.as_ref()?.plan),
    ("terraform apply", "#ff7f0e", |row| row.peer.as_ref()?.apply),
    ("terraform plan, nothing to do", "#9467bd", |row| row.peer.as_ref()?.plan_same),
];

pub fn draw(rows: &[Row]) -> String {
    let sizes = rows.iter().map(|row| row.size as f64);
    let (least, most) =
        sizes.fold((f64::MAX, 1.0), |(least, most), size| (f64::min(least, size), f64::max(most, size)));
    let span = (most / least).log10().max(1e-9);
    let x_of = |size: f64| LEFT + (size / least).log10() / span * (WIDTH - LEFT - RIGHT);
    let height = HEIGHT - TOP - BOTTOM;
    let y_of = |seconds: f64| {
        let share = (seconds.log10() - f64::from(DECADES.0)) / f64::from(DECADES.1 - DECADES.0);
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * height
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for decade in DECADES.0..=DECADES.1 {
        let y = y_of(10_f64.powi(decade));
        let name = if decade < 0 {
            format!("{} ms", 1000.0 * 10_f64.powi(decade))
        } else {
            format!("{} s", 10_f64.powi(decade))
        };
        writeln!(svg, "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>", WIDTH - RIGHT)
            .unwrap();
        writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 6.0, y + 4.0).unwrap();
    }
    for row in rows {
        let x = x_of(row.size as f64);
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", HEIGHT - BOTTOM + 18.0, row.size)
            .unwrap();
    }
    let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
    writeln!(
        svg,
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">resources, with three edges each</text>",
        HEIGHT - 8.0
    )
    .unwrap();
    for (number, (name, colour, figure)) in LINES.iter().enumerate() {
        let points: Vec<(f64, f64)> =
            rows.iter().filter_map(|row| Some((x_of(row.size as f64), y_of(figure(row)?)))).collect();
        if points.is_empty() {
            continue;
        }
        let texts: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            texts.join(" ")
        )
        .unwrap();
        for (x, y) in points {
            writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>").unwrap();
        }
        let y = TOP + 14.0 + 20.0 * number as f64;
        let x = WIDTH - RIGHT + 14.0;
        writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"3\"/>",
            x + 18.0
        )
        .unwrap();
        writeln!(svg, "<text x=\"{}\" y=\"{}\">{name}</text>", x + 24.0, y + 4.0).unwrap();
    }
    svg + "</svg>\n"
}
