//! `admin base-backup`: a base backup of a running primary by `pg_basebackup`, including the WAL that it needs.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::time::Duration;

use camino::Utf8Path;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::{Connection, Row};
use tokio::process::Command;

use super::config::OWNER;
use super::{Config, Error, archive, setup};

/// The result of a base backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Base {
    /// The number that PostgreSQL gave to these files, in digits.
    pub system: String,
    /// The major version.
    pub version: u32,
    /// The first part of the log that it needs.
    pub first: String,
    /// The last WAL segment; the backup contains both and all between.
    pub last: String,
    /// The length of a part.
    pub part_bytes: u64,
    /// The earliest point in time that can be restored.
    pub from: Timestamp,
    /// The length of the file.
    pub bytes: u64,
}

/// Timeout: many gigabytes take long.
const COPY_TIMEOUT: Duration = Duration::from_secs(3600);
/// Maximum size of the backup label, which precedes all files, in bytes.
const LABEL_MAX: u64 = 64 << 10;

/// Takes a base backup of the server of this configuration into a file that must not exist.
pub async fn base(file: &Utf8Path, to: &Utf8Path) -> Result<Base, Error> {
    let config = Config::read(file)?;
    let fails = |source| Error::Folder { path: to.to_owned(), source };
    let mut made =
        std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(to).map_err(fails)?;
    let mut command = Command::new(config.programs.join("pg_basebackup"));
    command.args(["-D", "-", "-F", "tar", "-X", "fetch", "-c", "fast", "--no-manifest", "-w", "-l", "textnlp"]);
    command.args(["-h", config.run().as_str(), "-p", &config.port.to_string(), "-U", OWNER]);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stdout(made.try_clone().map_err(fails)?).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn()?;
    let ended = tokio::time::timeout(COPY_TIMEOUT, child.wait_with_output());
    let output =
        ended.await.map_err(|_| Error::Base(format!("it did not end within {} s", COPY_TIMEOUT.as_secs())))??;
    if !output.status.success() {
        let excerpt: String = String::from_utf8_lossy(&output.stderr).chars().take(2000).collect();
        return Err(Error::Base(excerpt.trim().replace('\n', "; ")));
    }
    let from = Timestamp::now();
    made.sync_all().map_err(fails)?;
    made.seek(SeekFrom::Start(0)).map_err(fails)?;
    let mut beginning = Vec::new();
    made.by_ref().take(LABEL_MAX).read_to_end(&mut beginning).map_err(fails)?;
    let first = first_part(&beginning)
        .ok_or_else(|| Error::Base("the base backup does not contain the start of its log".to_owned()))?;
    let mut server = setup::connect(&config).await.map_err(Error::Make)?;
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::int / 10000, pg_size_bytes(current_setting('wal_segment_size'))",
    );
    let row = row.fetch_one(&mut server).await.map_err(Error::Make)?;
    let (version, part_bytes): (i32, i64) =
        (row.try_get(0).map_err(Error::Make)?, row.try_get(1).map_err(Error::Make)?);
    server.close().await.map_err(Error::Make)?;
    let last = last_part(to, &first).map_err(fails)?;
    Ok(Base {
        system: archive::system(&config)?.to_string(),
        version: version.unsigned_abs(),
        last: last.unwrap_or_else(|| first.clone()),
        first,
        part_bytes: part_bytes.unsigned_abs(),
        from,
        bytes: made.metadata().map_err(fails)?.len(),
    })
}

/// `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)`
fn first_part(beginning: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(beginning);
    let (_, rest) = text.split_once("START WAL LOCATION: ")?;
    let (_, rest) = rest.split_once("(file ")?;
    let (name, _) = rest.split_once(')')?;
    is_part(name).then(|| name.to_owned())
}

/// The last part of the log in a tar.
fn last_part(tar: &Utf8Path, first: &str) -> std::io::Result<Option<String>> {
    const BLOCK: u64 = 512;
    let mut file = std::fs::File::open(tar)?;
    let length = file.metadata()?.len();
    let (mut at, mut last) = (0u64, None);
    let mut header = [0u8; BLOCK as usize];
    while at + BLOCK <= length {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut header)?;
        let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name);
        let part = name.trim_start_matches("./").strip_prefix("pg_wal/").filter(|name| is_part(name));
        if let Some(part) = part.filter(|part| *part >= first) {
            last = last.max(Some(part.to_owned()));
        }
        // A tar length is octal, or binary if it is too large for that.
        let field = &header[124..136];
        let bytes = match field[0] & 0x80 {
            0 => {
                let text = String::from_utf8_lossy(field);
                u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).unwrap_or(0)
            }
            _ => field[4..].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        at = at.saturating_add(BLOCK).saturating_add(bytes.div_ceil(BLOCK).saturating_mul(BLOCK));
    }
    Ok(last)
}

fn is_part(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
}
