//! Backups: one file with the state, keys, databases and environment file of a deployment.
//!
//! Start with [`Manifest`] (the content of a backup), then `archive` (its bytes: a standard tar) and `seal` (encryption
//! in the format of the tool `age`). [`BackupDirectory`] is the backup directory with its retention, in a folder or a [`Bucket`]. [`Log`] is the archived
//! write-ahead log of a PostgreSQL, for restores to a point in time. [`DumpFolder`] has the database dumps of a cluster, which [`Bucket::copy_dumps`] copies to a bucket. The provider knows which data of a site belongs
//! into a backup; the server program reads the databases. The caller passes both in.

mod archive;
mod bucket;
mod directory;
mod dumps;
mod error;
mod log;
mod manifest;
mod seal;

pub use textnlp_bundle::PublicKey;

pub use archive::{Content, Item, listed, unpack, write};
pub(crate) use bucket::error_text;
pub use bucket::{Bucket, CopiedDumps};
pub use directory::{BackupDirectory, BackupFacts, StoredBackup, VerificationResult, removable};
pub use dumps::{DumpFolder, StoredDump};
pub use error::Error;
pub use log::{
    ArchiveOptions, Header, Log, LogReach, PART_MAX, Segment, SegmentFacts, SegmentName, StoreOutcome, unneeded,
};
pub use manifest::{Base, Database, FORMAT, Manifest, Member, Model, is_inside};
pub use seal::{Decryptor, EncryptionKind, EncryptionMode, Key, Recipient, opened};
