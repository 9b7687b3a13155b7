//! What judges a rollout from outside of the pods: a Prometheus, and what it is asked.

use std::collections::BTreeSet;

use super::super::model::*;
use super::super::units::cut;
use super::Meaning;

/// More are dashboards. They stand in what the cluster keeps of the deployment, which is bounded.
const MOST: usize = 10;
/// The longest question, and the longest name of one, in bytes.
const LONGEST_QUERY: usize = 1000;
const LONGEST_NAME: usize = 60;
/// What more answers in a row would tell nobody waits for.
const MOST_SAMPLES: u32 = 60;
/// From one answer to the next, in seconds.
const EVERY: u64 = 10;
/// What stands for what only the job knows.
const PLACEHOLDERS: [&str; 3] = ["namespace", "new", "old"];

impl Meaning<'_> {
    pub(super) fn rollout(&mut self) {
        let rollout = &self.environment.rollout;
        let asked = [("prometheus", rollout.prometheus.is_some()), ("queries", !rollout.queries.is_empty())];
        for (field, _) in asked.into_iter().filter(|(_, is_there)| *is_there) {
            let path = format!("rollout.{field}");
            if rollout.strategy == Strategy::Rolling {
                let fix = "write `strategy: canary` or `blue-green`, or remove it";
                self.error(&path, "nobody judges a release that replaces the other pod by pod", fix);
            } else if !self.environment.sites.iter().any(SiteSettings::is_in_cluster) {
                let fix = "remove it, or write `runtime: kubernetes`";
                self.error(&path, "it is asked by a job in a cluster, and no site is in one", fix);
            }
        }
        match asked.map(|(_, is_there)| is_there) {
            [true, false] => self.error("rollout.prometheus", "it is asked nothing", "write `queries`, or remove it"),
            [false, true] => {
                let fix = "write `prometheus: { url: \"http://prometheus-operated.monitoring:9090\" }`";
                self.error("rollout.queries", "nobody is there to be asked", fix);
            }
            _ => {}
        }
        if let Some(prometheus) = &rollout.prometheus {
            self.prometheus(prometheus);
        }
        self.queries(&rollout.queries);
    }

    fn prometheus(&mut self, prometheus: &Prometheus) {
        const PATH: &str = "rollout.prometheus.url";
        const FIX: &str = "write `http://SERVICE.NAMESPACE:9090`, or `https://HOST/PREFIX`";
        let url = reqwest::Url::parse(&prometheus.url).ok().filter(|url| url.has_host());
        match url.as_ref().map(reqwest::Url::scheme) {
            Some("http" | "https") => {}
            // What it is may be a secret in the wrong place.
            _ => return self.error(PATH, "this is not where a Prometheus is reached", FIX),
        }
        let Some(url) = url else { return };
        if !url.username().is_empty() || url.password().is_some() {
            let fix = "remove them, and write `token: secret:env:NAME`";
            return self.error(PATH, "a name or a password is written out here", fix);
        }
        let ends = prometheus.url.trim_end_matches('/');
        if url.query().is_some() || url.fragment().is_some() || ends.ends_with("/api/v1/query") {
            self.error(PATH, "`/api/v1/query` is added to it, and it ends with something else", FIX);
        }
        if prometheus.url.len() > LONGEST_QUERY || prometheus.url.chars().any(|c| c.is_whitespace() || c.is_control()) {
            self.error(PATH, "it is too long, or has blanks in it", FIX);
        }
        if url.scheme() == "http" {
            let open = [
                ("token", prometheus.token.is_some(), "the token would travel in the open"),
                ("ca_file", prometheus.ca_file.is_some(), "nobody shows a certificate there"),
            ];
            for (field, _, cause) in open.into_iter().filter(|(_, is_there, _)| *is_there) {
                self.error(&format!("rollout.prometheus.{field}"), cause, "write `url: https://…`, or remove it");
            }
        }
    }

    fn queries(&mut self, queries: &[Query]) {
        if queries.len() > MOST {
            let cause = format!("{} are more than {MOST}", queries.len());
            self.error("rollout.queries", cause, "keep those that decide; dashboards have room for the others");
        }
        let mut names = BTreeSet::new();
        for (n, query) in queries.iter().enumerate().take(MOST) {
            let at = format!("rollout.queries[{n}]");
            let (name, text) = (query.name.as_str(), query.query.as_str());
            if name.trim().is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
                let fix =
                    format!("write a few words of at most {LONGEST_NAME} bytes, such as `errors seen by clients`");
                self.error(&format!("{at}.name"), "nobody can be told of it by this name", fix);
            } else if !names.insert(name) {
                let cause = format!("another one is called `{}` too", cut(name));
                self.error(&format!("{at}.name"), cause, "give it another name: by it they are told apart");
            }
            if text.trim().is_empty() {
                self.error(&format!("{at}.query"), "nothing is asked", "write PromQL whose answer is one number");
            } else if text.len() > LONGEST_QUERY {
                let cause = format!("it has {} bytes, and {LONGEST_QUERY} are the most", text.len());
                self.error(&format!("{at}.query"), cause, "name it in a recording rule, and ask for that");
            }
            if let Some(unknown) = unknown_placeholder(text) {
                let cause = format!("nobody knows what `{{{{{}}}}}` stands for", cut(unknown));
                let fix = format!("there are `{{{{{}}}}}`", PLACEHOLDERS.join("}}`, `{{"));
                self.error(&format!("{at}.query"), cause, fix);
            }
            let bounds = [("at_most", query.at_most), ("at_least", query.at_least)];
            match bounds.map(|(_, bound)| bound.is_some()) {
                [false, false] => {
                    self.error(&at, "every answer would be well", "write `at_most: NUMBER` or `at_least`")
                }
                [true, true] => {
                    let fix = "write two queries: which of the two bounds was passed is told by a name";
                    self.error(&at, "it has two bounds", fix);
                }
                _ => {}
            }
            for (field, _) in bounds.into_iter().filter(|(_, bound)| bound.is_some_and(|bound| !bound.is_finite())) {
                self.error(&format!("{at}.{field}"), "no answer is compared with that", "write a number");
            }
            let deadline = self.environment.rollout.deadline.as_seconds();
            if query.samples == 0 || query.samples > MOST_SAMPLES {
                self.error(&format!("{at}.for"), "it is no number of answers", format!("write 1 to {MOST_SAMPLES}"));
            } else if u64::from(query.samples) * EVERY >= deadline {
                let cause = format!("{} answers take {} s", query.samples, u64::from(query.samples) * EVERY);
                let fix = "write fewer, or a longer `deadline`, which puts the old release back";
                self.error(&format!("{at}.for"), cause, fix);
            }
        }
    }
}

/// The first of a query's placeholders that nothing is known to stand for; one that is never closed is one too.
fn unknown_placeholder(query: &str) -> Option<&str> {
    query.split("{{").skip(1).find_map(|after| match after.split_once("}}") {
        Some((name, _)) if PLACEHOLDERS.contains(&name.trim()) => None,
        Some((name, _)) => Some(name.trim()),
        None => Some(after),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_those_that_the_job_knows() {
        for known in ["up", "x{a=\"1\"}", "x{p=\"{{new}}\"} / x{p=\"{{ old }}\",n=\"{{namespace}}\"}", "{a=\"b\"}"] {
            assert_eq!(unknown_placeholder(known), None, "{known}");
        }
        for (text, unknown) in [("x{p=\"{{ pod }}\"}", "pod"), ("{{new", "new"), ("x{{}}", "")] {
            assert_eq!(unknown_placeholder(text), Some(unknown), "{text}");
        }
    }
}
