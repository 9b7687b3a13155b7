//! Stories across crates; see `tests/`.
