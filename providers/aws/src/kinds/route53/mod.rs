//! Route 53: <https://docs.aws.amazon.com/Route53/latest/APIReference/Welcome.html>. It has no regions.

pub(crate) mod health_check;
pub(crate) mod record;

/// The signing name.
const SERVICE: &str = "route53";
