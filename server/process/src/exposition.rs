//! Metrics in OpenMetrics format.

use std::fmt::Write as _;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// The content type of metrics.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a registry in OpenMetrics format.
pub fn encoded(registry: &Registry) -> String {
    let mut out = String::new();
    if let Err(error) = text::encode(&mut out, registry) {
        // Writing to a String cannot fail; if a metric cannot be encoded, the reader must see it.
        let _ = write!(out, "# {error}\n# EOF\n");
    }
    out
}
