//! Names of generated secrets, and of files below the folder of a site.

/// The name of the generated secret that becomes the first API key.
pub const API_KEY: &str = "api-key";
/// The name of the generated secret that signs tokens.
pub const JWT_KEY: &str = "jwt-signing-key";

pub(crate) const BACKUP_FILE: &str = "config/backup.yaml";
pub(crate) const ALERTS_FILE: &str = "config/alerts.yaml";
pub(crate) const DATABASE_FILE: &str = "data/textnlp.db";
/// Where a dump to restore is kept until the server reads it.
pub(crate) const DUMP: &str = "data/postgres.dump";
/// The lock that a running attempt to order a certificate holds.
pub(crate) const ACME_LOCK: &str = "acme";
/// The folder of the primary.
pub(crate) const POSTGRES_HOME: &str = "data/postgres";
