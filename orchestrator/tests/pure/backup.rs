//! Copies: what comes out is what went in, and what is damaged, cut, foreign, hostile or sealed for somebody else is refused by name.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use textnlp_orchestrator::backup::{
    BackupDirectory, BackupFacts, Bucket, Content, CopiedDumps, Decryptor, DumpFolder, EncryptionKind, EncryptionMode,
    Error, Item, Key, Manifest, Recipient, StoredBackup, VerificationResult, opened, removable, unpack, write,
};
use textnlp_orchestrator::dr::report::{own_key, signing_key};
use textnlp_provider::{EnvironmentName, Lineage, Secret};
use uuid::Uuid;

fn manifest() -> Manifest {
    Manifest {
        kind: "textnlp-backup".into(),
        format: 1,
        signer: None,
        environment: EnvironmentName::new("staging").unwrap(),
        lineage: Lineage(Uuid::nil()),
        at: "2026-11-20T12:00:00Z".parse().unwrap(),
        tool: "test".into(),
        host: "here".into(),
        databases: BTreeMap::new(),
        models: BTreeMap::new(),
        members: Vec::new(),
    }
}

fn items() -> Vec<Item> {
    let item = |path: &str, bytes: Vec<u8>| Item { path: path.to_owned(), content: Content::Bytes(Secret::new(bytes)) };
    vec![
        item("state/lineage.json", b"{}".to_vec()),
        item("state/secrets/here.api-key/000001.1", b"tnlp_secret".to_vec()),
        item("state/empty", Vec::new()),
        item(&format!("state/{}", "long/".repeat(40) + "name"), vec![7; 512]),
        item("databases/here.db", (0..300_000u32).map(|n| n as u8).collect()),
    ]
}

fn copy(seal: &EncryptionMode) -> Vec<u8> {
    let (_dir, folder) = folder();
    let key = signing_key(&folder).unwrap();
    let mut bytes = Vec::new();
    seal.write(&mut bytes, |to| write(manifest(), &items(), &key, to)).unwrap();
    bytes
}

fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    (dir, path)
}

fn read(bytes: &[u8], opener: &Decryptor) -> Result<(Manifest, BTreeMap<String, Vec<u8>>), Error> {
    let (_dir, folder) = folder();
    let name = Utf8Path::new("a.dump");
    let manifest = unpack(name, &mut *opened(name, bytes, opener)?, &folder)?;
    let files =
        manifest.members.iter().map(|m| (m.path.clone(), std::fs::read(folder.join(&m.path)).unwrap())).collect();
    Ok((manifest, files))
}

#[test]
fn backup_round_trips_with_every_encryption_mode() {
    let (mine, yours) = (Key::generate(), Key::generate());
    let secret = || Secret::new(*b"correct horse battery\n");
    let both =
        EncryptionMode::Keys(vec![mine.recipient(), yours.recipient().to_string().parse::<Recipient>().unwrap()]);
    let cases = [
        (copy(&EncryptionMode::Plain), Decryptor::Nothing),
        (copy(&both), Decryptor::Keys(vec![mine])),
        (copy(&both), Decryptor::Keys(Key::parse(&yours.secret()).unwrap())),
        (copy(&EncryptionMode::Passphrase(secret())), Decryptor::Passphrase(Secret::new(*b"correct horse battery"))),
    ];
    for (bytes, opener) in cases {
        let (manifest, files) = read(&bytes, &opener).unwrap();
        assert_eq!(manifest.members.len(), items().len());
        for item in items() {
            let Content::Bytes(wrote) = item.content else { panic!() };
            assert_eq!(files[&item.path], wrote.expose(), "{}", item.path);
        }
    }
}

#[test]
fn encrypted_backup_leaks_nothing_and_needs_a_matching_key() {
    let key = Key::generate();
    let bytes = copy(&EncryptionMode::Keys(vec![key.recipient()]));
    assert!(!bytes.windows(11).any(|window| window == b"tnlp_secret"));
    assert!(!format!("{key:?}").contains("SECRET"));
    let refused = |opener: Decryptor| match read(&bytes, &opener) {
        Err(error @ Error::Sealed { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refused(Decryptor::Nothing).contains("none was given"));
    assert!(refused(Decryptor::Keys(vec![Key::generate()])).contains("another key"));
    assert!(refused(Decryptor::Passphrase(Secret::new(*b"x"))).contains("not with a passphrase"));
    let bytes = copy(&EncryptionMode::Passphrase(Secret::new(*b"right")));
    let wrong = read(&bytes, &Decryptor::Passphrase(Secret::new(*b"wrong")));
    assert!(matches!(wrong, Err(Error::Sealed { .. })), "{wrong:?}");
}

#[test]
fn the_work_factor_of_a_passphrase_does_not_depend_on_the_machine() {
    let secret = || Secret::new(*b"correct horse battery");
    let bytes = copy(&EncryptionMode::Passphrase(secret()));
    let header = String::from_utf8_lossy(&bytes[..200]).into_owned();
    let stanza = header.lines().find(|line| line.starts_with("-> scrypt ")).unwrap();
    assert!(stanza.ends_with(" 18"), "{stanza}");
    let at = header.find(stanza).unwrap() + stanza.len();
    let costly = [&bytes[..at - 2], b"23", &bytes[at..]].concat();
    let error = read(&costly, &Decryptor::Passphrase(secret())).unwrap_err().to_string();
    assert!(error.contains("work factor of its passphrase is above 22"), "{error}");
}

#[test]
fn every_flipped_byte_and_truncation_of_a_backup_is_detected() {
    let key = Key::generate();
    for (seal, opener) in [
        (EncryptionMode::Plain, Decryptor::Nothing),
        (EncryptionMode::Keys(vec![key.recipient()]), Decryptor::Keys(vec![key])),
    ] {
        let good = copy(&seal);
        read(&good, &opener).unwrap();
        // Closely where lists and digests lie, then a sample.
        for at in (0..6000).step_by(41).chain((6000..good.len()).step_by(20_011)) {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            let read = read(&bytes, &opener);
            assert!(read.is_err(), "a flip at {at} of {}", good.len());
        }
        for length in (0..good.len()).step_by(30_011).chain(good.len() - 3..good.len()) {
            match read(&good[..length], &opener) {
                Err(Error::Truncated { .. } | Error::Damaged { .. } | Error::Foreign { .. }) => {}
                other => panic!("cut at {length}: {other:?}"),
            }
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(matches!(read(&longer, &opener), Err(Error::Damaged { .. })), "a byte behind the end");
    }
}

#[test]
fn files_that_are_not_backups_are_identified() {
    for (bytes, says) in [
        (&b""[..], "cut short"),
        (b"SQLite format 3\0", "not a backup of this program"),
        (b"age-encryption.org/v2\n-> X25519", "later version of age"),
        (b"backup.json\0", "cut short"),
        (&[0u8; 4096], "not a backup of this program"),
    ] {
        let error = read(bytes, &Decryptor::Nothing).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("a.dump"), "{error}");
    }
}

/// A plain copy with a list of a stranger's making, whose digests are right.
fn forged(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut list = serde_json::to_value(manifest()).unwrap();
    list["members"] = serde_json::json!([{ "path": "state/a", "bytes": 0, "sha256": "0".repeat(64) }]);
    change(&mut list);
    let text = serde_json::to_vec(&list).unwrap();
    let digest = format!("{}  backup.json\n", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&text)));
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in [("backup.json", text.as_slice()), ("backup.json.sha256", digest.as_bytes())] {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_mode(0o600);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn forged_backup_manifest_is_refused() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 11] = [
        (|list| list["format"] = 3.into(), "has format 3, this program reads formats up to 2"),
        (|list| list["format"] = 2.into(), "its signer does not fit its format"),
        (|list| list["signer"] = "RWQx".into(), "it is not a minisign public key"),
        (|list| list["format"] = "one".into(), "no format"),
        (|list| list["kind"] = "other".into(), "not of kind"),
        (|list| list["members"][0]["path"] = "/etc/cron.d/x".into(), "leaves the target folder"),
        (|list| list["members"][0]["path"] = "state/../../x".into(), "leaves the target folder"),
        (|list| list["members"][0]["bytes"] = u64::MAX.into(), "too large in total"),
        (|list| list["members"][0]["bytes"] = (1u64 << 59).into(), "are free"),
        (|list| list["members"] = serde_json::json!([list["members"][0], list["members"][0]]), "listed twice"),
        (
            |list| {
                list["databases"]["here"] =
                    serde_json::json!({ "member": "no", "path": "../x", "schema": 1, "keys": 1, "usage": 1 });
            },
            "database of `here`",
        ),
    ];
    for (change, says) in cases {
        let error = read(&forged(change), &Decryptor::Nothing).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn unencrypted_backup_is_readable_with_tar() {
    let bytes = copy(&EncryptionMode::Plain);
    let mut tar = tar::Archive::new(bytes.as_slice());
    let names: Vec<_> =
        tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names[..4], ["backup.json", "backup.json.sha256", "backup.json.minisig", "state/lineage.json"]);
    assert_eq!(names.len(), 3 + items().len());
}

#[test]
fn signature_of_a_backup_is_that_of_the_named_key() {
    let (_dir, state) = folder();
    let key = signing_key(&state).unwrap();
    let mut bytes = Vec::new();
    write(manifest(), &items(), &key, &mut bytes).unwrap();
    let (read_manifest, _) = read(&bytes, &Decryptor::Nothing).unwrap();
    assert_eq!(read_manifest.signer, Some(own_key(&state).unwrap()));
    // A copy of another maker who names the same key: same length, other signature.
    let (_other, other) = folder();
    let mut forged = Vec::new();
    write(manifest(), &items(), &signing_key(&other).unwrap(), &mut forged).unwrap();
    let names = [own_key(&other).unwrap().to_base64(), own_key(&state).unwrap().to_base64()];
    let length = usize::from_str_radix(std::str::from_utf8(&forged[124..135]).unwrap(), 8).unwrap();
    let list = String::from_utf8(forged[512..512 + length].to_vec()).unwrap().replace(&names[0], &names[1]);
    assert_eq!(list.len(), length);
    forged[512..512 + length].copy_from_slice(list.as_bytes());
    let at = 512 + length.next_multiple_of(512) + 512;
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(list.as_bytes()));
    forged[at..at + digest.len()].copy_from_slice(digest.as_bytes());
    let error = read(&forged, &Decryptor::Nothing).unwrap_err();
    assert!(matches!(&error, Error::Damaged { what, .. } if what.contains("signature")), "{error}");
}

#[test]
fn backups_of_earlier_versions_are_read_and_have_no_signer() {
    let unsigned = forged(|list| list["members"] = serde_json::json!([]));
    // The builder wrote the two empty blocks at the end already.
    let (manifest, files) = read(&unsigned, &Decryptor::Nothing).unwrap();
    assert_eq!((manifest.format, manifest.signer, files.len()), (1, None, 0));
}

#[test]
fn concurrent_runs_sign_with_one_key() {
    let (_dir, state) = folder();
    let keys: Vec<String> = std::thread::scope(|scope| {
        let made = || signing_key(&state).unwrap().public().unwrap().to_base64();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(made)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let left: Vec<_> =
        state.join("secrets").read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
    assert_eq!(left, [".drill-report.key"]);
    // What lies beside the drills is not the key that counts.
    std::fs::remove_file(state.join("dr/drill-report.pub")).unwrap();
    signing_key(&state).unwrap();
    assert_eq!(textnlp_orchestrator::dr::report::public_key(&state).unwrap(), own_key(&state).unwrap());
}

#[test]
fn replaced_signing_key_verifies_nothing_any_more() {
    let (_dir, state) = folder();
    let old = signing_key(&state).unwrap();
    let file = state.join("report.json");
    textnlp_orchestrator::dr::report::write_signed(&file, b"{}", &old, "test").unwrap();
    let (before, after) = textnlp_orchestrator::dr::report::rotate_signing_key(&state).unwrap();
    assert_eq!((&before, &after), (&old.public().unwrap(), &own_key(&state).unwrap()));
    assert_ne!(before, after);
    assert!(textnlp_orchestrator::dr::report::verify_own(&state, &file).is_err());
    textnlp_orchestrator::dr::report::verify(&file, &before).unwrap();
    assert_eq!(textnlp_orchestrator::dr::report::public_key(&state).unwrap(), after);
}

#[test]
fn key_file_names_the_signer() {
    let (_dir, state) = folder();
    signing_key(&state).unwrap();
    let (key, signer) = (Key::generate(), own_key(&state).unwrap());
    let file = Key::file(std::slice::from_ref(&key), &EnvironmentName::new("staging").unwrap(), &signer);
    assert_eq!(Key::signer(&file).unwrap(), Some(signer));
    let keys = Key::parse(&file).unwrap();
    assert_eq!(keys[0].recipient().to_string(), key.recipient().to_string());
    assert_eq!(Key::signer(&key.secret()).unwrap(), None);
    // The newest first, then those for older backups.
    let both = Key::file(&[Key::generate(), key], &EnvironmentName::new("staging").unwrap(), &own_key(&state).unwrap());
    let parsed: Vec<String> = Key::parse(&both).unwrap().iter().map(|key| key.recipient().to_string()).collect();
    assert_eq!((parsed.len(), &parsed[1]), (2, &keys[0].recipient().to_string()));
    assert!(Key::signer(&Secret::new(*b"# signed by: nobody\n")).is_err());
}

#[test]
fn unsupported_keys_and_recipients_are_refused_without_being_shown() {
    let secret = "AGE-SECRET-KEY-1QQQQQQ";
    let error = Key::parse(&Secret::new(secret.as_bytes())).unwrap_err().to_string();
    assert!(error.contains("not a key") && !error.contains(secret), "{error}");
    assert!(Key::parse(&Secret::new(*b"# nothing\n")).is_err());
    assert!("age1qqqq".parse::<Recipient>().is_err());
    assert!(EncryptionMode::Passphrase(Secret::new(*b"\n")).write(&mut Vec::new(), |_| Ok(())).is_err());
}

const LINEAGE: Lineage = Lineage(Uuid::nil());

fn facts(at: Timestamp, bytes: u64, sha256: String) -> BackupFacts {
    let environment = EnvironmentName::new("staging").unwrap();
    BackupFacts {
        format: 1,
        environment,
        lineage: LINEAGE,
        at,
        bytes,
        sha256,
        sealed: EncryptionKind::Plain,
        recipients: Vec::new(),
        models: false,
        scheduled: false,
        tool: "test".into(),
        bases: Default::default(),
    }
}

fn put(shelf: &BackupDirectory, at: Timestamp, content: &[u8]) -> Result<StoredBackup, Error> {
    shelf.put(
        |bytes, sha256| facts(at, bytes, sha256),
        at,
        |to| to.write_all(content).map_err(|source| Error::Io { action: "write", path: "x".into(), source }),
    )
}

fn proven(shelf: &BackupDirectory, dump: &StoredBackup, ok: bool) {
    prove(shelf, dump, ok).unwrap();
}

fn prove(shelf: &BackupDirectory, dump: &StoredBackup, ok: bool) -> Result<(), Error> {
    let proof = VerificationResult {
        format: 1,
        at: Timestamp::now(),
        sha256: dump.facts.as_ref().unwrap().sha256.clone(),
        ok,
        level: "answered".into(),
        says: String::new(),
        tool: "test".into(),
        milliseconds: 1,
    };
    shelf.prove(&dump.file, &proof)
}

#[test]
fn backups_are_named_by_date_and_private() {
    let (_dir, folder) = folder();
    let shelf = BackupDirectory::at(folder.join("staging"));
    assert_eq!(shelf.list().unwrap(), []);
    let at: Timestamp = "2026-11-20T23:59:59Z".parse().unwrap();
    let first = put(&shelf, at, b"one").unwrap();
    let second = put(&shelf, at + SignedDuration::from_millis(1), b"two").unwrap();
    let third = put(&shelf, at + SignedDuration::from_secs(1), b"three").unwrap();
    let names: Vec<_> = shelf.list().unwrap().iter().map(|d| d.file.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["backup_20261121.dump", "backup_20261120-2.dump", "backup_20261120.dump"]);
    assert_eq!(std::fs::metadata(&third.file).unwrap().permissions().mode() & 0o777, 0o600);
    proven(&shelf, &first, true);
    assert!(shelf.list().unwrap()[2].is_proven());
    // One whose file changed on the disk failed, and is no other backup's.
    let rotten = |ok: bool| {
        let facts = third.facts.clone().map(|facts| BackupFacts { sha256: "of what was read".into(), ..facts });
        proven(&shelf, &StoredBackup { facts, ..third.clone() }, ok);
        shelf.list().unwrap()[0].proof.as_ref().map(|proof| proof.ok)
    };
    assert_eq!((rotten(false), rotten(true)), (Some(false), None));
    // Another file under the same name is not the one that was proven.
    std::fs::write(&second.file, b"something else").unwrap();
    let dumps = shelf.list().unwrap();
    assert_eq!(dumps.iter().find(|dump| dump.file == second.file).unwrap().facts, None);
    // One that was removed while it was verified leaves nothing.
    assert!(shelf.remove(std::slice::from_ref(&first)).unwrap().is_empty());
    proven(&shelf, &first, true);
    assert!(!Utf8PathBuf::from(format!("{}.verified.json", first.file)).exists());
}

#[test]
fn failed_or_killed_backup_leaves_no_backup_file() {
    let (_dir, folder) = folder();
    let shelf = BackupDirectory::at(&folder);
    let at = Timestamp::now();
    std::fs::write(folder.join(".unfinished-1"), b"half").unwrap();
    let failed = shelf.put(
        |bytes, sha256| facts(at, bytes, sha256),
        at,
        |to| {
            to.write_all(b"half").unwrap();
            Err(Error::Changed { member: "a".into() })
        },
    );
    assert!(failed.is_err());
    assert_eq!(shelf.list().unwrap(), []);
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"], "what an earlier run left is gone too");
}

#[test]
fn concurrent_backup_runs_are_refused_as_busy() {
    let (_dir, folder) = folder();
    let shelf = BackupDirectory::at(&folder);
    let at = Timestamp::now();
    let inner = shelf.put(|bytes, sha256| facts(at, bytes, sha256), at, |_| put(&shelf, at, b"x").map(drop));
    assert!(matches!(inner, Err(Error::Busy { .. })), "{inner:?}");
}

#[test]
fn pruning_keeps_the_newest_and_the_newest_verified_backup() {
    let (_dir, folder) = folder();
    let shelf = BackupDirectory::at(&folder);
    let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
    let days = |n: i64| now - SignedDuration::from_hours(24 * n);
    let dumps: Vec<StoredBackup> =
        [50, 45, 40, 35].iter().map(|n| put(&shelf, days(*n), n.to_string().as_bytes()).unwrap()).collect();
    proven(&shelf, &dumps[0], true);
    proven(&shelf, &dumps[1], true);
    proven(&shelf, &dumps[2], false);
    std::fs::write(folder.join("backup_20200101.dump"), b"brought by hand").unwrap();
    let keep = Duration::from_secs(30 * 86_400);
    let names = |lineage| -> Vec<String> {
        let gone = removable(&shelf.list().unwrap(), lineage, keep, now);
        gone.iter().map(|d| d.file.file_name().unwrap().to_owned()).collect()
    };
    assert_eq!(names(LINEAGE), ["backup_20261011.dump", "backup_20261001.dump"]);
    assert_eq!(names(Lineage(Uuid::max())), [""; 0], "another deployment's copies are not ours to remove");
    let gone = removable(&shelf.list().unwrap(), LINEAGE, keep, now);
    shelf.remove(&gone).unwrap();
    let left: Vec<_> = shelf.list().unwrap().iter().map(|d| d.file.file_name().unwrap().to_owned()).collect();
    assert_eq!(left, ["backup_20261016.dump", "backup_20261006.dump", "backup_20200101.dump"]);
    assert!(!folder.join("backup_20261001.dump.verified.json").exists());
}

/// The folder of an environment in a bucket, with a workplace on this machine.
fn in_bucket(store: &Arc<InMemory>, workplace: &Utf8Path) -> BackupDirectory {
    let bucket = Bucket::new(store.clone(), "company", "s3://backups/company/", "AWS_ACCESS_KEY_ID of a test");
    bucket.folder("staging").directory(workplace)
}

async fn objects(store: &InMemory) -> Vec<String> {
    let listed: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    listed.iter().map(|object| object.location.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_in_a_bucket_are_listed_fetched_and_verified_like_those_of_a_folder() {
    let (_dir, folder) = folder();
    let store = Arc::new(InMemory::new());
    let shelf = in_bucket(&store, &folder.join("workplace"));
    assert_eq!(shelf.list().unwrap(), []);
    let at: Timestamp = "2026-11-20T23:59:59Z".parse().unwrap();
    // Longer than a part.
    let long: Vec<u8> = (0..40_000_000_u32).map(|n| (n / 7) as u8).collect();
    let first = put(&shelf, at, &long).unwrap();
    assert_eq!(first.file, "s3://backups/company/staging/backup_20261120.dump");
    let second = put(&shelf, at, b"two").unwrap();
    assert!(second.file.as_str().ends_with("backup_20261120-2.dump"));
    proven(&shelf, &first, true);
    let listed = shelf.list().unwrap();
    assert_eq!(
        listed.iter().map(|dump| (&dump.file, dump.is_proven())).collect::<Vec<_>>(),
        [(&second.file, false), (&first.file, true)]
    );
    assert_eq!(listed[1].facts, first.facts);

    assert!(shelf.is_elsewhere(&first.file) && !shelf.is_elsewhere(&folder));
    let copy = shelf.fetch(&first.file, &folder).unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), long);
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(BackupDirectory::known(&copy, long.len() as u64).is_proven());
    let left: Vec<_> = std::fs::read_dir(folder.join("workplace")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"], "the uploaded file is not kept here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_did_not_end_are_no_backups_and_are_removed_after_a_week() {
    let (_dir, folder) = folder();
    let store = Arc::new(InMemory::new());
    let shelf = in_bucket(&store, &folder);
    let now = Timestamp::now();
    let day = now.strftime("%Y%m%d").to_string();
    // A writer on another machine has the first name of the day, and is still uploading.
    let record = |name: &str| Path::from(format!("company/staging/{name}.json"));
    let theirs = serde_json::to_vec(&facts(now, 9, "theirs".into())).unwrap();
    store.put(&record(&format!("backup_{day}.dump")), theirs.clone().into()).await.unwrap();
    store.put(&record("backup_20200101.dump"), b"a file of another program".to_vec().into()).await.unwrap();
    assert_eq!(shelf.list().unwrap(), []);
    let ours = put(&shelf, now, b"ours").unwrap();
    assert!(ours.file.as_str().ends_with(&format!("backup_{day}-2.dump")), "{}", ours.file);
    let there = store.get(&record(&format!("backup_{day}.dump"))).await.unwrap().bytes().await.unwrap();
    assert_eq!(there, theirs, "the name of another writer is not taken");
    // Theirs never ended.
    let later = put(&shelf, now + SignedDuration::from_hours(8 * 24), b"later").unwrap();
    let all = objects(&store).await;
    assert!(!all.contains(&format!("company/staging/backup_{day}.dump.json")), "{all:?}");
    assert!(all.contains(&"company/staging/backup_20200101.dump.json".to_owned()), "it is not of this program");
    assert_eq!(shelf.list().unwrap().len(), 2);
    assert!(later.facts.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_a_bucket_removes_nothing_that_is_not_a_listed_backup() {
    let (_dir, folder) = folder();
    let store = Arc::new(InMemory::new());
    let shelf = in_bucket(&store, &folder);
    let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
    let days = |n: i64| now - SignedDuration::from_hours(24 * n);
    for n in [50, 45, 40] {
        put(&shelf, days(n), b"x").unwrap();
    }
    let others = [
        "company/staging/notes.txt",
        "company/staging/old/backup_20200101.dump",
        "company/production/backup_20200101.dump",
    ];
    for other in others {
        store.put(&Path::from(other), b"theirs".to_vec().into()).await.unwrap();
    }
    store.put(&Path::from("company/staging/backup_20200101.dump"), b"by hand".to_vec().into()).await.unwrap();
    let gone = removable(&shelf.list().unwrap(), LINEAGE, Duration::from_secs(30 * 86_400), now);
    assert_eq!(gone.len(), 2);
    assert_eq!(shelf.remove(&gone).unwrap(), BTreeMap::new());
    let all = objects(&store).await;
    for other in others.into_iter().chain(["company/staging/backup_20200101.dump"]) {
        assert!(all.iter().any(|one| one == other), "{other}: {all:?}");
    }
    assert_eq!(all.len(), 4 + 2, "the newest backup with its metadata stays: {all:?}");
}

/// A bucket whose retention keeps everything, and that takes no upload in parts; a lax one ignores conditions.
#[derive(Debug)]
struct Retaining {
    objects: InMemory,
    lax: bool,
    /// Whether it removes in batches, as Azure does.
    batches: bool,
}

impl fmt::Display for Retaining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Retaining")
    }
}

#[async_trait]
impl ObjectStore for Retaining {
    async fn put_opts(&self, at: &Path, payload: PutPayload, opts: PutOptions) -> object_store::Result<PutResult> {
        if at.filename().is_some_and(|name| name.ends_with(".verified.json")) && self.objects.head(at).await.is_ok() {
            let source = "BlobImmutableDueToPolicy".into();
            return Err(object_store::Error::AlreadyExists { path: at.to_string(), source });
        }
        let opts = if self.lax { PutOptions { mode: PutMode::Overwrite, ..opts } } else { opts };
        self.objects.put_opts(at, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(object_store::Error::Generic { store: "test", source: "connection reset".into() })
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.objects.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let batches = self.batches;
        let refused = move |path: Path| {
            if batches {
                let source = format!("Bulk delete request failed for key {path}: immutable (code: 409)").into();
                return Err(object_store::Error::Generic { store: "MicrosoftAzure", source });
            }
            let source = "retentionPolicyNotMet".into();
            Err(object_store::Error::PermissionDenied { path: path.to_string(), source })
        };
        paths.map(move |path| path.and_then(refused)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_of_a_bucket_is_reported_and_a_failed_upload_is_no_backup() {
    let (_dir, folder) = folder();
    let store = Arc::new(Retaining { objects: InMemory::new(), lax: false, batches: false });
    let shelf = Bucket::new(store, "", "s3://backups", "a test").folder("staging").directory(&folder);
    let at: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
    let kept = put(&shelf, at, b"kept").unwrap();
    let retained = shelf.remove(std::slice::from_ref(&kept)).unwrap();
    assert!(retained[&kept.file].contains("retentionPolicyNotMet"), "{retained:?}");
    assert_eq!(shelf.list().unwrap(), std::slice::from_ref(&kept), "with its metadata");
    let azure = Arc::new(Retaining { objects: InMemory::new(), lax: false, batches: true });
    let azure = Bucket::new(azure, "", "az://backups", "a test").directory(&folder);
    let held = put(&azure, at, b"held").unwrap();
    let retained = azure.remove(std::slice::from_ref(&held)).unwrap();
    assert!(retained[&held.file].contains("immutable"), "{retained:?}");

    // A result that the bucket retains is not replaced; the same one need not be.
    prove(&azure, &held, true).unwrap();
    prove(&azure, &held, true).unwrap();
    let refused = prove(&azure, &held, false).unwrap_err();
    assert!(matches!(refused, Error::Bucket { .. }), "{refused:?}");

    let failed = put(&shelf, at, &vec![7; 17 << 20]).unwrap_err();
    let said = format!("{failed}: {}", std::error::Error::source(&failed).unwrap());
    assert!(said.contains("s3://backups/staging/backup_20261120-2.dump, signed in with a test"), "{said}");
    assert!(said.contains("connection reset"), "{said}");
    assert_eq!(shelf.list().unwrap(), [kept]);

    let lax = Arc::new(Retaining { objects: InMemory::new(), lax: true, batches: false });
    let refused = put(&Bucket::new(lax, "", "s3://lax", "a test").directory(&folder), at, b"x").unwrap_err();
    assert!(refused.hint().contains("conditional writes"), "{refused:?}");
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dumps_of_a_cluster_are_copied_to_a_bucket_once_and_expire_there() {
    let (_dir, folder) = folder();
    let now = Timestamp::now();
    let put = |name: &str, content: &[u8], hours: u64| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        let at = std::time::SystemTime::from(now) - Duration::from_secs(hours * 3600);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
    };
    let copied_as = |stem: &str, hours: i64| {
        let at = now - SignedDuration::from_hours(hours);
        format!("{stem}.{}.dump.age", at.strftime("%Y%m%dT%H%M%SZ"))
    };
    let copy = |bucket: &Bucket, days: i64| {
        let keep = Duration::from_secs(30 * 86_400);
        bucket.copy_dumps(&DumpFolder::at(&*folder), keep, now + SignedDuration::from_hours(24 * days))
    };
    let store = Arc::new(InMemory::new());
    let bucket = Bucket::new(store.clone(), "company/pilot/main", "s3://backups/company/pilot/main", "a test");
    store.put(&Path::from("company/pilot/main/notes.dump.age"), "not a copy".into()).await.unwrap();
    // Longer than a part; and what is no encrypted dump stays here.
    let long: Vec<u8> = (0..20_000_000_u32).map(|n| (n / 7) as u8).collect();
    put("backup_20261120.dump.age", &long, 2);
    put("backup_20261120-2.dump.age", b"second", 1);
    for name in ["backup_20261119.dump", ".new-1", ".lock", "notes.txt"] {
        put(name, b"PGDMP", 3);
    }
    let both = [copied_as("backup_20261120", 2), copied_as("backup_20261120-2", 1)];
    assert_eq!(copy(&bucket, 0).unwrap().copied, both, "the oldest first");
    assert_eq!(copy(&bucket, 0).unwrap(), CopiedDumps::default(), "each once");
    let there = Path::from(format!("company/pilot/main/{}", both[0]));
    assert_eq!(store.get(&there).await.unwrap().bytes().await.unwrap(), long);

    // A volume that was created again has the same names, and dumps that were put back are not copied again.
    put("backup_20261120.dump.age", b"of another volume", 0);
    put(&both[1], b"second", 0);
    assert_eq!(copy(&bucket, 0).unwrap().copied, [copied_as("backup_20261120", 0)]);

    // What was cut off while it was put back does not replace its copy.
    put(&both[0], &long[..18_000_000], 0);
    assert_eq!(copy(&bucket, 0).unwrap(), CopiedDumps::default());
    assert_eq!(store.get(&there).await.unwrap().bytes().await.unwrap(), long);
    std::fs::remove_file(folder.join(&both[0])).unwrap();

    // By age, and never the newest, nor those of a volume before this one.
    let lock = std::fs::File::options().write(true).open(folder.join(".lock")).unwrap();
    lock.set_modified(std::time::SystemTime::from(now) + Duration::from_secs(60)).unwrap();
    assert_eq!(copy(&bucket, 31).unwrap(), CopiedDumps::default());
    lock.set_modified(std::time::SystemTime::from(now) - Duration::from_secs(60)).unwrap();
    let expired = copy(&bucket, 31).unwrap();
    assert_eq!((expired.copied.len(), expired.removed, expired.retained.len()), (0, 2, 0), "{expired:?}");
    let newest = format!("company/pilot/main/{}", copied_as("backup_20261120", 0));
    assert_eq!(objects(&store).await, [&*newest, "company/pilot/main/notes.dump.age"]);

    // What was copied before a failure is not copied again, and what the bucket retains is reported.
    let locked = Arc::new(Retaining { objects: InMemory::new(), lax: false, batches: false });
    let locked = Bucket::new(locked, "", "s3://locked", "a test");
    std::fs::remove_file(folder.join(&both[1])).unwrap();
    put("backup_20261121.dump.age", &long, 0);
    put("backup_20261121-2.dump.age", b"third", 0);
    let failed = copy(&locked, 0).unwrap_err();
    assert!(matches!(failed, Error::Bucket { action: "upload", .. }), "{failed:?}");
    put("backup_20261121.dump.age", b"shorter", 0);
    assert_eq!(copy(&locked, 0).unwrap().copied, [copied_as("backup_20261121", 0)]);
    let retained = copy(&locked, 31).unwrap();
    assert_eq!((retained.removed, retained.retained.len()), (0, 3), "{retained:?}");
    assert!(retained.retained[0].contains("s3://locked/backup_2026112"), "{retained:?}");
}

#[test]
fn file_changed_while_it_is_backed_up_is_refused() {
    struct Meddling(Utf8PathBuf, Vec<u8>);
    impl Write for Meddling {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // The list is written: what follows is no longer what it says.
            std::fs::write(&self.0, b"other")?;
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (_dir, folder) = folder();
    let file = folder.join("file");
    std::fs::write(&file, b"first").unwrap();
    let items = [Item { path: "a".into(), content: Content::File(file.clone()) }];
    let wrote = write(manifest(), &items, &signing_key(&folder).unwrap(), &mut Meddling(file, Vec::new()));
    assert!(matches!(wrote, Err(Error::Changed { .. })), "{wrote:?}");
}
