//! Durable files on Unix: replace, append, lock, digest, free space, owners. It knows no domain words and imports no crate of this workspace.
#![forbid(unsafe_code)]

mod account;
mod append;
mod digest;
mod error;
mod filesystem;
mod lock;
mod output;
mod ownership;
mod replace;

pub use account::Account;
pub use append::append;
pub use digest::{FileDigest, Hashing, copy_sha256, sha256};
pub use error::{Error, Result};
pub use filesystem::{Filesystem, filesystem};
pub use lock::Lock;
pub use ownership::{
    Exposed, Exposure, caller, check_files, check_folder, check_instructions, check_parents, check_secret,
    check_settings, is_own, operator, user, user_name,
};
pub use replace::{Replace, sync_folder, unique_name};
