//! Images against other people's tools: skopeo reads and copies what we write, Debian's registry keeps what we fetch, and a
//! hostile registry gets nowhere.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod compose;
mod hostile;
mod image;
mod layout;
mod legacy;
mod registry;
mod tools;
mod updates;
