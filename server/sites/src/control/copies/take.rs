//! Copying what the primary has and this site lacks.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use bytes::Bytes;
use camino::Utf8Path;
use flate2::read::DeflateDecoder;
use http::StatusCode;
use textnlp_models::{MANIFEST, Manifest, verify};
use textnlp_process::Address;
use tokio_util::sync::CancellationToken;

use super::super::actor::Actor;
use super::super::config::AgentConfig;
use super::super::{client, disk};
use super::offer::{self, FILE_MAX, PIECE};
use super::{CopiesConfig, CopyStatus, Data, Offer, configuration_of, models_of, sha256};

/// A change at the primary is seen within this.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Free disk space to leave for control data, in bytes.
const ROOM: u64 = 64 << 20;

/// Keeps this site's copies equal to the primary's, until the site agent stops.
pub(in super::super) async fn follow(
    actor: Actor,
    config: AgentConfig,
    copies: CopiesConfig,
    copied: CopyStatus,
    stop: CancellationToken,
) {
    let mut follower = Follower { config, copies, copied, seen: None, looked: BTreeMap::new(), gone: BTreeMap::new() };
    while !stop.is_cancelled() {
        let primary = actor.look().await.ok().and_then(|(overview, _)| overview.primary);
        let work = async {
            match &primary {
                Some(site) if *site == follower.config.site => follower.leads(),
                Some(site) => {
                    if let Some(address) = follower.config.peers.get(site).cloned() {
                        follower.look(&address).await;
                    }
                }
                None => {}
            }
        };
        tokio::select! {
            // Incomplete files stay, and the next process resumes them.
            () = stop.cancelled() => return,
            () = work => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

struct Follower {
    config: AgentConfig,
    copies: CopiesConfig,
    copied: CopyStatus,
    /// What the primary offered at the last poll.
    seen: Option<Offer>,
    /// When each kind was last compared.
    looked: BTreeMap<Data, Instant>,
    /// Copies that the primary no longer has, and since when.
    gone: BTreeMap<String, Instant>,
}

impl Follower {
    /// Marks this site as the source of the copies.
    fn leads(&mut self) {
        self.seen = None;
        let Ok(own) = offer::offer(&self.config, &self.copies) else { return };
        for (data, count) in [(Data::Models, own.models.len()), (Data::Configuration, own.configuration.len())] {
            self.copied.update(data, |mark| {
                *mark = super::CopyMark { source: true, wanted: count, held: count, ..super::CopyMark::default() };
                mark.whole = Some(Instant::now());
            });
        }
    }

    async fn look(&mut self, primary: &Address) {
        let started = Instant::now();
        let offered: Result<Offer, String> = match client::get(primary, "/v1/copies", REQUEST_TIMEOUT).await {
            Ok((StatusCode::OK, answer)) => {
                serde_json::from_value(answer).map_err(|error| error.to_string()).and_then(sound)
            }
            Ok((status, _)) => Err(format!("the primary's site agent answers {status}")),
            Err(why) => Err(why),
        };
        let offered = match offered {
            Ok(offered) => offered,
            Err(why) => {
                for data in [Data::Models, Data::Configuration] {
                    self.copied.update(data, |mark| (mark.source, mark.error) = (false, Some(why.clone())));
                }
                return;
            }
        };
        let before = self.seen.replace(offered.clone());
        let changed = |same: fn(&Offer, &Offer) -> bool| before.as_ref().is_none_or(|before| !same(before, &offered));
        let models = changed(|a, b| a.models == b.models);
        let configuration = changed(|a, b| a.configuration == b.configuration);
        if models || self.is_due(Data::Models, self.copies.models_every_ms) {
            let done = self.models(primary, &offered).await;
            self.done(Data::Models, started, done);
        } else {
            self.still(Data::Models, started);
        }
        if configuration || self.is_due(Data::Configuration, self.copies.configuration_every_ms) {
            let done = self.configuration(primary, &offered).await;
            self.done(Data::Configuration, started, done);
        } else {
            self.still(Data::Configuration, started);
        }
    }

    fn is_due(&self, data: Data, every_ms: u64) -> bool {
        self.looked.get(&data).is_none_or(|at| at.elapsed() >= Duration::from_millis(every_ms))
    }

    fn done(&mut self, data: Data, started: Instant, done: Result<(), String>) {
        match done {
            Ok(()) => {
                self.looked.insert(data, Instant::now());
                self.copied.update(data, |mark| (mark.whole, mark.error) = (Some(started), None));
            }
            Err(why) => {
                tracing::warn!(data = data.word(), %why, "the copy from the primary failed");
                // Retried at the next poll.
                self.looked.remove(&data);
                self.copied.update(data, |mark| mark.error = Some(why));
            }
        }
    }

    /// Neither the primary nor this site has changed.
    fn still(&self, data: Data, started: Instant) {
        self.copied.update(data, |mark| {
            if mark.held == mark.wanted && mark.missing_bytes == 0 {
                (mark.whole, mark.error) = (Some(started), None);
            }
        });
    }

    async fn models(&mut self, primary: &Address, offered: &Offer) -> Result<(), String> {
        let failure = |error: io::Error| format!("use the folder of copies: {error}");
        let here = offer::models(&self.config, &self.copies).map_err(failure)?;
        let missing: Vec<&Manifest> = offered.models.iter().filter(|model| !here.contains_key(&model.digest)).collect();
        let bytes: u64 = missing.iter().map(|model| model.bytes).sum();
        self.copied.update(Data::Models, |mark| {
            (mark.source, mark.wanted) = (false, offered.models.len());
            (mark.held, mark.missing_bytes) = (offered.models.len() - missing.len(), bytes);
        });
        for model in missing {
            self.model(primary, model).await?;
            self.copied.update(Data::Models, |mark| {
                mark.held += 1;
                mark.missing_bytes = mark.missing_bytes.saturating_sub(model.bytes);
            });
        }
        self.prune(offered).map_err(failure)
    }

    /// Copies the files of one model; resumes an earlier attempt.
    async fn model(&self, primary: &Address, model: &Manifest) -> Result<(), String> {
        let folder = models_of(&self.config.folder);
        let hex = model.digest.hex();
        let part = folder.join(format!(".part-{hex}"));
        let failure = |error: io::Error| format!("copy model {}: {error}", model.digest);
        std::fs::create_dir_all(&part).map_err(failure)?;
        let there: u64 = model.files.iter().map(|file| length(&part.join(&file.name))).sum();
        has_room(&folder, model.bytes.saturating_sub(there)).map_err(failure)?;
        for file in &model.files {
            let path = part.join(&file.name);
            let mut at = length(&path);
            if at > file.bytes {
                std::fs::remove_file(&path).map_err(failure)?;
                at = 0;
            }
            let mut to = std::fs::File::options().create(true).append(true).open(&path).map_err(failure)?;
            while at < file.bytes {
                let piece = self.piece(primary, model, &file.name, at).await?;
                if piece.is_empty() {
                    return Err(format!("the primary's `{}` is shorter than it says", file.name));
                }
                tokio::task::block_in_place(|| to.write_all(&piece)).map_err(failure)?;
                at += piece.len() as u64;
            }
            tokio::task::block_in_place(|| to.sync_all()).map_err(failure)?;
        }
        let list = serde_json::to_vec_pretty(model).map_err(|error| error.to_string())?;
        disk::put_bytes(&part.join(MANIFEST), &list).map_err(failure)?;
        let verified = tokio::task::block_in_place(|| verify(&part));
        if let Err(error) = verified {
            // Restarted from zero: which bytes are wrong is unknown.
            std::fs::remove_dir_all(&part).map_err(failure)?;
            return Err(format!("model {} arrived damaged: {error}", model.digest));
        }
        std::fs::rename(&part, folder.join(&hex)).map_err(failure)?;
        textnlp_files::sync_folder(&folder).map_err(|error| failure(error.into()))?;
        tracing::info!(digest = %model.digest, bytes = model.bytes, source = %model.source, "a model was copied from the primary");
        Ok(())
    }

    async fn piece(&self, primary: &Address, model: &Manifest, file: &str, from: u64) -> Result<Vec<u8>, String> {
        let compress = u8::from(self.copies.compress);
        let name = super::super::http::escaped(file);
        let path = format!("/v1/copies/model?digest={}&file={name}&from={from}&deflate={compress}", model.digest.hex());
        // A piece that does not compress is a little longer.
        let bytes = fetched(primary, &path, 2 * PIECE as usize).await?;
        match self.copies.compress {
            true => inflated(&bytes, PIECE),
            false => Ok(bytes.to_vec()),
        }
    }

    async fn configuration(&self, primary: &Address, offered: &Offer) -> Result<(), String> {
        let failure = |error: io::Error| format!("copy configuration: {error}");
        let folder = configuration_of(&self.config.folder);
        std::fs::create_dir_all(&folder).map_err(failure)?;
        let has = |file: &&super::File| {
            std::fs::read(folder.join(&file.name)).is_ok_and(|bytes| sha256(&bytes) == file.sha256)
        };
        let missing: Vec<_> = offered.configuration.iter().filter(|file| !has(file)).collect();
        self.copied.update(Data::Configuration, |mark| {
            (mark.source, mark.wanted) = (false, offered.configuration.len());
            mark.held = offered.configuration.len() - missing.len();
            mark.missing_bytes = missing.iter().map(|file| file.bytes).sum();
        });
        for file in missing {
            let path = format!("/v1/copies/configuration?file={}", super::super::http::escaped(&file.name));
            let bytes = fetched(primary, &path, FILE_MAX as usize).await?;
            if sha256(&bytes) != file.sha256 {
                return Err(format!("`{}` changed while it was copied", file.name));
            }
            disk::put_bytes(&folder.join(&file.name), &bytes).map_err(failure)?;
            self.copied.update(Data::Configuration, |mark| {
                mark.held += 1;
                mark.missing_bytes = mark.missing_bytes.saturating_sub(file.bytes);
            });
        }
        for name in offer::names(&folder).map_err(failure)? {
            if !offered.configuration.iter().any(|file| file.name == name) {
                std::fs::remove_file(folder.join(name)).map_err(failure)?;
            }
        }
        Ok(())
    }

    /// Removes copies that the primary has not had for a whole interval (it may have been replacing them), and those
    /// that were delivered here since.
    fn prune(&mut self, offered: &Offer) -> io::Result<()> {
        let folder = models_of(&self.config.folder);
        let names = offer::names(&folder)?;
        let delivered = offer::delivered(&self.copies)?;
        let needed = offered.models.iter().filter(|model| !delivered.contains_key(&model.digest));
        let digests: Vec<String> = needed.map(|model| model.digest.hex()).collect();
        self.gone.retain(|name, _| names.contains(name) && !digests.contains(name));
        for name in names.into_iter().filter(|name| !digests.iter().any(|digest| name.ends_with(digest.as_str()))) {
            let since = *self.gone.entry(name.clone()).or_insert_with(Instant::now);
            if since.elapsed() >= Duration::from_millis(self.copies.models_every_ms) {
                std::fs::remove_dir_all(folder.join(&name))?;
                self.gone.remove(&name);
                tracing::info!(%name, "removed a copy that the primary no longer has");
            }
        }
        Ok(())
    }
}

/// Rejects an offer with paths outside of its directories or implausible sizes: another site may be damaged or
/// compromised.
fn sound(offer: Offer) -> Result<Offer, String> {
    for model in &offer.models {
        let text = serde_json::to_vec(model).map_err(|error| error.to_string())?;
        Manifest::parse(Utf8Path::new("the primary's list"), &text).map_err(|error| error.to_string())?;
    }
    let is_plain = |name: &str| Utf8Path::new(name).file_name() == Some(name) && !name.starts_with('.');
    match offer.configuration.iter().find(|file| !is_plain(&file.name)) {
        Some(_) => Err("the primary offers a file with an invalid name".to_owned()),
        None => Ok(offer),
    }
}

async fn fetched(primary: &Address, path: &str, most: usize) -> Result<Bytes, String> {
    match client::bytes(primary, path, most, REQUEST_TIMEOUT).await? {
        (StatusCode::OK, bytes) => Ok(bytes),
        (status, _) => Err(format!("the primary's site agent answers {status} to {path}")),
    }
}

/// Decompresses at most `most` bytes, whatever the input contains.
fn inflated(bytes: &[u8], most: u64) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    DeflateDecoder::new(bytes)
        .take(most + 1)
        .read_to_end(&mut out)
        .map_err(|error| format!("unpack a chunk: {error}"))?;
    if out.len() as u64 > most { Err("a chunk is longer than requested".to_owned()) } else { Ok(out) }
}

fn has_room(folder: &Utf8Path, bytes: u64) -> io::Result<()> {
    let free = textnlp_files::filesystem(folder)?.free;
    match free.checked_sub(ROOM).is_some_and(|free| free >= bytes) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("{bytes} bytes are needed, but only {free} are free, and {ROOM} of them must stay free"),
        )),
    }
}

fn length(path: &Utf8Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_files_stay_in_their_directory_and_have_the_promised_size() {
        let digest = textnlp_models::Digest::of(b"x");
        let offer = |model: &str, more: u64, file: &str| -> Offer {
            let list = format!("{model}\0{}\n", digest.hex());
            let files = serde_json::json!([{ "name": model, "digest": digest, "bytes": 5 }]);
            let model = serde_json::json!({
                "format": 1, "source": "x", "digest": textnlp_models::Digest::of(list.as_bytes()), "bytes": 5 + more, "files": files,
            });
            let configuration = serde_json::json!([{ "name": file, "bytes": 1, "sha256": "x" }]);
            serde_json::from_value(serde_json::json!({ "models": [model], "configuration": configuration })).unwrap()
        };
        assert_eq!(sound(offer("weights.gguf", 0, "server-0.yaml")).map(drop), Ok(()));
        for strange in ["../weights", "/etc/cron.d/x", "a/b", "..", ".", "", "a/", MANIFEST] {
            assert!(sound(offer(strange, 0, "server-0.yaml")).is_err(), "{strange:?}");
        }
        for strange in ["../x.yaml", "/x.yaml", ".hidden.yaml", ""] {
            assert!(sound(offer("weights.gguf", 0, strange)).is_err(), "{strange:?}");
        }
        assert!(sound(offer("weights.gguf", 1, "server-0.yaml")).is_err(), "a size that is not the sum of its files'");
    }

    #[test]
    fn compressed_piece_round_trips_within_the_requested_size() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 7) as u8).collect();
        let packed = offer::deflated(&bytes).unwrap();
        assert!(packed.len() < bytes.len());
        assert_eq!(inflated(&packed, PIECE).unwrap(), bytes);
        assert!(inflated(&packed, 99_999).is_err());
        assert!(inflated(b"no deflate", PIECE).is_err());
    }
}
