//! Analysis of logs: equal errors are one group, with the time from which they occur more often and their likely cause.

mod cause;
mod change;
mod line;
mod run;

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use serde::Serialize;

pub use cause::Cause;
pub use change::Change;
use change::Series;
pub use line::Level;
use line::{Line, template};
pub use run::{RunSpan, runs};

/// Groups that are kept apart. Further ones are counted together.
const GROUPS_MAX: usize = 2_000;
/// Sources that are listed of a group.
const SOURCES_MAX: usize = 20;
/// Sources that are kept apart. Further ones count as one.
const LOGS_MAX: usize = 10_000;
/// Characters of an example.
const EXAMPLE_MAX: usize = 500;

/// The time that a line of a log begins with, or has as a field.
pub fn time_of(line: &str) -> Option<Timestamp> {
    Line::parse(line).at
}

/// Reads lines of logs, in any order. Its memory does not depend on how many there are.
#[derive(Debug, Default)]
pub struct Analyzer {
    since: Option<Timestamp>,
    /// Whether warnings are ignored, so that they take no group from an error.
    only_errors: bool,
    lines: u64,
    sources: HashMap<String, Source>,
    groups: HashMap<(Level, String), GroupTotals>,
    ungrouped: u64,
}

/// What is known of one log.
#[derive(Debug, Default)]
struct Source {
    /// The times of its first and last line.
    span: Option<(Timestamp, Timestamp)>,
    /// Whether its last line with a time was too old.
    skips: bool,
}

#[derive(Debug, Default)]
struct GroupTotals {
    count: u64,
    sources: BTreeSet<String>,
    series: Series,
    /// The times of the first and last occurrence.
    span: Option<(Timestamp, Timestamp)>,
    first: String,
    last: String,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Analysis {
    /// Lines read.
    pub lines: u64,
    /// The time of the first line, if any has one.
    pub from: Option<Timestamp>,
    /// The time of the last line.
    pub to: Option<Timestamp>,
    /// Occurrences of errors in groups.
    pub errors: u64,
    /// Occurrences of warnings in groups.
    pub warnings: u64,
    /// Equal errors and warnings: errors first, the most frequent first.
    pub groups: Vec<Group>,
    /// Occurrences that are in no group, because there were too many different ones.
    pub ungrouped: u64,
}

/// Equal errors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// The level.
    pub level: Level,
    /// The message, without what differs.
    pub template: String,
    /// Occurrences.
    pub count: u64,
    /// The processes or pods that reported it, at most 20.
    pub sources: Vec<String>,
    /// When it first occurred.
    pub first: Option<Timestamp>,
    /// When it last occurred.
    pub last: Option<Timestamp>,
    /// From when on it occurs more often.
    pub change: Option<Change>,
    /// The likely cause.
    pub cause: Option<Cause>,
    /// The run during which it began, or became more frequent: see [`Group::attribute`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunSpan>,
    /// One of the lines: the first message.
    pub example: String,
    /// The last message, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest: Option<String>,
}

impl Analyzer {
    /// An analyzer that ignores lines before this time. Lines without a time follow the one before them.
    pub fn since(since: Option<Timestamp>) -> Self {
        Self { since, ..Self::default() }
    }

    /// The same without warnings.
    pub fn errors_since(since: Timestamp) -> Self {
        Self { only_errors: true, ..Self::since(Some(since)) }
    }

    /// Reads a line of a source, which lines with a pod's name replace.
    pub fn add(&mut self, source: &str, text: &str) {
        let line = Line::parse(text);
        let name = line.source.as_deref().unwrap_or(source);
        let name = if self.sources.len() < LOGS_MAX || self.sources.contains_key(name) { name } else { "" };
        let known = self.sources.entry(name.to_owned()).or_default();
        if let Some(at) = line.at {
            known.skips = self.since.is_some_and(|since| at < since);
        }
        if known.skips {
            return;
        }
        self.lines += 1;
        if let Some(at) = line.at {
            known.span = Some(known.span.map_or((at, at), |(from, to)| (from.min(at), to.max(at))));
        }
        if line.level == Level::Info || (self.only_errors && line.level != Level::Error) {
            return;
        }
        let key = (line.level, template(&line.message));
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&key) {
            self.ungrouped += line.count;
            return;
        }
        let group = self.groups.entry(key).or_default();
        group.count += line.count;
        let message = shortened(&line.message);
        if group.first.is_empty() {
            group.first.clone_from(&message);
        }
        group.last = message;
        if group.sources.len() < SOURCES_MAX {
            group.sources.insert(name.to_owned());
        }
        if let Some(at) = line.at {
            group.series.add(at, line.count);
            group.span = Some(group.span.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
        }
    }

    /// The result.
    pub fn finish(self) -> Analysis {
        let spans = || self.sources.values().filter_map(|source| source.span);
        let (from, to) = (spans().map(|(from, _)| from).min(), spans().map(|(_, to)| to).max());
        let mut groups: Vec<Group> = self
            .groups
            .into_iter()
            .map(|((level, template), group)| group.finish(level, template, &self.sources))
            .collect();
        groups.sort_by(|a, b| (b.level, b.count).cmp(&(a.level, a.count)).then_with(|| a.template.cmp(&b.template)));
        let count = |level| groups.iter().filter(|group| group.level == level).map(|group| group.count).sum();
        Analysis {
            lines: self.lines,
            from,
            to,
            errors: count(Level::Error),
            warnings: count(Level::Warning),
            groups,
            ungrouped: self.ungrouped,
        }
    }
}

impl Group {
    /// Names the run during which it began, or became more frequent.
    pub fn attribute(&mut self, runs: &[RunSpan]) {
        let times = [self.change.map(|change| change.at), self.first];
        let covers = |run: &&RunSpan| times.iter().flatten().any(|at| run.covers(*at));
        self.run = runs.iter().rev().find(covers).cloned();
    }
}

impl GroupTotals {
    fn finish(self, level: Level, template: String, logs: &HashMap<String, Source>) -> Group {
        let (first, last) = self.span.unzip();
        // What is before the beginning of one of the logs is unknown, and no time without errors.
        let spans = || self.sources.iter().filter_map(|name| logs.get(name)?.span);
        let span = spans().map(|(from, _)| from).max().zip(spans().map(|(_, to)| to).max());
        Group {
            level,
            count: self.count,
            sources: self.sources.into_iter().filter(|source| !source.is_empty()).collect(),
            first,
            last,
            change: span.and_then(|(from, to)| self.series.change(from, to)),
            cause: Cause::of(&self.first),
            run: None,
            latest: (self.last != self.first).then_some(self.last),
            example: self.first,
            template,
        }
    }
}

fn shortened(message: &str) -> String {
    message[..message.floor_char_boundary(EXAMPLE_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: u32, level: &str, message: &str) -> String {
        let (minute, second) = (second / 60, second % 60);
        format!(r#"{{"timestamp":"2026-11-23T10:{minute:02}:{second:02}Z","level":"{level}","message":"{message}"}}"#)
    }

    #[test]
    fn errors_are_grouped_with_change_and_cause() {
        let mut analyzer = Analyzer::default();
        for second in 0..3000 {
            analyzer.add("server-0", &line(second, "INFO", "request"));
        }
        for second in 2400..3000 {
            analyzer.add("server-0", &line(second, "ERROR", &format!("the database query failed after {second} ms")));
        }
        analyzer.add("gateway", &line(10, "WARN", "handshake failed"));
        let found = analyzer.finish();
        assert_eq!((found.lines, found.errors, found.warnings, found.groups.len()), (3601, 600, 1, 2));
        let error = &found.groups[0];
        assert_eq!(error.template, "the database query failed after N ms");
        assert_eq!(error.cause.unwrap().command, "status");
        assert_eq!(error.change.unwrap().at.to_string(), "2026-11-23T10:40:00Z");
        assert_eq!(error.latest.as_deref(), Some("the database query failed after 2999 ms"));
        assert_eq!(found.groups[1].change, None);
    }

    #[test]
    fn errors_that_begin_during_a_run_name_it() {
        let mut analyzer = Analyzer::default();
        analyzer.add("gateway", &line(10, "ERROR", "backend removed from rotation"));
        analyzer.add("server-0", &line(900, "ERROR", "the disk failed"));
        let time = |second: &str| format!("2026-11-23T10:00:{second}Z").parse().unwrap();
        let site = textnlp_provider::SiteName::new("here").unwrap();
        let run = RunSpan { site, purpose: crate::plan::Purpose::Up, from: time("08"), until: time("12") };
        let mut groups = analyzer.finish().groups;
        groups.iter_mut().for_each(|group| group.attribute(std::slice::from_ref(&run)));
        let named: Vec<_> = groups.iter().map(|group| (group.template.as_str(), group.run.as_ref())).collect();
        assert_eq!(named, [("backend removed from rotation", Some(&run)), ("the disk failed", None)]);
    }

    #[test]
    fn many_different_errors_are_counted_in_bounded_memory() {
        let mut analyzer = Analyzer::default();
        let word = |n: usize| {
            (0..4)
                .map(|digit| char::from(b'a' + u8::try_from(n / 26usize.pow(digit) % 26).unwrap()))
                .collect::<String>()
        };
        for n in 0..GROUPS_MAX + 500 {
            analyzer.add("server-0", &line(0, "ERROR", &word(n)));
        }
        let found = analyzer.finish();
        assert_eq!((found.groups.len(), found.ungrouped), (GROUPS_MAX, 500));
    }

    #[test]
    fn time_before_the_beginning_of_a_log_is_no_time_without_errors() {
        let mut analyzer = Analyzer::default();
        analyzer.add("gateway", &line(0, "INFO", "request"));
        (2400..3000).for_each(|second| analyzer.add("server-0", &line(second, "ERROR", "always")));
        assert_eq!(analyzer.finish().groups[0].change, None);
    }

    #[test]
    fn lines_before_the_time_are_ignored() {
        let mut analyzer = Analyzer::since(Some("2026-11-23T10:00:30Z".parse().unwrap()));
        analyzer.add("server-0", &line(29, "ERROR", "old"));
        analyzer.add("server-0", "thread 'main' panicked at old.rs:1:1:");
        analyzer.add("server-0", &line(31, "ERROR", "new"));
        let found = analyzer.finish();
        assert_eq!((found.lines, found.groups.len()), (1, 1));
        assert_eq!(found.groups[0].example, "new");
    }
}
