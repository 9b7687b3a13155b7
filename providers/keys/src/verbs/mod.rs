//! Operations on objects and their observation: one file per kind, each with `put`, `remove` and `look`.

pub(crate) mod authority;
pub(crate) mod certificate;
pub(crate) mod directory;
pub(crate) mod secret;

/// One operation on an object of [`Keys`](crate::Keys).
type Work<'a> = crate::Work<'a, crate::Keys>;
