//! What a credential may do.

/// The scopes that a key may have, besides `*`.
pub const SCOPES: &[&str] = &["generate", "embeddings", "models", "tokenize", "validate", "usage", ADMIN];

/// The scope that changes the service for all tenants. `*` does not include it: clients of every tenant have such keys.
pub const ADMIN: &str = "admin";
