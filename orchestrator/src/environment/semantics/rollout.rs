//! Checks of a rollout's analysis: the Prometheus server and its queries.

use std::collections::BTreeSet;

use super::super::model::*;
use super::super::units::cut;
use super::Checker;

/// The most queries. The rollout's record in the cluster is bounded.
const MAX_QUERIES: usize = 10;
/// The longest query and the longest query name, in bytes.
const LONGEST_QUERY: usize = 1000;
const LONGEST_NAME: usize = 60;
/// The most samples in a row; more would delay every rollout.
const MOST_SAMPLES: u32 = 60;
/// The interval of samples, in seconds.
const SAMPLE_SECONDS: u64 = 10;
/// Placeholders that the rollout job fills in.
const PLACEHOLDERS: [&str; 3] = ["namespace", "new", "old"];

impl Checker<'_> {
    pub(super) fn rollout(&mut self) {
        let rollout = &self.environment.rollout;
        let settings = [("prometheus", rollout.prometheus.is_some()), ("queries", !rollout.queries.is_empty())];
        for (field, _) in settings.into_iter().filter(|(_, is_there)| *is_there) {
            let path = format!("rollout.{field}");
            if rollout.strategy == Strategy::Rolling {
                let fix = "write `strategy: canary` or `blue-green`, or remove it";
                self.error(&path, "a rolling update has no analysis of the new release", fix);
            } else if !self.environment.sites.iter().any(SiteSettings::is_in_cluster) {
                let fix = "remove it, or write `runtime: kubernetes`";
                self.error(&path, "a job in a cluster queries it, and no site is in a cluster", fix);
            }
        }
        match settings.map(|(_, is_there)| is_there) {
            [true, false] => self.error("rollout.prometheus", "it has no queries", "write `queries`, or remove it"),
            [false, true] => {
                let fix = "write `prometheus: { url: \"http://prometheus-operated.monitoring:9090\" }`";
                self.error("rollout.queries", "no Prometheus is configured for the queries", fix);
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
            // The value may be a misplaced secret, so the error does not quote it.
            _ => return self.error(PATH, "this is not the address of a Prometheus", FIX),
        }
        let Some(url) = url else { return };
        if !url.username().is_empty() || url.password().is_some() {
            let fix = "remove them, and write `token: secret:env:NAME`";
            return self.error(PATH, "the address contains a user name or a password", fix);
        }
        let ends = prometheus.url.trim_end_matches('/');
        if url.query().is_some() || url.fragment().is_some() || ends.ends_with("/api/v1/query") {
            self.error(
                PATH,
                "`/api/v1/query` is appended to the address, so it cannot end with a query or a fragment",
                FIX,
            );
        }
        if prometheus.url.len() > LONGEST_QUERY || prometheus.url.chars().any(|c| c.is_whitespace() || c.is_control()) {
            self.error(PATH, "it is too long or contains spaces", FIX);
        }
        if url.scheme() == "http" {
            let open = [
                ("token", prometheus.token.is_some(), "the token would be sent without TLS"),
                ("ca_file", prometheus.ca_file.is_some(), "an `http` address has no certificate to verify"),
            ];
            for (field, _, cause) in open.into_iter().filter(|(_, is_there, _)| *is_there) {
                self.error(&format!("rollout.prometheus.{field}"), cause, "write `url: https://…`, or remove it");
            }
        }
    }

    fn queries(&mut self, queries: &[Query]) {
        if queries.len() > MAX_QUERIES {
            let cause = format!("{} are more than {MAX_QUERIES}", queries.len());
            self.error("rollout.queries", cause, "keep the queries that decide, and move the others to dashboards");
        }
        let mut names = BTreeSet::new();
        for (n, query) in queries.iter().enumerate().take(MAX_QUERIES) {
            let at = format!("rollout.queries[{n}]");
            let (name, text) = (query.name.as_str(), query.query.as_str());
            if name.trim().is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
                let fix =
                    format!("write a few words of at most {LONGEST_NAME} bytes, such as `errors seen by clients`");
                self.error(&format!("{at}.name"), "the name is empty, too long or not printable", fix);
            } else if !names.insert(name) {
                let cause = format!("another query is also called `{}`", cut(name));
                self.error(&format!("{at}.name"), cause, "give it another name");
            }
            if text.trim().is_empty() {
                self.error(
                    &format!("{at}.query"),
                    "the query is empty",
                    "write a PromQL query with one number as its result",
                );
            } else if text.len() > LONGEST_QUERY {
                let cause = format!("it has {} bytes; the maximum is {LONGEST_QUERY}", text.len());
                self.error(&format!("{at}.query"), cause, "define a recording rule for it, and query that");
            }
            if let Some(unknown) = unknown_placeholder(text) {
                let cause = format!("`{{{{{}}}}}` is not a known placeholder", cut(unknown));
                let fix = format!("there are `{{{{{}}}}}`", PLACEHOLDERS.join("}}`, `{{"));
                self.error(&format!("{at}.query"), cause, fix);
            }
            let bounds = [("at_most", query.at_most), ("at_least", query.at_least)];
            match bounds.map(|(_, bound)| bound.is_some()) {
                [false, false] => self.error(&at, "the query has no limit", "write `at_most: NUMBER` or `at_least`"),
                [true, true] => {
                    let fix = "write two queries, one for each bound";
                    self.error(&at, "it has two bounds", fix);
                }
                _ => {}
            }
            for (field, _) in bounds.into_iter().filter(|(_, bound)| bound.is_some_and(|bound| !bound.is_finite())) {
                self.error(&format!("{at}.{field}"), "the bound is not a finite number", "write a number");
            }
            let deadline = self.environment.rollout.deadline.as_seconds();
            if query.samples == 0 || query.samples > MOST_SAMPLES {
                self.error(
                    &format!("{at}.for"),
                    "the number of samples is out of range",
                    format!("write 1 to {MOST_SAMPLES}"),
                );
            } else if u64::from(query.samples) * SAMPLE_SECONDS >= deadline {
                let cause = format!("{} answers take {} s", query.samples, u64::from(query.samples) * SAMPLE_SECONDS);
                let fix = "write fewer samples, or a longer `deadline`";
                self.error(&format!("{at}.for"), cause, fix);
            }
        }
    }
}

/// The first unknown placeholder of a query; an unclosed one counts as unknown.
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
    fn only_known_query_placeholders_are_accepted() {
        for known in ["up", "x{a=\"1\"}", "x{p=\"{{new}}\"} / x{p=\"{{ old }}\",n=\"{{namespace}}\"}", "{a=\"b\"}"] {
            assert_eq!(unknown_placeholder(known), None, "{known}");
        }
        for (text, unknown) in [("x{p=\"{{ pod }}\"}", "pod"), ("{{new", "new"), ("x{{}}", "")] {
            assert_eq!(unknown_placeholder(text), Some(unknown), "{text}");
        }
    }
}
