//! `batch`: batches of requests, whose texts the database stores.

use camino::Utf8PathBuf;
use textnlp_net::client::{Url, is_protected_http};

use super::document::Section;
use super::units::ByteSize;
use crate::auth::tenant::is_tenant_id;

/// The most webhooks: each may have an open connection.
const MAX_WEBHOOKS: usize = 16;

/// Bounds of batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The most requests of a batch.
    pub max_requests: u64,
    /// The largest file of requests.
    pub max_file_size: ByteSize,
    /// The most unfinished batches of a tenant.
    pub max_pending: u64,
    /// The most bytes of all files of a tenant.
    pub max_stored: ByteSize,
    /// Requests of batches that one server runs at once.
    pub concurrency: u32,
    /// Days that files and finished batches are kept; 0 keeps them until they are deleted.
    pub retention_days: u32,
    /// Who is notified when a batch ends.
    pub webhooks: Vec<Webhook>,
}

/// An address that gets an event when a batch ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The tenant whose batches it is notified of; absent for those of all tenants.
    pub tenant: Option<String>,
    /// Its address.
    pub url: Url,
    /// The file of the secret that signs its events.
    pub secret_file: Utf8PathBuf,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_requests: 50_000,
            max_file_size: ByteSize(100_000_000),
            max_pending: 20,
            max_stored: ByteSize(1_000_000_000),
            concurrency: 2,
            retention_days: 30,
            webhooks: Vec::new(),
        }
    }
}

/// `batch`; without it, there are no batches.
pub(super) fn batch(parent: &Section<'_>) -> Option<Batch> {
    if !parent.has("batch") {
        return None;
    }
    let section = parent.section("batch");
    let usual = Batch::default();
    let batch = Batch {
        max_requests: section.integer("max_requests", 1..=1_000_000).unwrap_or(usual.max_requests),
        max_file_size: section.parsed("max_file_size").unwrap_or(usual.max_file_size),
        max_pending: section.integer("max_pending", 1..=10_000).unwrap_or(usual.max_pending),
        max_stored: section.parsed("max_stored").unwrap_or(usual.max_stored),
        concurrency: section.integer("concurrency", 1..=64).map_or(usual.concurrency, |count| count as u32),
        retention_days: section.integer("retention_days", 0..=36_500).map_or(usual.retention_days, |days| days as u32),
        webhooks: webhooks(&section),
    };
    if !(1024..=1 << 30).contains(&batch.max_file_size.0) {
        section.wrong("max_file_size", "must be from 1KiB to 1GiB", None);
    }
    if batch.max_stored < batch.max_file_size {
        let hint = format!("at least {}", batch.max_file_size);
        section.wrong("max_stored", "is less than `max_file_size`", hint);
    }
    section.finish();
    Some(batch)
}

/// `batch.webhooks`.
fn webhooks(parent: &Section<'_>) -> Vec<Webhook> {
    let mut webhooks: Vec<Webhook> = Vec::new();
    let sections = parent.sections("webhooks");
    if sections.len() > MAX_WEBHOOKS {
        parent.wrong("webhooks", format!("has {} webhooks; at most {MAX_WEBHOOKS} are possible", sections.len()), None);
    }
    for item in sections {
        let tenant = item.text("tenant");
        if let Some(tenant) = tenant.as_ref().filter(|tenant| !is_tenant_id(tenant)) {
            item.wrong("tenant", format!("cannot be `{tenant}`"), "1 to 40 of a-z, 0-9, - and _".to_owned());
        }
        let address = item.needed_text("url");
        let secret_file = item.needed_text("secret_file").map(Utf8PathBuf::from);
        let url = address.and_then(|address| {
            let url = Url::parse(&address).ok().filter(is_protected_http);
            if url.is_none() {
                let hint = "an address without a password, such as `https://hooks.example.com/batches`".to_owned();
                item.wrong("url", "is not an `https:` address (`http:` only for this machine)", hint);
            }
            url
        });
        if let (Some(url), Some(secret_file)) = (url, secret_file) {
            if webhooks.iter().any(|other| other.url == url && other.tenant == tenant) {
                item.wrong("url", "is duplicated", None);
            }
            webhooks.push(Webhook { tenant, url, secret_file });
        }
        item.finish();
    }
    webhooks
}
