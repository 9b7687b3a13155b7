//! Progress of an apply, on a terminal or in a log.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use textnlp_orchestrator::event::{Event, EventKind, Events};
use textnlp_provider::ResourceId;
use textnlp_service::Scope;

use crate::report::{Console, printable};

/// How long a step waits before a log says what for, and until it says another reason.
const LOG_INTERVAL: SignedDuration = SignedDuration::from_secs(30);

/// What a log says of the steps that wait: a terminal shows that in its last line.
#[derive(Default)]
struct LoggedWaits(BTreeMap<ResourceId, (Timestamp, Option<String>)>);

impl LoggedWaits {
    /// The line about a reason, if it is due.
    fn line(&mut self, resource: &ResourceId, reason: &str, at: Timestamp) -> Option<String> {
        let (since, last) = self.0.entry(resource.clone()).or_insert((at, None));
        if at.duration_since(*since) < LOG_INTERVAL || last.as_deref() == Some(reason) {
            return None;
        }
        (*since, *last) = (at, Some(reason.to_owned()));
        Some(format!("  … {resource}: {reason}"))
    }

    fn end(&mut self, resource: &ResourceId) {
        self.0.remove(resource);
    }
}

/// Prints events: one line per completed step, and on a terminal a last line with pending work.
pub struct Progress {
    console: Console,
    bar: ProgressBar,
    waiting: Mutex<BTreeMap<String, String>>,
    logged: Mutex<LoggedWaits>,
}

impl Progress {
    /// A spinner is shown only on a terminal.
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
        Self { console, bar, waiting: Mutex::default(), logged: Mutex::default() }
    }

    /// Shows the current activity.
    pub fn doing(&self, text: &str) {
        self.bar.set_message(printable(text).into_owned());
    }

    /// Prints a permanent line, unless a terminal shows the current activity.
    pub fn log(&self, line: &str) {
        if self.bar.is_hidden() {
            self.console.say(line);
        }
    }

    /// Prints a permanent line.
    pub fn line(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| self.console.say(line));
    }

    /// Runs this, such as a question, without the spinner on the terminal.
    pub fn paused<T>(&self, ask: impl FnOnce() -> T) -> T {
        self.bar.suspend(ask)
    }

    /// Removes the spinner after this.
    pub fn done<T>(&self, result: T) -> T {
        self.finish();
        result
    }

    /// Removes the spinner.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn logged(&self) -> MutexGuard<'_, LoggedWaits> {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.bar.set_message(printable(&format!("{}{more}", shown.join("  ·  "))).into_owned());
    }
}

impl textnlp_service::Progress for Progress {
    fn doing(&self, activity: &str) {
        self.doing(activity);
    }

    fn line(&self, line: &str) {
        self.line(line);
    }

    fn log(&self, line: &str) {
        self.log(line);
    }

    fn warn(&self, warning: &str) {
        self.bar.suspend(|| self.console.warn(warning));
    }

    fn event(&self, event: &Value) {
        self.console.event(event);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Passes events on. The commands in hints of providers get the flags of this environment.
pub fn completed_hints(events: &dyn Events, scope: &Scope) -> impl Fn(Event) + Send + Sync {
    move |mut event: Event| {
        if let EventKind::Failed { hint: Some(hint), .. } = &mut event.what {
            *hint = scope.complete(hint);
        }
        events.tell(event);
    }
}

impl Events for Progress {
    fn tell(&self, event: Event) {
        if let Ok(value) = serde_json::to_value(&event) {
            self.console.event(&value);
        }
        match event.what {
            EventKind::Looking { site } => self.doing(&format!("reading {site}")),
            EventKind::Recovering { resource, verb, operation } => {
                self.line(format!(
                    "  ↺ {resource}: finishing `{verb}`, left open by an earlier run (operation {operation})"
                ));
            }
            EventKind::Planned { .. } => {}
            EventKind::Started { resource, verb, .. } => self.wait_for(resource.to_string(), Some(verb.to_string())),
            EventKind::Says { resource, text } => {
                if let Some(line) = self.logged().line(&resource, &text, event.at) {
                    self.log(&line);
                }
                self.wait_for(resource.to_string(), Some(text));
            }
            EventKind::Retrying { resource, because, in_ms } => {
                self.line(format!("  … {resource}: {because}; again in {in_ms} ms"));
            }
            EventKind::GateAsked { site } => {
                self.line(format!("  ◇ {site}: measuring the gate before the previous version is removed"))
            }
            EventKind::GateAnswered { site, shut_because } if shut_because.is_empty() => {
                self.line(format!("  {} {site}: the gate is open", self.console.paint("32", "◇")));
            }
            EventKind::GateAnswered { site, shut_because } => {
                self.line(format!(
                    "  {} {site}: the gate is not open: {}",
                    self.console.paint("31", "◇"),
                    shut_because.join("; ")
                ));
            }
            EventKind::Chose { .. } | EventKind::Noted { .. } => {}
            EventKind::Done { resource, verb, ms } => {
                self.logged().end(&resource);
                self.wait_for(resource.to_string(), None);
                self.line(format!(
                    "  {} {verb:<7} {resource}  {:.1} s",
                    self.console.paint("32", "✓"),
                    ms as f64 / 1000.0
                ));
            }
            EventKind::Failed { resource, verb, because, .. } => {
                self.logged().end(&resource);
                self.wait_for(resource.to_string(), None);
                self.line(format!("  {} {verb:<7} {resource}: {because}", self.console.paint("31", "✗")));
            }
            EventKind::Skipped { resource, because } => self.line(format!("  - skipped {resource}: {because}")),
            EventKind::LeftOpen { resource, .. } => {
                self.line(format!("  ↻ {resource}: still open; the next run finishes it"))
            }
            EventKind::Note { text } => self.line(format!("  {text}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use textnlp_provider::Verb;

    use super::*;
    use crate::clouds;
    use crate::rerun_flags::RerunFlags;

    #[test]
    fn log_says_what_a_long_step_waits_for_and_repeats_no_reason() {
        let mut waits = LoggedWaits::default();
        let resource: ResourceId = "main/db".parse().unwrap();
        let mut said =
            |second: i64, reason: &str| waits.line(&resource, reason, Timestamp::from_second(second).unwrap());
        assert_eq!((said(0, "CREATING"), said(29, "CREATING")), (None, None));
        assert_eq!(said(30, "CREATING"), Some("  … main/db: CREATING".to_owned()));
        assert_eq!(
            (said(61, "CREATING"), said(62, "no capacity in zone a")),
            (None, Some("  … main/db: no capacity in zone a".to_owned()))
        );
        assert_eq!(said(63, "CREATING"), None);
        waits.end(&resource);
        assert_eq!(waits.line(&resource, "DELETING", Timestamp::from_second(99).unwrap()), None);
    }

    #[test]
    fn hints_of_failed_steps_name_the_environment() {
        let again = RerunFlags { file: Some("shop.yaml".to_owned()), ..RerunFlags::default() };
        let scope =
            Scope { platform: &clouds::Linked, again, name: "shop".parse().unwrap(), folder: "/srv/shop".into() };
        let told = Mutex::new(Vec::new());
        let keep = |event: Event| told.lock().unwrap().push(event.what);
        let hint = Some("`textnlp-deploy plan --policy` prints the role".to_owned());
        let resource = "main/db".parse().unwrap();
        let what = EventKind::Failed { resource, verb: Verb::Create, because: "denied".to_owned(), hint };
        completed_hints(&keep, &scope)(Event { at: Timestamp::UNIX_EPOCH, what });
        let told = told.into_inner().unwrap();
        let [EventKind::Failed { hint: Some(hint), .. }] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!(hint, "`textnlp-deploy plan --policy --file shop.yaml` prints the role");
    }
}
