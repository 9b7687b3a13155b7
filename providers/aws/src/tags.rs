//! The tags that say whose an object is, and those of AWS's kinds.

pub(crate) use textnlp_cloud::tags::{ENVIRONMENT, LINEAGE, OPERATION, RESOURCE, Tags, lineage, resource};

/// The version of the secret that an object has.
pub(crate) const SECRET: &str = "textnlp-secret";
/// The hosted zone with the validation records of a certificate, which ACM does not know.
pub(crate) const ZONE: &str = "textnlp-zone";
/// Tells in a network which cluster's controllers create objects in it; the cluster's name follows. Kubernetes defines it.
pub(crate) const CLUSTER: &str = "kubernetes.io/cluster/";
/// What AWS's console shows.
pub(crate) const NAME: &str = "Name";
/// Tags of AWS's own services, which only they change.
pub(crate) const RESERVED: &str = "aws:";
