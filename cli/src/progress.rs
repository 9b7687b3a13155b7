//! What happens during an apply, on a terminal or in a log.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use textnlp_orchestrator::event::{Event, Events, What};

use crate::report::Console;

/// Shows events: a line for each thing that is done, and on a terminal a last line that says what is waited for.
pub struct Progress {
    console: Console,
    bar: ProgressBar,
    waiting: Mutex<BTreeMap<String, String>>,
}

impl Progress {
    /// A spinner only where somebody watches it.
    pub fn new(console: Console) -> Self {
        let watched = !console.is_quiet() && std::io::stderr().is_terminal();
        let bar = ProgressBar::new_spinner();
        bar.set_draw_target(if watched { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {wide_msg}") {
            bar.set_style(style);
        }
        if watched {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Self { console, bar, waiting: Mutex::new(BTreeMap::new()) }
    }

    /// Says what the program is doing now.
    pub fn doing(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// A line that stays.
    pub fn line(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| self.console.say(line));
    }

    /// Takes the spinner away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn wait_for(&self, resource: String, text: Option<String>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => waiting.insert(resource, text),
            None => waiting.remove(&resource),
        };
        let shown: Vec<_> = waiting.iter().take(3).map(|(resource, text)| format!("{resource}: {text}")).collect();
        let more = waiting.len().saturating_sub(3);
        let more = if more > 0 { format!("  and {more} more") } else { String::new() };
        self.bar.set_message(format!("{}{more}", shown.join("  ·  ")));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Events for Progress {
    fn tell(&self, event: Event) {
        if let Ok(value) = serde_json::to_value(&event) {
            self.console.event(&value);
        }
        match event.what {
            What::Looking { site } => self.doing(&format!("looking at {site}")),
            What::Recovering { resource, verb, operation } => {
                self.line(format!(
                    "  ↺ {resource}: finishing `{verb}`, left open by an earlier run (operation {operation})"
                ));
            }
            What::Planned { .. } => {}
            What::Started { resource, verb, .. } => self.wait_for(resource.to_string(), Some(verb.to_string())),
            What::Says { resource, text } => self.wait_for(resource.to_string(), Some(text)),
            What::Retrying { resource, because, in_ms } => {
                self.line(format!("  … {resource}: {because}; again in {in_ms} ms"));
            }
            What::GateAsked { site } => {
                self.line(format!("  ◇ {site}: measured from outside before anything of the old goes"))
            }
            What::GateAnswered { site, shut_because } if shut_because.is_empty() => {
                self.line(format!("  {} {site}: the gate is open", self.console.paint("32", "◇")));
            }
            What::GateAnswered { site, shut_because } => {
                self.line(format!(
                    "  {} {site}: the gate is shut: {}",
                    self.console.paint("31", "◇"),
                    shut_because.join("; ")
                ));
            }
            What::Chose { .. } | What::Noted { .. } => {}
            What::Done { resource, verb, ms } => {
                self.wait_for(resource.to_string(), None);
                self.line(format!(
                    "  {} {verb:<7} {resource}  {:.1} s",
                    self.console.paint("32", "✓"),
                    ms as f64 / 1000.0
                ));
            }
            What::Failed { resource, verb, because, .. } => {
                self.wait_for(resource.to_string(), None);
                self.line(format!("  {} {verb:<7} {resource}: {because}", self.console.paint("31", "✗")));
            }
            What::Skipped { resource, because } => self.line(format!("  - skipped {resource}: {because}")),
            What::LeftOpen { resource, .. } => {
                self.line(format!("  ↻ {resource}: still open; the next run finishes it"))
            }
            What::Note { text } => self.line(format!("  {text}")),
        }
    }
}
