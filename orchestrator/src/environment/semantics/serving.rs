//! Checks of models, server, certificate, replicas and gates.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use textnlp_net::client::{Url, is_plain_http, is_protected_http};
use textnlp_net::network::{Network, is_loopback};
use textnlp_provider::BillingExport;
use textnlp_provider::cluster::ClusterGpus;

use super::super::components::gpus;
use super::super::model::*;
use super::super::problem::{Severity, nearest};
use super::super::units::cut;
use super::Checker;
use crate::availability::{MAX_WINDOW, MIN_WINDOW};

/// The fewest days that a database keeps audit events: its triggers refuse to remove newer ones.
const MIN_AUDIT_DAYS: u32 = 30;

/// The tenant of keys that are created without one, and of sign-on tokens whose provider names none.
const DEFAULT_TENANT: &str = "default";

/// The longest name of a model that a server takes, in bytes.
const MAX_MODEL_ID: usize = 128;

/// The longest text that servers measure a model with, in bytes.
const MAX_QUALITY_TEXT: usize = 65_536;

/// The fewest days that insights are kept: findings compare an hour with those of this time.
const MIN_INSIGHT_DAYS: u32 = 28;

/// Where an authority answers the challenge TLS-ALPN-01: <https://www.rfc-editor.org/rfc/rfc8737#section-3>.
const HTTPS_PORT: u16 = 443;

/// The sizes that a file of requests may be limited to.
const BATCH_FILE_BYTES: RangeInclusive<u64> = 1024..=1 << 30;

impl Checker<'_> {
    pub(super) fn models(&mut self) {
        let e = self.environment;
        let mut seen = BTreeMap::new();
        for (i, model) in e.models.iter().enumerate() {
            let at = |field: &str| format!("models[{i}].{field}");
            if let Some(first) = seen.insert(model.id(), i) {
                self.error(
                    &at("name"),
                    format!("`models[{first}]` has the name `{}` too", cut(&model.id())),
                    "give each model a name of its own",
                );
            }
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            let parts_fine = model.name.split('/').all(|p| !p.is_empty() && !p.starts_with('.'));
            if !model.name.chars().all(plain) || !parts_fine {
                self.error(
                    &at("name"),
                    format!("`{}` is not a valid model name", cut(&model.name)),
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
            if let Some(quality) = &model.quality {
                self.quality(model, quality, at);
            }
            if let Some(tenant) = &model.tenant {
                self.model_of_tenant(model, tenant, at);
            } else if let Some((first, rest)) = model.name.split_once('/')
                && e.models.iter().any(|other| other.tenant.as_deref() == Some(first))
            {
                let cause =
                    format!("all tenants would use `{}`, which has the form of a model of `{first}`", cut(&model.name));
                let fix = format!("write `tenant: {first}, name: {}`, or choose another name", cut(rest));
                self.error(&at("name"), cause, fix);
            }
        }
        let shared = e.models.iter().filter(|model| model.tenant.is_none()).count();
        let of_role = |role: Option<ModelRole>| -> Vec<usize> {
            (0..e.models.len()).filter(|i| e.models[*i].tenant.is_none() && e.models[*i].role == role).collect()
        };
        let (defaults, encoders) = (of_role(Some(ModelRole::Default)), of_role(Some(ModelRole::Embeddings)));
        if let [_, second, ..] = encoders.as_slice() {
            self.error(
                &format!("models[{second}].role"),
                format!("{} models are for requests for embeddings without a model", encoders.len()),
                "leave `role: embeddings` with one",
            );
        }
        let usual = e.default_model().map(ModelSettings::id).unwrap_or_default();
        match defaults.as_slice() {
            [_] => {}
            [] if shared == 0 && !e.models.is_empty() => self.error(
                "models",
                "every model belongs to one tenant, and requests without a model need one of all tenants",
                "add a model without `tenant`",
            ),
            [] if shared <= 1 || of_role(None).len() == 1 => {}
            [] => self.warn(
                "models",
                format!("no model has `role: default`; requests without a model use `{}`", cut(&usual)),
                "give one model `role: default`",
            ),
            [_, second, ..] => self.error(
                &format!("models[{second}].role"),
                format!("{} models are the default", defaults.len()),
                "leave `role: default` with one",
            ),
        }
    }

    /// The text that measures a model. `at`: the path of one of its settings.
    fn quality(&mut self, model: &ModelSettings, quality: &ModelQuality, at: impl Fn(&str) -> String) {
        if model.role == Some(ModelRole::Embeddings) {
            self.error(&at("quality"), "a model for embeddings predicts no text", "remove it");
        }
        if quality.text.len() > MAX_QUALITY_TEXT {
            let cause = format!("it has {} bytes, and at most {MAX_QUALITY_TEXT} are measured", quality.text.len());
            self.error(&at("quality.text"), cause, "shorten it");
        }
        let Some(most) = quality.max_perplexity else { return };
        if !(most.is_finite() && most > 1.0) {
            let cause = format!("no text has a perplexity of {most} or less");
            let cause = if most.is_finite() { cause } else { "it is not a number".to_owned() };
            self.error(&at("quality.max_perplexity"), cause, "write a number above 1, such as `30`, or remove it");
        } else if !model.preload {
            let cause = "the text is measured after the model's first load, and the gate may come before that";
            self.warn(&at("quality.max_perplexity"), cause, "write `preload: true`");
        }
    }

    /// A model that only one tenant sees. `at`: the path of one of its settings.
    fn model_of_tenant(&mut self, model: &ModelSettings, tenant: &str, at: impl Fn(&str) -> String) {
        let e = self.environment;
        if !is_tenant_id(tenant) {
            let cause = format!("`{}` is not a tenant id", cut(tenant));
            self.error(&at("tenant"), cause, "write 1 to 40 of a-z, 0-9, - and _");
        } else if tenant == DEFAULT_TENANT {
            let cause = "it is the tenant of all keys that name none";
            self.error(&at("tenant"), cause, "name the tenant that the model is for, or remove it");
        }
        if e.is_endpoint() {
            let cause = "the cloud authorizes the callers of an inference endpoint, who have no tenant";
            self.say(Severity::Refusal, &at("tenant"), cause, "remove it, or serve the model on another kind of site");
        } else if !e.server.security.api_keys_enabled {
            let cause = "without API keys, clients choose their tenant themselves";
            self.error(&at("tenant"), cause, "write `server: { security: { api_keys_enabled: true } }`, or remove it");
        }
        if model.role.is_some() {
            let cause =
                format!("requests without a model are of all tenants, and this one belongs to `{}`", cut(tenant));
            self.error(&at("role"), cause, "remove it, and give it to a model without `tenant`");
        }
        let length = model.id().len();
        if length > MAX_MODEL_ID {
            let cause = format!("`TENANT/NAME` has {length} bytes, and servers take {MAX_MODEL_ID}");
            self.error(&at("name"), cause, "choose a shorter name");
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
            Some(("http", _)) => self.error(path, "the model would be fetched without TLS", "use `https:`"),
            Some((scheme, rest)) => {
                if rest.is_empty() || (scheme == "hf" && rest.split('/').count() != 2) {
                    self.error(
                        path,
                        format!("`{}` names no model", cut(source)),
                        "write `hf:ORG/NAME@REVISION`, `file:PATH` or `https://…`",
                    );
                } else if scheme == "file" && !rest.starts_with('/') {
                    let cause = "a relative path depends on the working directory";
                    self.error(path, cause, "write the absolute path: `file:/…`");
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
        for (i, origin) in server.api.cors_origins.iter().enumerate().filter(|(_, origin)| !is_origin(origin)) {
            let cause = format!("`{}` is not an origin", cut(origin));
            let fix = "write a scheme and a host, such as `https://app.example.com`, or `*` for all";
            self.error(&format!("server.api.cors_origins[{i}]"), cause, fix);
        }
        for (i, text) in server.api.trusted_proxies.iter().enumerate() {
            if text.parse::<Network>().is_err() {
                let cause = format!("`{}` is neither an address nor a network", cut(text));
                let fix = "write an address such as `192.0.2.7`, or a network such as `10.0.0.0/8` without host bits";
                self.error(&format!("server.api.trusted_proxies[{i}]"), cause, fix);
            }
        }
        self.host("server.api.host", &server.api.host);
        if server.api.timeout.as_seconds() == 0 {
            self.error("server.api.timeout", "the time limit is too short for any answer", "write at least `1s`");
        }
        if server.api.max_request_size.0 < 1000 {
            self.error(
                "server.api.max_request_size",
                "the size limit is too small for any request",
                "write at least `1KB`",
            );
        }
        if server.security.jwt_expiry.as_seconds() == 0 {
            self.error("server.security.jwt_expiry", "the lifetime of a token is too short", "write at least `1m`");
        }
        let days = server.audit.retention_days;
        if (1..MIN_AUDIT_DAYS).contains(&days) {
            let cause = format!("{days} days: the database keeps audit events for at least {MIN_AUDIT_DAYS} days");
            let fix = format!("write a number from {MIN_AUDIT_DAYS} to 36500, or 0 to keep them forever");
            self.error("server.audit.retention_days", cause, fix);
        }
        let analytics = &server.analytics;
        if (1..MIN_INSIGHT_DAYS).contains(&analytics.retention_days) {
            let cause = format!(
                "{} days: an hour is compared with those of the {MIN_INSIGHT_DAYS} days before it",
                analytics.retention_days
            );
            let fix = format!("write a number from {MIN_INSIGHT_DAYS} to 36500, or 0 to keep insights forever");
            self.error("server.analytics.retention_days", cause, fix);
        }
        if !analytics.enabled && *analytics != UsageAnalytics::default() {
            let cause = "it has no effect while usage is not analyzed";
            self.warn("server.analytics.retention_days", cause, "add `enabled: true`, or remove it");
        }
        self.batch(&server.batch);
        self.personal_data(&server.pii);
        self.prices();
        self.traces(&server.monitoring);
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
        self.oidc(&server.security.oidc);
        if server.security.jwt_secret.is_some() {
            let cause = "tokens are signed with a key pair that `up` makes; this secret is not used";
            self.warn("server.security.jwt_secret", cause, "remove it");
        }
        if e.phase > Phase::Development && !server.security.api_keys_enabled {
            self.error(
                "server.security.api_keys_enabled",
                "every client could generate without a key",
                "only development may turn keys off",
            );
        }
        let open = (!server.security.api_keys_enabled).then_some("generate without a key");
        let open = open.or((e.tls.mode == TlsMode::Off).then_some("send API keys without TLS"));
        // From staging on, neither may be off.
        let local = e.phase == Phase::Development && e.runs_here();
        if let Some(open) = open.filter(|_| local && !is_loopback(&server.api.host)) {
            self.error(
                "server.api.host",
                format!("every machine that reaches `{}` could {open}", cut(&server.api.host)),
                "write `host: 127.0.0.1`, or turn on `server.security.api_keys_enabled` and `tls.mode`",
            );
        }
    }

    fn batch(&mut self, batch: &BatchSettings) {
        if !batch.enabled {
            if *batch != BatchSettings::default() {
                let cause = "its settings have no effect while there are no batches";
                self.warn("server.batch", cause, "add `enabled: true`, or remove it");
            }
            return;
        }
        if !BATCH_FILE_BYTES.contains(&batch.max_file_size.0) {
            let cause = format!("{} is out of range", batch.max_file_size);
            self.error("server.batch.max_file_size", cause, "write a size from `1KiB` to `1GiB`");
        } else if batch.max_stored.0 < batch.max_file_size.0 {
            let cause = format!("{} has no room for a file of `max_file_size`", batch.max_stored);
            let fix = format!("write at least `{}`", batch.max_file_size);
            self.error("server.batch.max_stored", cause, fix);
        }
        if !batch.webhooks.is_empty() {
            self.webhooks(&batch.webhooks);
        }
    }

    fn personal_data(&mut self, pii: &PersonalData) {
        let Some(action) = pii.action else {
            if *pii != PersonalData::default() {
                let cause = "its settings have no effect while requests are not searched";
                self.warn("server.pii", cause, "add `action`, or remove it");
            }
            return;
        };
        for (number, kind) in pii.kinds.iter().enumerate() {
            if pii.kinds[..number].contains(kind) {
                let path = format!("server.pii.kinds[{number}]");
                self.error(&path, format!("`{kind}` is there twice"), "remove one of them");
            }
        }
        if action == PiiAction::Count && self.environment.is_endpoint() {
            let cause = "an inference endpoint has no metrics in which the values are counted";
            self.say(Severity::Refusal, "server.pii.action", cause, "write `mask` or `refuse`");
        }
    }

    fn traces(&mut self, monitoring: &ServerMonitoring) {
        const PATH: &str = "server.monitoring.traces";
        // The HTTP client writes them.
        const RESERVED: [&str; 6] =
            ["connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"];
        let (e, traces) = (self.environment, &monitoring.traces);
        let Some(endpoint) = &traces.endpoint else {
            if *traces != TraceExport::default() {
                self.warn(PATH, "its settings have no effect without a collector", "add `endpoint`, or remove it");
            }
            return;
        };
        if !monitoring.enable_tracing {
            let fix = "add `enable_tracing: true`, or remove it";
            self.error(PATH, "it has no effect while requests are not traced", fix);
        }
        let at = |field: &str| format!("{PATH}.{field}");
        match endpoint.parse::<Url>().ok().filter(is_plain_http) {
            None => {
                let cause = "this is not an `https:` or `http:` address without a password";
                let fix = "write an address such as `https://collector.example.com:4318/v1/traces`";
                self.error(&at("endpoint"), cause, fix);
            }
            Some(url) if url.scheme() == "http" && !textnlp_net::client::is_loopback(&url) => {
                if traces.secret.is_some() {
                    let cause = "the secret would be sent without TLS";
                    self.error(&at("secret"), cause, "write `endpoint: https://…`, or remove it");
                } else {
                    self.warn(&at("endpoint"), "spans are sent without TLS", "write `https://…`");
                }
            }
            Some(_) => {}
        }
        if !traces.header.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            let cause = format!("`{}` is not the name of a header", cut(&traces.header));
            self.error(&at("header"), cause, "write letters, digits and hyphens, such as `authorization`");
        }
        if RESERVED.contains(&traces.header.to_ascii_lowercase().as_str()) {
            let cause = format!("`{}` is a header of each message", cut(&traces.header));
            self.error(&at("header"), cause, "write the header of the secret, such as `authorization`");
        }
        if traces.secret.is_none() && traces.header != TraceExport::default().header {
            self.warn(&at("header"), "it has no effect without a secret", "add `secret`, or remove it");
        }
        if e.is_endpoint() {
            let cause = "an inference endpoint exports no traces";
            self.say(Severity::Refusal, PATH, cause, "remove it, or serve on another kind of site");
        }
        let proxy = &e.network.proxy;
        let in_cluster = e.sites.iter().any(|site| site.runtime == Runtime::Kubernetes);
        if in_cluster && (proxy.https.is_some() || proxy.http.is_some()) {
            let cause = "servers in a cluster reach the collector directly, and not by `network.proxy`";
            self.warn(PATH, cause, "let pods connect to it");
        }
    }

    fn webhooks(&mut self, webhooks: &[BatchWebhook]) {
        const PATH: &str = "server.batch.webhooks";
        let e = self.environment;
        let mut seen = BTreeMap::new();
        for (i, webhook) in webhooks.iter().enumerate() {
            let at = |field: &str| format!("{PATH}[{i}].{field}");
            if let Some(tenant) = webhook.tenant.as_ref().filter(|tenant| !is_tenant_id(tenant)) {
                let cause = format!("`{}` is not a tenant id", cut(tenant));
                self.error(&at("tenant"), cause, "write 1 to 40 of a-z, 0-9, - and _");
            }
            let url = webhook.url.parse::<Url>().ok().filter(is_protected_http);
            match url.map(|url| seen.insert((&webhook.tenant, url), i)) {
                None => {
                    let cause = "this is not an `https:` address without a password (`http:` only for this machine)";
                    self.error(&at("url"), cause, "write an address such as `https://hooks.example.com/batches`");
                }
                Some(Some(first)) => {
                    let cause = format!("`webhooks[{first}]` has this address for the same tenant too");
                    self.error(&at("url"), cause, "remove one of them");
                }
                Some(None) => {}
            }
        }
        if e.is_endpoint() {
            let cause = "an inference endpoint has no batches";
            self.say(Severity::Refusal, PATH, cause, "remove it, or serve on another kind of site");
        }
        let proxy = &e.network.proxy;
        let in_cluster = e.sites.iter().any(|site| site.runtime == Runtime::Kubernetes);
        if in_cluster && (proxy.https.is_some() || proxy.http.is_some()) {
            let cause = "servers in a cluster reach webhooks directly, and not by `network.proxy`";
            self.warn(PATH, cause, "let pods connect to them");
        }
    }

    fn oidc(&mut self, oidc: &Oidc) {
        let Some(issuer) = &oidc.issuer else {
            if *oidc != Oidc::default() {
                let fix = "write the address that the provider's metadata has, such as `https://login.example.com/realms/acme`";
                self.error(
                    "server.security.oidc",
                    "without `issuer`, no other setting of the provider has an effect",
                    fix,
                );
            }
            return;
        };
        let is_address = issuer.parse::<Url>().is_ok_and(|url| is_protected_http(&url) && url.query().is_none());
        if !is_address {
            let fix = "write it as the provider's metadata has it, such as `https://login.example.com/realms/acme`";
            self.error("server.security.oidc.issuer", format!("`{}` is not an issuer", cut(issuer)), fix);
        }
        if self.environment.server.security.issuer.as_ref() == Some(issuer) {
            let cause = "`server.security.issuer` is the same: tokens of both would not be told apart";
            self.error("server.security.oidc.issuer", cause, "give `server.security.issuer` a name of its own");
        }
        let proxy = &self.environment.network.proxy;
        let in_cluster = self.environment.sites.iter().any(|site| site.runtime == Runtime::Kubernetes);
        if in_cluster && (proxy.https.is_some() || proxy.http.is_some()) {
            let cause = "servers in a cluster reach the provider directly, and not by `network.proxy`";
            self.warn("server.security.oidc.issuer", cause, "let pods connect to it");
        }
        if oidc.audience.as_deref().unwrap_or_default().trim().is_empty() {
            let cause = "tokens that the provider issued for other services would be accepted";
            self.error("server.security.oidc.audience", cause, "write the audience of this service, such as `textnlp`");
        }
        if oidc.scopes.is_empty() && oidc.roles.is_empty() {
            let fix = "write `scopes: [\"*\"]` for all but administration, or `roles_claim` and `roles`";
            self.error("server.security.oidc.scopes", "no token would be allowed to do anything", fix);
        }
        if oidc.roles_claim.is_none() && !oidc.roles.is_empty() {
            let fix = "write the claim that lists the roles of a person, such as `realm_access.roles`";
            self.error("server.security.oidc.roles", "it has no effect without `roles_claim`", fix);
        }
        if let Some(tenant) = oidc.tenant.as_ref().filter(|tenant| !is_tenant_id(tenant)) {
            let cause = format!("`{}` is not a tenant id", cut(tenant));
            self.error("server.security.oidc.tenant", cause, "write 1 to 40 of a-z, 0-9, - and _");
        }
        let known = ["*", "generate", "embeddings", "models", "tokenize", "validate", "usage", "admin"];
        let of_all = oidc.scopes.iter().enumerate().map(|(i, scope)| (format!("scopes[{i}]"), scope));
        let of_roles = oidc.roles.iter().flat_map(|(role, scopes)| {
            scopes.iter().enumerate().map(move |(i, scope)| (format!("roles.{role}[{i}]"), scope))
        });
        let unknown: Vec<_> = of_all.chain(of_roles).filter(|(_, scope)| !known.contains(&scope.as_str())).collect();
        for (place, scope) in unknown {
            let cause = format!("`{}` is not a scope", cut(scope));
            self.error(&format!("server.security.oidc.{place}"), cause, format!("write one of {}", known.join(", ")));
        }
        if oidc.scopes.iter().any(|scope| scope == "admin") {
            let cause = "everyone who can sign in could change the service for all tenants";
            self.warn("server.security.oidc.scopes", cause, "give `admin` to a role, in `roles`");
        }
    }

    fn prices(&mut self) {
        let (e, prices) = (self.environment, &self.environment.server.prices);
        let own = prices.models.values().flat_map(|model| [model.prompt, model.answer]).flatten();
        if !own.chain([prices.prompt, prices.answer]).all(f64::is_finite) {
            self.error("server.prices", "a price is not a finite number", "write decimal numbers");
        }
        let served: Vec<String> = e.models.iter().map(ModelSettings::id).collect();
        for name in prices.models.keys().filter(|name| !served.contains(name)) {
            let near = nearest(name, served.iter().map(String::as_str));
            let fix = near.map_or_else(|| "add it to `models`".to_owned(), |near| format!("did you mean `{near}`?"));
            let name = cut(name);
            self.error(&format!("server.prices.models.{name}"), format!("`models` has no `{name}`"), fix);
        }
        if let Some(currency) = &prices.currency {
            if !is_currency(currency) {
                let cause = format!("`{}` is not a currency", cut(currency));
                self.error("server.prices.currency", cause, "write its three capital letters, such as `USD`");
            } else if !prices.are_set() {
                let cause = "it has no effect without prices";
                self.warn("server.prices.currency", cause, "add `prompt` and `answer`, or remove it");
            }
        }
    }

    pub(super) fn tls(&mut self) {
        let (e, tls) = (self.environment, &self.environment.tls);
        let named = tls.existing.is_some() || e.sites.iter().all(|s| s.existing.certificate.is_some());
        match tls.mode {
            TlsMode::Off if e.phase > Phase::Development => {
                self.error(
                    "tls.mode",
                    "API keys would be sent without TLS",
                    "use `local-ca`, `acme` or `existing` from staging on",
                );
            }
            TlsMode::Acme if tls.names.is_empty() && e.traffic.domain.is_none() => {
                self.error(
                    "tls.names",
                    "a public certificate authority needs a DNS name, and none is set",
                    "write `names: [textnlp.example.com]`",
                );
            }
            TlsMode::Existing if !named => {
                let fix = "add `existing:` with its id, or with the absolute path of its file";
                self.error("tls.mode", "no existing certificate is set", fix);
            }
            TlsMode::Off | TlsMode::LocalCa | TlsMode::Acme if tls.existing.is_some() => {
                let cause = format!("it has no effect with `mode: {}`", tls.mode);
                self.error("tls.existing", cause, "remove it, or use `mode: existing`");
            }
            _ => {}
        }
        if tls.mode == TlsMode::Acme {
            self.acme();
        }
        for (path, is_set) in [("tls.email", tls.email.is_some()), ("tls.directory", tls.directory.is_some())] {
            if is_set && tls.mode != TlsMode::Acme {
                let cause = format!("it has no effect with `mode: {}`", tls.mode);
                self.error(path, cause, "remove it, or use `mode: acme`");
            }
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

    /// What a public authority certifies: DNS names of one gateway, by the challenge TLS-ALPN-01.
    fn acme(&mut self) {
        let (e, tls) = (self.environment, &self.environment.tls);
        let names = tls.names.iter().enumerate().map(|(i, name)| (format!("tls.names[{i}]"), name));
        let domain = e.traffic.domain.iter().map(|domain| ("traffic.domain".to_owned(), domain));
        for (path, name) in names.chain(domain).collect::<Vec<_>>() {
            if name.starts_with("*.") {
                let cause = "a wildcard needs the challenge DNS-01, which is not supported";
                self.error(&path, cause, "write each name, or use `mode: existing`");
            } else if name.parse::<IpAddr>().is_ok() || !name.contains('.') {
                let cause = format!("a public certificate authority does not certify `{}`", cut(name));
                self.error(&path, cause, "write a name such as `textnlp.example.com`");
            }
        }
        if let Some(directory) = &tls.directory
            && !Url::parse(directory).is_ok_and(|url| url.scheme() == "https" && url.has_host())
        {
            let cause = format!("`{}` is not a URL with `https`", cut(directory));
            self.error("tls.directory", cause, "write one such as `https://ca.example.com/acme/acme/directory`");
        }
        if let Some(email) = tls.email.as_ref().filter(|email| !is_mail_address(email)) {
            let cause = format!("`{}` is not a mail address", cut(email));
            self.error("tls.email", cause, "write one such as `ops@example.com`");
        }
        let [site] = e.sites.as_slice() else {
            let cause = "the authority connects to one of the sites, and another one may have ordered the certificate";
            let fix = "keep one site, or write `tls: { mode: local-ca }`";
            return self.say(Severity::Refusal, "tls.mode", cause, fix);
        };
        if !site.serves() {
            let cause = "without the API there is no gateway that answers the authority";
            self.error("tls.mode", cause, "add `api` to `sites[0].services`, or use `mode: local-ca`");
        }
        let port = site.port.unwrap_or(e.server.api.port);
        if site.runtime == Runtime::Process && port != HTTPS_PORT {
            let cause = format!("the authority connects to port {HTTPS_PORT} of each name, and the gateway has {port}");
            self.warn("tls.mode", cause, "write `server: { api: { port: 443 } }`, or forward port 443 to it");
        }
        if e.server.api.base_domain.is_some() {
            let cause = "a subdomain that is not in `tls.names` has the certificate of the built-in authority";
            self.warn("server.api.base_domain", cause, "add the name of each tenant to `tls.names`");
        }
    }

    pub(super) fn scaling(&mut self) {
        let e = self.environment;
        if let Some(max) = e.scaling.max
            && max < e.scaling.min
        {
            self.error(
                "scaling.max",
                format!("the maximum, {max}, is less than `min`, which is {}", e.scaling.min),
                format!("write {} or more", e.scaling.min),
            );
        }
        let triggers = e.scaling.cpu.or(e.scaling.memory).or(e.scaling.requests_per_second);
        let grows = e.scaling.max.is_some_and(|max| max > e.scaling.min);
        // Cloud Run adds instances by the requests that they answer at the same time.
        let grows_itself = e.sites.iter().any(|site| site.runtime == Runtime::CloudRun);
        if grows && triggers.is_none() && !grows_itself {
            self.error(
                "scaling",
                "nothing says when to add a replica",
                "add `cpu: 70`, `memory: 80` or `requests_per_second: 1000`",
            );
        }
        if e.scaling.adapter && !(grows && e.scaling.requests_per_second.is_some()) {
            self.error(
                "scaling.adapter",
                "it gives the request rate to an autoscaler, and this environment has none",
                "add `max` above `min` and `requests_per_second: 1000`, or remove it",
            );
        }
        if triggers.is_some() && !grows {
            self.warn("scaling", "the number of replicas is fixed, so triggers have no effect", "add `max`");
        }
        if let Some(max) = e.cluster.max_nodes
            && max < e.cluster.min_nodes
        {
            self.error(
                "cluster.max_nodes",
                format!("the maximum, {max}, is less than `min_nodes`, which is {}", e.cluster.min_nodes),
                format!("write {} or more", e.cluster.min_nodes),
            );
        }
        let of_machines = ["gpu.count", "gpu.max", "gpu.spot", "gpu.machines", "gpu.per_machine", "gpu.upgrade"];
        if e.gpu.size == GpuSize::None && of_machines.iter().any(|path| self.written(path)) {
            self.warn("gpu", "no GPU machines are configured, so this has no effect", "add `size: small`");
        }
        for (number, site) in e.sites.iter().enumerate().filter(|(_, site)| site.serves() && site.is_in_cluster()) {
            self.gpus(number, site);
        }
        let has_gpus = |site: &SiteSettings| site.serves() && site.is_in_cluster() && gpus(e, site).is_some();
        if grows && e.scaling.cpu.or(e.scaling.memory).is_some() && e.sites.iter().any(has_gpus) {
            // https://docs.cloud.google.com/kubernetes-engine/docs/best-practices/machine-learning/inference/autoscaling
            let cause = "`cpu` and `memory` of a pod whose GPU computes do not follow its load";
            match e.scaling.requests_per_second {
                None => self.error("scaling", cause, "write `requests_per_second: 5`, with `adapter: true`, instead"),
                Some(_) => self.warn("scaling", format!("{cause}, and have no effect"), "set both to `null`"),
            }
        }
    }

    /// Each pod of the servers has a GPU of its own, so that more of them than GPUs are never scheduled.
    fn gpus(&mut self, number: usize, site: &SiteSettings) {
        let e = self.environment;
        let Some(gpus) = gpus(e, site) else { return };
        let (gpu, section) = match &site.gpu {
            Some(gpu) => (gpu, format!("sites[{number}].gpu")),
            None => (&e.gpu, "gpu".to_owned()),
        };
        let (path, path_of_max) = (format!("{section}.count"), format!("{section}.max"));
        match gpu.max {
            Some(max) if max < gpu.count => {
                let cause = format!("the maximum, {max}, is less than `count`, which is {}", gpu.count);
                self.error(&path_of_max, cause, format!("write {} or more", gpu.count));
            }
            Some(_) if gpus.existing => {
                let cause = format!("the machines of the existing cluster of site `{}` are its operator's", site.name);
                self.error(&path_of_max, cause, "write their number as `count`, and set `cluster.max_nodes`");
            }
            _ => {}
        }
        if gpus.existing && !gpu.machines.is_empty() {
            let cause = format!("the machines of the existing cluster of site `{}` are its operator's", site.name);
            self.error(&format!("{section}.machines"), cause, "remove it; `per_machine` tells how many GPUs each has");
        }
        if gpus.existing && gpu.upgrade.is_some() {
            let cause = format!("the machines of the existing cluster of site `{}` are its operator's", site.name);
            self.error(&format!("{section}.upgrade"), cause, "remove it");
        }
        let at_first = ClusterGpus { count: gpu.count.saturating_mul(gpu.gpus()), ..gpus.clone() };
        let replicas = |gpus: &ClusterGpus| gpus.replicas(e.rollout.strategy, e.rollout.first_share);
        let (least, most) = (replicas(&at_first), replicas(&gpus));
        let path_of_most = if gpu.max.is_some() { &path_of_max } else { &path };
        let beside = match e.rollout.strategy {
            Strategy::Rolling => String::new(),
            strategy => format!(" beside the new pods of a rollout (`{strategy}`)"),
        };
        let cause = |gpus: &ClusterGpus, replicas: u32| {
            format!(
                "site `{}` has {} GPUs, one for each pod: not enough for {replicas} replicas{beside}",
                site.name, gpus.count
            )
        };
        let max = e.scaling.max.unwrap_or(e.scaling.min);
        if e.scaling.min > least {
            self.error(&path, cause(&at_first, e.scaling.min), "raise it, or lower `scaling.min`");
        } else if max > most {
            let cause = format!("{}, so the autoscaler stops at {most}", cause(&gpus, max));
            self.warn(path_of_most, &cause, "raise it, or lower `scaling.max`");
        }
        for (number, model) in e.models.iter().enumerate() {
            if model.executor == Some(ModelExecutor::Own) {
                let path = format!("models[{number}].executor");
                self.error(
                    &path,
                    "the own kernels compute on the CPU, and the servers have GPUs",
                    "remove it, or `gpu`",
                );
            }
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
            self.error(
                "gates.p95_ms",
                "the timeout of the server is shorter",
                "make it shorter than `server.api.timeout`",
            );
        }
        let window = gates.availability_window.0;
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&window) {
            let (least, most) = (Span(MIN_WINDOW), Span(MAX_WINDOW));
            let cause = format!("{} is not from {least} to {most}", gates.availability_window);
            self.error("gates.availability_window", cause, "write a time such as `24h`");
        }
        if gates.model_load_time.is_some_and(|most| most.0.is_zero()) {
            self.error("gates.model_load_time", "every load takes longer", "write a time such as `5s`, or remove it");
        }
        if gates.server_memory.is_some_and(|most| most.0 == 0) {
            self.error("gates.server_memory", "every server takes more", "write a size such as `4GB`, or remove it");
        }
        if e.budget.monthly.is_none() && e.budget.warn_at != Budget::default().warn_at {
            let cause = "it is a share of the budget, and none is set";
            self.warn("budget.warn_at", cause, "add `monthly: AMOUNT`, or remove it");
        }
        for (site, machine) in &e.budget.machines {
            let place = format!("budget.machines.{site}");
            let witness = e.witness_place().map(|_| WITNESS);
            let names: Vec<&str> = e.sites.iter().map(|one| one.name.as_str()).chain(witness).collect();
            if !names.contains(&site.as_str()) {
                let fix = format!("name a site: `{}`", names.join("`, `"));
                self.error(&place, format!("there is no site `{}`", cut(site)), fix);
            }
            let values = [machine.watts, machine.price_per_kwh, machine.purchase_price];
            if !values.iter().all(|value| value.is_finite()) {
                self.error(&place, "a value is not a finite number", "write decimal numbers");
            }
        }
        if let Some(table) = &e.budget.billing_export
            && let Err(why) = table.parse::<BillingExport>()
        {
            let cause = format!("`{}` is not a table of BigQuery: {why}", cut(table));
            let fix = "write the table of the export, such as `my-project.billing.gcp_billing_export_v1_ACCOUNT`";
            self.error("budget.billing_export", cause, fix);
        }
        if !is_currency(&e.budget.currency) {
            self.error(
                "budget.currency",
                format!("`{}` is not a currency", cut(&e.budget.currency)),
                "write its three capital letters, such as `USD`",
            );
        }
    }
}

/// Whether the server takes a text as a tenant id.
pub(super) fn is_tenant_id(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=40).contains(&text.len())
        && text.bytes().next().is_some_and(is_plain)
        && text.bytes().all(|byte| is_plain(byte) || byte == b'-' || byte == b'_')
}

/// The schema bounds the length.
fn is_currency(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// An `Origin` as browsers send it: scheme, host and optional port, or `*` for all.
fn is_origin(text: &str) -> bool {
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let named = authority.is_some_and(|authority| {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !authority.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        is_host_name(host) && !host.starts_with('*') && port.is_none_or(|port| port.parse::<u16>().is_ok())
    });
    text == "*" || named
}

fn is_mail_address(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"@,<>?\"".contains(c);
    let parts = text.split_once('@');
    parts.is_some_and(|(user, host)| !user.is_empty() && user.chars().all(plain) && is_host_name(host))
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

/// A DNS name, with an optional wildcard, or an IP address.
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
