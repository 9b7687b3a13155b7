//! The report as PDF: A4, the standard fonts, a header and a footer on every page.

use std::io::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pdf_writer::types::{ActionType, AnnotationType};
use pdf_writer::{Content, Date, Filter, Finish as _, Name, Pdf, Rect, Ref, Str, TextStr};

use super::chart::{self, Anchor, Chart, LineColour, Mark};
use super::text::{Font, encode, width, wrap};
use super::{databases, groups, latest, state, tiles};
use crate::scan::{Report, Severity};

const PAGE: (f32, f32) = (595.0, 842.0);
const LEFT: f32 = 50.0;
const RIGHT: f32 = 545.0;
const TOP: f32 = 790.0;
const BOTTOM: f32 = 58.0;

type Colour = (f32, f32, f32);
const INK: Colour = (0.11, 0.125, 0.14);
const SOFT: Colour = (0.376, 0.404, 0.435);
const RULE: Colour = (0.86, 0.875, 0.89);
const WHITE: Colour = (1.0, 1.0, 1.0);
const GOOD: Colour = (0.122, 0.478, 0.267);
const BAD: Colour = (0.753, 0.204, 0.204);
const BLUE: Colour = (0.145, 0.388, 0.788);
const BROWN: Colour = (0.761, 0.439, 0.239);

/// One document over one or several scans. With `fail_on` it says whether a gate with that limit is open.
pub fn to_pdf(title: &str, reports: &[Report], fail_on: Option<Severity>) -> Vec<u8> {
    let mut writer = PageWriter::new();
    head(&mut writer, title, reports, fail_on);
    for report in reports {
        if reports.len() > 1 {
            writer.gap(10.0);
            writer.heading(&report.target, 15.0);
        }
        body(&mut writer, report);
    }
    let at = reports.iter().map(|r| r.made_at).max().unwrap_or_default();
    writer.finish(title, &latest(reports), at, "textnlp-deploy, security scan")
}

/// A document of numbers, plots and tables.
#[derive(Debug, Clone, Copy)]
pub struct TableDocument<'a> {
    /// Its title.
    pub title: &'a str,
    /// When it was made.
    pub at: Timestamp,
    /// Names with values, at the top.
    pub values: &'a [(String, String)],
    /// Its plots.
    pub charts: &'a [Chart],
    /// Its tables.
    pub tables: &'a [PrintedTable<'a>],
    /// Remarks, at the end.
    pub notes: &'a [String],
    /// The text at the foot of every page.
    pub foot: &'a str,
}

/// A table's title, its columns, and rows of the same length.
pub type PrintedTable<'a> = (&'a str, &'a [String], &'a [Vec<String>]);

/// The document on paper.
pub fn tables_to_pdf(document: &TableDocument<'_>) -> Vec<u8> {
    let TableDocument { title, at, values, charts, tables, notes, foot } = *document;
    let when = at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let mut writer = PageWriter::new();
    writer.lines(title, Font::Bold, 21.0, INK, LEFT, RIGHT - LEFT);
    writer.gap(2.0);
    writer.lines(&when, Font::Regular, 10.0, SOFT, LEFT, RIGHT - LEFT);
    writer.gap(12.0);
    let values = values.iter().map(|(name, value)| vec![name.clone(), value.clone()]);
    writer.table(&["", ""], &[200.0, 295.0], values);
    for chart in charts {
        writer.chart(chart);
    }
    for (title, columns, rows) in tables.iter().filter(|(_, _, rows)| !rows.is_empty()) {
        writer.heading(title, 13.0);
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        writer.table(&names, &shares(columns, rows), rows.iter().cloned());
    }
    if !notes.is_empty() {
        writer.heading("Notes", 13.0);
        for note in notes {
            writer.lines(note, Font::Regular, 9.5, INK, LEFT, RIGHT - LEFT);
            writer.gap(3.0);
        }
    }
    writer.finish(title, &when, at, foot)
}

/// The widths of columns, by their longest values.
fn shares(columns: &[String], rows: &[Vec<String>]) -> Vec<f32> {
    const LONGEST: usize = 60;
    let longest = |column: usize| {
        let values = std::iter::once(columns).chain(rows.iter().map(Vec::as_slice)).filter_map(|row| row.get(column));
        values.map(|value| value.chars().count().min(LONGEST)).max().unwrap_or_default() + 3
    };
    let lengths: Vec<usize> = (0..columns.len()).map(longest).collect();
    let all: usize = lengths.iter().sum::<usize>().max(1);
    lengths.iter().map(|length| (RIGHT - LEFT) * *length as f32 / all as f32).collect()
}

fn head(writer: &mut PageWriter, title: &str, reports: &[Report], fail_on: Option<Severity>) {
    writer.lines(title, Font::Bold, 21.0, INK, LEFT, RIGHT - LEFT);
    writer.gap(2.0);
    writer.lines(&latest(reports), Font::Regular, 10.0, SOFT, LEFT, RIGHT - LEFT);
    if let (Some(state), Some(limit)) = (state(reports, fail_on), fail_on) {
        writer.gap(8.0);
        let colour = if state == "open" { GOOD } else { BAD };
        let verdict = match state {
            "open" => format!("Gate: passed. No finding is {limit} or worse, and everything required was scanned."),
            _ => format!("Gate: failed. A finding is {limit} or worse, or something required was not scanned."),
        };
        writer.lines(&verdict, Font::Bold, 11.0, colour, LEFT, RIGHT - LEFT);
    }
    writer.gap(12.0);
    writer.tiles(&tiles(reports));
}

fn body(writer: &mut PageWriter, report: &Report) {
    writer.gap(8.0);
    writer.fact("target", &report.target);
    for line in databases(report) {
        writer.fact("advisories", &line);
    }
    writer.heading("Findings", 13.0);
    if report.findings.is_empty() {
        writer.lines("No findings in what was scanned.", Font::Regular, 10.0, INK, LEFT, RIGHT - LEFT);
    }
    for group in groups(&report.findings) {
        writer.finding(&group);
    }
    if !report.not_looked_at.is_empty() {
        writer.heading("Not scanned", 13.0);
        let rows = report.not_looked_at.iter().map(|n| {
            let need = if n.required { "required" } else { "" };
            vec![n.what.clone(), n.why.clone(), need.to_owned()]
        });
        writer.table(&["what", "why", "gate"], &[200.0, 235.0, 60.0], rows);
    }
    if !report.allowed.is_empty() {
        writer.heading("Allowed", 13.0);
        let rows = report.allowed.iter().map(|a| {
            vec![
                format!("{} ({})", a.finding.id, a.finding.severity),
                a.finding.place.clone(),
                a.reason.clone(),
                a.until.to_string(),
            ]
        });
        writer.table(&["finding", "where", "reason", "until"], &[125.0, 140.0, 165.0, 65.0], rows);
    }
    if !report.listed.is_empty() {
        writer.heading("Scanned", 13.0);
        let rows = report.listed.iter().map(|l| vec![l.what.clone(), l.count.to_string(), l.how.clone()]);
        writer.table(&["what", "count", "how"], &[220.0, 50.0, 225.0], rows);
    }
}

fn colour(severity: Severity) -> Colour {
    match severity {
        Severity::Critical => (0.6, 0.09, 0.12),
        Severity::High => BAD,
        Severity::Medium => (0.604, 0.42, 0.0),
        Severity::Low => BLUE,
        Severity::Info => SOFT,
    }
}

fn line_colour(colour: LineColour) -> Colour {
    match colour {
        LineColour::Blue => BLUE,
        LineColour::Brown => BROWN,
        LineColour::Red => BAD,
    }
}

/// Fills pages from the top down.
struct PageWriter {
    pages: Vec<Content>,
    y: f32,
    /// The links of each page: area and target.
    links: Vec<Vec<(Rect, String)>>,
}

impl PageWriter {
    fn new() -> PageWriter {
        PageWriter { pages: vec![Content::new()], y: TOP, links: vec![Vec::new()] }
    }

    fn page(&mut self) -> &mut Content {
        if self.pages.is_empty() {
            self.pages.push(Content::new());
        }
        self.pages.last_mut().expect("there is a page: one was just made if not")
    }

    /// Continues on the next page unless this much space is left.
    fn room(&mut self, height: f32) {
        if self.y - height < BOTTOM && self.y < TOP {
            self.pages.push(Content::new());
            self.links.push(Vec::new());
            self.y = TOP;
        }
    }

    fn gap(&mut self, height: f32) {
        if self.y < TOP {
            self.y -= height;
        }
    }

    fn show(&mut self, encoded: &[u8], font: Font, size: f32, colour: Colour, x: f32, y: f32) {
        let name = if font == Font::Bold { Name(b"B") } else { Name(b"R") };
        let page = self.page();
        page.begin_text();
        page.set_fill_rgb(colour.0, colour.1, colour.2);
        page.set_font(name, size);
        page.set_text_matrix([1.0, 0.0, 0.0, 1.0, x, y]);
        page.show(Str(encoded));
        page.end_text();
    }

    fn lines(&mut self, text: &str, font: Font, size: f32, colour: Colour, x: f32, most: f32) {
        for line in wrap(text, font, size, most) {
            let height = size * 1.32;
            self.room(height);
            self.y -= height;
            let y = self.y + size * 0.28;
            self.show(&line, font, size, colour, x, y);
        }
    }

    fn rule(&mut self, y: f32) {
        self.stroke(RULE, 0.7, &[(LEFT, y), (RIGHT, y)]);
    }

    fn heading(&mut self, text: &str, size: f32) {
        self.gap(14.0);
        // A heading is on the same page as the following text.
        self.room(size + 70.0);
        self.lines(text, Font::Bold, size, INK, LEFT, RIGHT - LEFT);
        self.gap(4.0);
    }

    /// A chart with its title and its legend, on one page.
    fn chart(&mut self, chart: &Chart) {
        const LABEL: f32 = 8.0;
        let scale = (RIGHT - LEFT) / chart::WIDTH as f32;
        let height = chart::HEIGHT as f32 * scale;
        self.gap(14.0);
        self.room(height + 34.0);
        self.lines(chart.title, Font::Bold, 11.0, INK, LEFT, RIGHT - LEFT);
        if !chart.lines().is_empty() {
            self.y -= 12.0;
            let (mut x, y) = (LEFT, self.y);
            for line in chart.lines() {
                let name = encode(line.name);
                self.rectangle(line_colour(line.colour), (x, y), (7.0, 7.0));
                self.show(&name, Font::Regular, LABEL, SOFT, x + 10.0, y + 0.5);
                x += width(&name, Font::Regular, LABEL) + 24.0;
            }
        }
        self.gap(4.0);
        let top = self.y;
        let at = |x: f64, y: f64| (LEFT + x as f32 * scale, top - y as f32 * scale);
        let across = |y: f64| [at(chart::LEFT, y), at(chart::WIDTH - chart::RIGHT, y)];
        for mark in chart.marks() {
            match mark {
                Mark::Grid { y } => self.stroke(RULE, 0.7, &across(y)),
                Mark::Limit { y } => self.stroke(BAD, 0.7, &across(y)),
                Mark::Line { colour, points } => {
                    let points: Vec<(f32, f32)> = points.iter().map(|(x, y)| at(*x, *y)).collect();
                    self.stroke(line_colour(colour), 1.3, &points);
                }
                Mark::Dot { colour, x, y } => {
                    let (x, y) = at(x, y);
                    self.rectangle(line_colour(colour), (x - 2.0, y - 2.0), (4.0, 4.0));
                }
                Mark::Bar { x, y, width, height, .. } => {
                    self.rectangle(BLUE, at(x, y + height), (width as f32 * scale, height as f32 * scale));
                }
                Mark::Text { x, y, anchor, text } => {
                    let ((x, y), label) = (at(x, y), encode(&text));
                    let before = match anchor {
                        Anchor::Start => 0.0,
                        Anchor::Middle => width(&label, Font::Regular, LABEL) / 2.0,
                        Anchor::End => width(&label, Font::Regular, LABEL),
                    };
                    self.show(&label, Font::Regular, LABEL, SOFT, x - before, y);
                }
            }
        }
        self.y -= height;
    }

    fn stroke(&mut self, colour: Colour, thickness: f32, points: &[(f32, f32)]) {
        let page = self.page();
        page.set_stroke_rgb(colour.0, colour.1, colour.2);
        page.set_line_width(thickness);
        for (n, (x, y)) in points.iter().enumerate() {
            if n == 0 {
                page.move_to(*x, *y);
            } else {
                page.line_to(*x, *y);
            }
        }
        page.stroke();
    }

    fn rectangle(&mut self, colour: Colour, (x, y): (f32, f32), (width, height): (f32, f32)) {
        let page = self.page();
        page.set_fill_rgb(colour.0, colour.1, colour.2);
        page.rect(x, y, width, height);
        page.fill_nonzero();
    }

    fn fact(&mut self, name: &str, value: &str) {
        self.room(16.0);
        let y = self.y;
        self.lines(name, Font::Regular, 9.5, SOFT, LEFT, 80.0);
        self.y = y;
        self.lines(value, Font::Regular, 9.5, INK, LEFT + 84.0, RIGHT - LEFT - 84.0);
        self.gap(1.5);
    }

    /// A box per number, in one row.
    fn tiles(&mut self, tiles: &[(&str, u64)]) {
        let (gap, height) = (6.0, 44.0);
        self.room(height);
        let count = tiles.len().max(1) as f32;
        let wide = (RIGHT - LEFT - gap * (count - 1.0)) / count;
        for (at, (name, number)) in tiles.iter().enumerate() {
            let x = LEFT + at as f32 * (wide + gap);
            let y = self.y - height;
            let severity = name.parse::<Severity>().ok().filter(|_| *number > 0);
            let ink = severity.map_or(INK, colour);
            let edge = severity.map_or(RULE, colour);
            let page = self.page();
            page.set_stroke_rgb(edge.0, edge.1, edge.2);
            page.set_line_width(if severity.is_some() { 1.4 } else { 0.7 });
            page.rect(x, y, wide, height);
            page.stroke();
            self.show(&encode(&number.to_string()), Font::Bold, 17.0, ink, x + 7.0, y + 21.0);
            self.show(&encode(name), Font::Regular, 8.5, SOFT, x + 7.0, y + 8.5);
        }
        self.y -= height;
        self.gap(6.0);
    }

    /// A block: a label with the severity, and the facts beside it.
    fn finding(&mut self, group: &super::Group<'_>) {
        let finding = group.first;
        let (x, most) = (LEFT + 66.0, RIGHT - LEFT - 66.0);
        let mut rows: Vec<(&str, String)> = Vec::new();
        if let (Some(package), Some(installed)) = (&finding.package, &finding.installed) {
            let score = finding.score.map(|s| format!(", CVSS {s:.1}")).unwrap_or_default();
            let fixed = finding
                .fixed_in
                .as_ref()
                .map_or_else(|| ", no fixed version".to_owned(), |f| format!(", fixed in {f}"));
            rows.push(("package", format!("{package} {installed}{fixed}{score}")));
        }
        let shown = group.places.len().min(15);
        let mut places = group.places[..shown].join("  •  ");
        if group.places.len() > shown {
            places.push_str(&format!("  •  and {} more", group.places.len() - shown));
        }
        rows.push(("where", places));
        rows.push(("why", finding.reason.clone()));
        rows.push(("do", finding.fix.clone()));
        if !finding.aliases.is_empty() {
            rows.push(("also", finding.aliases.join(", ")));
        }
        rows.extend(finding.url.clone().map(|url| ("read", url)));
        let title = format!("{} · {}", finding.id, finding.title);
        let count: usize = rows.iter().map(|(_, v)| wrap(v, Font::Regular, 9.0, most - 48.0).len()).sum();
        let height = wrap(&title, Font::Bold, 10.5, most).len() as f32 * 14.0 + count as f32 * 11.9 + 16.0;
        // Kept on one page where one page can hold it.
        self.room(height.min(TOP - BOTTOM));
        let top = self.y;
        // At the top of a page the head's rule is there already.
        if top < TOP {
            self.rule(top);
        }
        self.gap(5.0);
        self.y = self.y.min(top - 5.0);
        let ink = colour(finding.severity);
        let (label, y) = (encode(finding.severity.as_str()), self.y - 13.0);
        self.rectangle(ink, (LEFT, y), (54.0, 13.5));
        let middle = LEFT + (54.0 - width(&label, Font::Bold, 8.5)) / 2.0;
        self.show(&label, Font::Bold, 8.5, WHITE, middle, y + 4.0);
        self.lines(&title, Font::Bold, 10.5, INK, x, most);
        for (name, value) in rows {
            self.room(11.9);
            let before = (self.pages.len(), self.y);
            self.show(&encode(name), Font::Regular, 9.0, SOFT, x, before.1 - 11.9 + 2.5);
            self.lines(&value, Font::Regular, 9.0, INK, x + 48.0, most - 48.0);
            if name == "read" && before.0 == self.pages.len() && value.starts_with("https://") {
                let area = Rect::new(x + 48.0, self.y, RIGHT, before.1);
                self.links.last_mut().expect("every page has its list of links").push((area, value));
            }
        }
        self.gap(7.0);
    }

    fn table(&mut self, head: &[&str], widths: &[f32], rows: impl Iterator<Item = Vec<String>>) {
        let size = 9.0;
        let line = size * 1.32;
        let cells =
            |writer: &mut PageWriter, lines: &[Vec<Vec<u8>>], from: usize, until: usize, font: Font, ink: Colour| {
                let mut x = LEFT;
                for (cell, wide) in lines.iter().zip(widths) {
                    for (nth, text) in cell.iter().skip(from).take(until - from).enumerate() {
                        let y = writer.y - (nth + 1) as f32 * line + size * 0.28;
                        writer.show(text, font, size, ink, x, y);
                    }
                    x += wide;
                }
                writer.y -= (until - from) as f32 * line;
            };
        let broken = |row: &[String], font: Font| -> Vec<Vec<Vec<u8>>> {
            let cell = |text: &str, wide: f32| text.lines().flat_map(|line| wrap(line, font, size, wide)).collect();
            row.iter().zip(widths).map(|(text, wide)| cell(text, wide - 10.0)).collect()
        };
        let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
        self.room(line * 3.0);
        cells(self, &broken(&head, Font::Regular), 0, 1, Font::Regular, SOFT);
        for row in rows {
            let lines = broken(&row, Font::Regular);
            let all = lines.iter().map(Vec::len).max().unwrap_or(0);
            let height = all as f32 * line + 8.0;
            self.room(height.min(TOP - BOTTOM));
            let y = self.y - 2.0;
            self.rule(y);
            self.y -= 4.0;
            // A row that is longer than a page continues on the next.
            let mut from = 0;
            while from < all {
                let fit = ((self.y - BOTTOM) / line).floor().max(1.0) as usize;
                let until = all.min(from + fit);
                cells(self, &lines, from, until, Font::Regular, INK);
                from = until;
                if from < all {
                    self.room(TOP);
                }
            }
            self.y -= 4.0;
        }
    }

    fn finish(mut self, title: &str, when: &str, at: Timestamp, foot: &str) -> Vec<u8> {
        let count = self.pages.len();
        let mut next = 1;
        let mut id = || {
            next += 1;
            Ref::new(next)
        };
        let (catalog, tree, info, regular, bold) = (id(), id(), id(), id(), id());
        let mut pdf = Pdf::new();
        pdf.catalog(catalog).pages(tree).lang(TextStr("en"));
        let mut about = pdf.document_info(info);
        about.title(TextStr(title)).producer(TextStr("textnlp-deploy")).creator(TextStr("textnlp-deploy"));
        about.creation_date(date(at));
        about.finish();
        for (font, name) in [(regular, &b"Helvetica"[..]), (bold, b"Helvetica-Bold")] {
            pdf.type1_font(font).base_font(Name(name)).encoding_predefined(Name(b"WinAnsiEncoding"));
        }
        let mut kids = Vec::new();
        let links = std::mem::take(&mut self.links);
        let pages = std::mem::take(&mut self.pages);
        for (nth, (content, links)) in pages.into_iter().zip(links).enumerate() {
            let (page_id, content_id) = (id(), id());
            kids.push(page_id);
            let mut one = PageWriter { pages: vec![content], y: TOP, links: Vec::new() };
            one.frame((title, when, foot), nth + 1, count);
            let stream = one.pages.pop().expect("the page was just put there").finish();
            let packed = packed(&stream);
            pdf.stream(content_id, &packed).filter(Filter::FlateDecode);
            let mut page = pdf.page(page_id);
            page.parent(tree).media_box(Rect::new(0.0, 0.0, PAGE.0, PAGE.1)).contents(content_id);
            page.resources().fonts().pair(Name(b"R"), regular).pair(Name(b"B"), bold);
            let links: Vec<(Ref, Rect, String)> = links.into_iter().map(|(area, url)| (id(), area, url)).collect();
            page.annotations(links.iter().map(|(link, ..)| *link));
            page.finish();
            for (link, area, url) in links {
                let mut link = pdf.annotation(link);
                link.subtype(AnnotationType::Link).rect(area).border(0.0, 0.0, 0.0, None);
                link.action().action_type(ActionType::Uri).uri(Str(url.as_bytes()));
            }
        }
        pdf.pages(tree).count(i32::try_from(kids.len()).unwrap_or(i32::MAX)).kids(kids);
        pdf.finish()
    }

    /// Header and footer; the first page has the title already.
    fn frame(&mut self, (title, when, text): (&str, &str, &str), nth: usize, count: usize) {
        if nth > 1 {
            let short = wrap(title, Font::Regular, 8.5, 380.0).into_iter().next().unwrap_or_default();
            self.show(&short, Font::Regular, 8.5, SOFT, LEFT, 806.0);
            let when = encode(when);
            self.show(&when, Font::Regular, 8.5, SOFT, RIGHT - width(&when, Font::Regular, 8.5), 806.0);
            self.rule(800.0);
        }
        let foot = encode(&format!("page {nth} of {count}"));
        self.show(&foot, Font::Regular, 8.5, SOFT, RIGHT - width(&foot, Font::Regular, 8.5), 32.0);
        self.show(&encode(text), Font::Regular, 8.5, SOFT, LEFT, 32.0);
    }
}

fn packed(stream: &[u8]) -> Vec<u8> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(stream).and_then(|()| zlib.finish()).expect("writing to memory does not fail")
}

fn date(at: Timestamp) -> Date {
    let at = at.to_zoned(TimeZone::UTC);
    let part = |n: i8| u8::try_from(n).unwrap_or(0);
    Date::new(u16::try_from(at.year()).unwrap_or(1970))
        .month(part(at.month()))
        .day(part(at.day()))
        .hour(part(at.hour()))
        .minute(part(at.minute()))
        .second(part(at.second()))
        .utc_offset_hour(0)
        .utc_offset_minute(0)
}
