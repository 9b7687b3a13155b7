//! TXT records that say whose a DNS record is, for clouds whose records have no tags, as that of external-dns does
//! (<https://kubernetes-sigs.github.io/external-dns/latest/docs/registry/txt/>).

use textnlp_provider::{EnvironmentName, Lineage, ResourceId};

use crate::cloud::Cloud;
use crate::tags::{self, Tags};

/// Seconds that resolvers may keep it.
pub const TTL: u32 = 300;
/// The most characters of one text in a TXT record.
const TEXT: usize = 255;
/// How its text starts. external-dns leaves records with another heritage alone.
const HERITAGE: &str = "heritage=textnlp-deploy";

/// Its name beside a record of this type and name. `mark` distinguishes several of them.
pub fn name(kind: &str, mark: &str, of: &str) -> String {
    let label = format!("_textnlp-{}{mark}", kind.to_ascii_lowercase());
    match of.strip_prefix("*.") {
        Some(rest) => format!("{label}-wildcard.{rest}"),
        None => format!("{label}.{of}"),
    }
}

/// Its value, in quotes.
pub fn value(tags: &Tags) -> String {
    quoted(&text(tags))
}

/// The same for one of several sites that share a record: also the address that the site has in it.
pub fn value_at(tags: &Tags, address: &str) -> String {
    quoted(&format!("{},address={address}", text(tags)))
}

fn text(tags: &Tags) -> String {
    let value = |key: &str| tags.get(key).map(String::as_str).unwrap_or_default();
    let text = format!(
        "{HERITAGE},lineage={},environment={},resource={}",
        value(tags::LINEAGE),
        value(tags::ENVIRONMENT),
        value(tags::RESOURCE)
    );
    let operation = tags.get(tags::OPERATION).map(|token| format!(",operation={token}")).unwrap_or_default();
    text + &operation
}

fn quoted(text: &str) -> String {
    // All of it is ASCII: labels, digits and slashes.
    let texts = text.as_bytes().chunks(TEXT).map(|part| format!("\"{}\"", String::from_utf8_lossy(part)));
    texts.collect::<Vec<_>>().join(" ")
}

/// A field of a value of this program.
fn field(value: &str, name: &str) -> Option<String> {
    let text: String = value.split('"').skip(1).step_by(2).collect();
    let rest = text.strip_prefix(HERITAGE)?;
    rest.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

/// The address that [`value_at`] wrote.
pub fn address(value: &str) -> Option<String> {
    field(value, "address")
}

/// The tags that [`value`] or [`value_at`] wrote; `None` for a text of others.
pub fn tags<C: Cloud>(value: &str) -> Option<Tags> {
    let field = |name: &str| field(value, name);
    let lineage: Lineage = field("lineage")?.parse().ok()?;
    let environment = EnvironmentName::new(field("environment")?).ok()?;
    let resource = ResourceId::new(field("resource")?).ok()?;
    let mut tags = tags::of_object::<C>(lineage, &environment, &resource, &Tags::new());
    tags.extend(field("operation").map(|token| (tags::OPERATION.to_owned(), token)));
    Some(tags)
}
