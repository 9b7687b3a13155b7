//! Models, the server, its certificate, its replicas and the gate that they must pass.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::model::*;
use super::super::problem::nearest;
use super::super::units::cut;
use super::Meaning;

impl Meaning<'_> {
    pub(super) fn models(&mut self) {
        let e = self.environment;
        let mut seen = BTreeMap::new();
        for (i, model) in e.models.iter().enumerate() {
            let at = |field: &str| format!("models[{i}].{field}");
            if let Some(first) = seen.insert(model.name.clone(), i) {
                self.error(
                    &at("name"),
                    format!("`models[{first}]` has the name `{}` too", cut(&model.name)),
                    "give each model a name of its own",
                );
            }
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            let parts_fine = model.name.split('/').all(|p| !p.is_empty() && !p.starts_with('.'));
            if !model.name.chars().all(plain) || !parts_fine {
                self.error(
                    &at("name"),
                    format!("`{}` cannot be the name of a model", cut(&model.name)),
                    "use letters, digits, `.`, `_`, `-`, and `/` between parts",
                );
            }
            if let Some(source) = &model.source {
                self.source(&at("source"), source);
            }
            if let Some(digest) = &model.digest
                && !is_digest(digest)
            {
                self.error(&at("digest"), "this is not a digest", "write `sha256:` and 64 hexadecimal digits");
            }
        }
        let defaults: Vec<usize> =
            (0..e.models.len()).filter(|i| e.models[*i].role == Some(ModelRole::Default)).collect();
        match defaults.as_slice() {
            [_] => {}
            [] if e.models.len() <= 1 => {}
            [] => self.warn(
                "models",
                format!("no model has `role: default`; `{}` answers when none is named", cut(&e.models[0].name)),
                "give one model `role: default`",
            ),
            [_, second, ..] => self.error(
                &format!("models[{second}].role"),
                format!("{} models are the default", defaults.len()),
                "leave `role: default` with one",
            ),
        }
    }

    pub(super) fn source(&mut self, path: &str, source: &str) {
        let known = ["bundled", "file", "https", "hf", "catalogue"];
        match source.split_once(':') {
            None if source == "bundled" => {}
            None => {
                if let Some(near) = nearest(source, ["bundled"]) {
                    self.error(path, format!("`{}` is not a source", cut(source)), format!("did you mean `{near}`?"));
                }
            }
            Some(("http", _)) => {
                self.error(path, "the model would come over a line that anybody can change", "use `https:`")
            }
            Some((scheme, rest)) => {
                if rest.is_empty() || (scheme == "hf" && rest.split('/').count() != 2) {
                    self.error(
                        path,
                        format!("`{}` names no model", cut(source)),
                        "write `hf:ORG/NAME@REVISION`, `file:PATH` or `https://…`",
                    );
                } else if let (false, Some(near)) =
                    (known.contains(&scheme) || rest.starts_with("//"), nearest(scheme, known))
                {
                    self.error(
                        path,
                        format!("`{}:` is not a kind of source", cut(scheme)),
                        format!("did you mean `{near}:`?"),
                    );
                }
            }
        }
    }

    pub(super) fn server(&mut self) {
        let (e, server) = (self.environment, &self.environment.server);
        self.host("server.api.host", &server.api.host);
        if server.api.timeout.as_seconds() == 0 {
            self.error("server.api.timeout", "no answer could be that fast", "write at least `1s`");
        }
        if server.api.max_request_size.0 < 1000 {
            self.error("server.api.max_request_size", "no request is that small", "write at least `1KB`");
        }
        if server.security.jwt_expiry.as_seconds() == 0 {
            self.error("server.security.jwt_expiry", "a token would be old when it is made", "write at least `1m`");
        }
        let header = &server.security.api_key_header;
        if !header.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            self.error(
                "server.security.api_key_header",
                format!("`{}` is not a header", cut(header)),
                "use letters, digits and hyphens",
            );
        }
        if let Some(base) = &server.api.base_domain
            && (!is_host_name(base) || base.starts_with('*') || base.parse::<IpAddr>().is_ok())
        {
            self.error(
                "server.api.base_domain",
                format!("`{}` is not a domain that has subdomains", cut(base)),
                "write it alone, such as `textnlp.example.com`; its subdomains are the tenants",
            );
        }
        if server.security.jwt_secret.is_some() {
            let cause = "tokens are signed with a key pair that `up` makes; this secret is not used";
            self.warn("server.security.jwt_secret", cause, "remove it");
        }
        if e.phase > Phase::Development && !server.security.api_keys_enabled {
            self.error(
                "server.security.api_keys_enabled",
                "anybody could generate without a key",
                "only development may turn keys off",
            );
        }
    }

    pub(super) fn tls(&mut self) {
        let (e, tls) = (self.environment, &self.environment.tls);
        let named = tls.existing.is_some() || e.sites.iter().all(|s| s.existing.certificate.is_some());
        match tls.mode {
            TlsMode::Off if e.phase > Phase::Development => {
                self.error(
                    "tls.mode",
                    "keys would travel in the open",
                    "use `local-ca`, `acme` or `existing` from staging on",
                );
            }
            TlsMode::Acme if tls.names.is_empty() && e.traffic.domain.is_none() => {
                self.error(
                    "tls.names",
                    "a public authority certifies a name, and none is given",
                    "write `names: [textnlp.example.com]`",
                );
            }
            TlsMode::Existing if !named => {
                let fix = "add `existing:` with its id, or with the whole path of its file";
                self.error("tls.mode", "an existing certificate is named nowhere", fix);
            }
            TlsMode::Off | TlsMode::LocalCa | TlsMode::Acme if tls.existing.is_some() => {
                let cause = format!("with `mode: {}` nothing reads this", tls.mode);
                self.error("tls.existing", cause, "remove it, or use `mode: existing`");
            }
            _ => {}
        }
        for (i, name) in tls.names.iter().enumerate() {
            if !is_host_name(name) {
                self.error(
                    &format!("tls.names[{i}]"),
                    format!("`{}` is neither a DNS name nor an address", cut(name)),
                    "write one such as `textnlp.example.com`",
                );
            }
        }
    }

    pub(super) fn scaling(&mut self) {
        let e = self.environment;
        if let Some(max) = e.scaling.max
            && max < e.scaling.min
        {
            self.error(
                "scaling.max",
                format!("at most {max} is less than at least {}", e.scaling.min),
                format!("write {} or more", e.scaling.min),
            );
        }
        let triggers = e.scaling.cpu.or(e.scaling.memory).or(e.scaling.requests_per_second);
        let grows = e.scaling.max.is_some_and(|max| max > e.scaling.min);
        if grows && triggers.is_none() {
            self.error(
                "scaling",
                "nothing says when to add a replica",
                "add `cpu: 70`, `memory: 80` or `requests_per_second: 1000`",
            );
        }
        if e.scaling.adapter && !(grows && e.scaling.requests_per_second.is_some()) {
            self.error(
                "scaling.adapter",
                "it tells an autoscaler how many requests there are, and no autoscaler asks",
                "add `max` above `min` and `requests_per_second: 1000`, or leave it out",
            );
        }
        if triggers.is_some() && !grows {
            self.warn("scaling", "the number of replicas is fixed, so its triggers change nothing", "add `max`");
        }
        if let Some(max) = e.cluster.max_nodes
            && max < e.cluster.min_nodes
        {
            self.error(
                "cluster.max_nodes",
                format!("at most {max} is less than at least {}", e.cluster.min_nodes),
                format!("write {} or more", e.cluster.min_nodes),
            );
        }
        if e.gpu.size == GpuSize::None && (self.written("gpu.count") || self.written("gpu.spot")) {
            self.warn("gpu", "no GPU machines are asked for, so their number changes nothing", "add `size: small`");
        }
    }

    pub(super) fn gates(&mut self) {
        let (e, gates) = (self.environment, &self.environment.gates);
        if gates.think_min.0 > gates.think_max.0 {
            self.error("gates.think_max", "it is shorter than `think_min`", "swap them");
        }
        if gates.tokens_min > gates.tokens_max {
            self.error("gates.tokens_max", "it is less than `tokens_min`", "swap them");
        }
        if gates.tokens_max > e.server.api.max_tokens {
            self.error(
                "gates.tokens_max",
                format!("the server refuses more than {} tokens", e.server.api.max_tokens),
                "ask for fewer, or raise `server.api.max_tokens`",
            );
        }
        if u128::from(gates.p95_ms) >= e.server.api.timeout.0.as_millis() {
            self.error("gates.p95_ms", "the server gives up before that", "make it shorter than `server.api.timeout`");
        }
        if let Some(monthly) = e.budget.monthly
            && monthly == 0.0
            && e.sites.iter().any(|s| s.region != "local")
        {
            self.warn("budget.monthly", "nothing may cost anything, so every plan with a cloud is refused", "raise it");
        }
        if !e.budget.currency.bytes().all(|b| b.is_ascii_uppercase()) {
            self.error(
                "budget.currency",
                format!("`{}` is not a currency", cut(&e.budget.currency)),
                "write its three capital letters, such as `USD`",
            );
        }
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

/// A DNS name, with a wildcard in front if need be, or an address.
pub(super) fn is_host_name(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.parse::<IpAddr>().is_ok()
        || (name.len() <= 253 && name.strip_prefix("*.").unwrap_or(name).split('.').all(label))
}
