//! The keys that an installed site trusts. The first verified installation pins them in `ROOT/trust.json`. From then on
//! only bundles signed by a pinned key are accepted, and only such a bundle changes the pinned keys.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use camino::Utf8Path;
use rustix::fs::OFlags;
use semver::Version;
use serde::{Deserialize, Serialize};
use textnlp_files::{Exposed, Exposure, Replace, caller};
use textnlp_models::Digest;

use crate::error::{Error, Result, TRUST};
use crate::manifest::{Kind, Manifest};
use crate::open::Bundle;
use crate::sign::{Authenticity, PublicKey, Signature, TrustSet};
use crate::site::{Installed, Site, Source, remove};

/// Of the record.
const FORMAT: u32 = 1;
/// Of the record: far above what [`MAX_PINNED_KEYS`] take.
const MAX_RECORD_BYTES: u64 = 1 << 20;
/// Pinned and revoked keys of one site.
const MAX_PINNED_KEYS: usize = 1000;
/// A version of a bundle and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// See [`Manifest::version`].
    pub version: String,
    /// See [`Manifest::epoch`].
    pub epoch: u64,
}

impl Release {
    fn of(manifest: &Manifest) -> Release {
        Release { version: manifest.version.clone(), epoch: manifest.epoch }
    }

    /// By time. Bundles that were created without `SOURCE_DATE_EPOCH` have the same time: of those, by version.
    fn is_older_than(&self, other: &Release) -> bool {
        let version = |release: &Release| Version::parse(&release.version).ok();
        self.epoch < other.epoch
            || self.epoch == other.epoch
                && matches!((version(self), version(other)), (Some(own), Some(other)) if own.cmp_precedence(&other).is_lt())
    }
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = i64::try_from(self.epoch).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
        write!(f, "version {}", self.version)?;
        time.map_or(Ok(()), |time| write!(f, " of {}", time.strftime("%Y-%m-%d")))
    }
}

/// The pinned keys of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedKeys {
    format: u32,
    /// Bundles of these keys are accepted.
    pub trusted: Vec<PublicKey>,
    /// Bundles of these keys are refused, and no bundle introduces them again.
    pub revoked: Vec<PublicKey>,
    /// The newest accepted release, or the one that an operator downgraded to.
    pub newest: Release,
    /// [`Bundle::manifest_digest`] of the bundle that was accepted last. It may be installed again, whatever it changed.
    accepted: Digest,
}

/// Options of the operator that override the pinned keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdmissionOptions {
    /// Forget the pinned keys and the revoked ones.
    pub forget_trust: bool,
    /// Accept an older release.
    pub downgrade: bool,
}

/// A bundle that a site accepts.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Who signed it.
    pub authenticity: Authenticity,
    /// The pinned keys after its installation; `None` while no bundle was verified.
    pub pinned: Option<PinnedKeys>,
}

impl Bundle {
    /// Whether one of these keys signed it. An invalid signature is an error, and so is any other bundle if there are keys.
    pub fn checked_authenticity(&self, trust: &TrustSet) -> Result<Authenticity> {
        let authenticity = self.authenticity(trust);
        match &authenticity {
            Authenticity::Unverified { why }
                if !trust.is_empty() || matches!(self.signature(), Signature::Invalid { .. }) =>
            {
                Err(Error::NotTrusted { why: why.clone(), pinned_in: None })
            }
            _ => Ok(authenticity),
        }
    }
}

impl Site {
    /// The pinned keys; `None` before the first verified installation.
    pub fn pinned_keys(&self) -> Result<Option<PinnedKeys>> {
        self.check_folder()?;
        let path = self.root().join(TRUST);
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        check_owner(&path, &file.metadata().map_err(Error::io("read", &path))?)?;
        let mut text = Vec::new();
        file.take(MAX_RECORD_BYTES).read_to_end(&mut text).map_err(Error::io("read", &path))?;
        let altered = |why: String| Error::Altered { path: path.clone(), why };
        let pinned: PinnedKeys = serde_json::from_slice(&text)
            .map_err(|error| altered(format!("it is not a record of trusted keys: {error}")))?;
        if pinned.format != FORMAT {
            return Err(altered(format!("it has format {}; this program reads {FORMAT}", pinned.format)));
        }
        if pinned.trusted.is_empty() {
            return Err(altered("it trusts no key".to_owned()));
        }
        Ok(Some(pinned))
    }

    /// A user who can replace the record or a content decides which bundles are accepted and what runs.
    pub(crate) fn check_folder(&self) -> Result<()> {
        let failed = || Error::io("read", self.root());
        match std::fs::metadata(self.root()) {
            Ok(metadata) => check_owner(self.root(), &metadata)?,
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(failed()(error)),
        }
        // The root does not exist before the first installation.
        let Some(above) = self.root().ancestors().find(|path| path.exists()) else { return Ok(()) };
        let rest = self.root().strip_prefix(above).map_or(Utf8Path::new(""), |rest| rest);
        let real = above.canonicalize().map_err(failed())?.join(rest);
        textnlp_files::check_parents(real)?.map_or(Ok(()), |exposed| Err(Error::Exposed(exposed)))
    }

    /// Whether this site accepts a bundle: signed by a pinned key and by a `typed` one, if there are any, and not older
    /// than what was accepted before. Nothing is written.
    pub fn admit(&self, bundle: &Bundle, typed: &TrustSet, options: AdmissionOptions) -> Result<Admission> {
        let pinned = if options.forget_trust { self.check_folder().map(|()| None)? } else { self.pinned_keys()? };
        // A damaged record is repaired by the installation; it holds no keys.
        let active = self.installed().ok().flatten();
        let unchanged = active.as_ref().filter(|active| holds(active, bundle));
        let release = Release::of(bundle.manifest());
        if let (Some(pinned), Signature::Valid { key }) = (&pinned, bundle.signature()) {
            if pinned.trusted.contains(key) && !typed.is_empty() && !typed.keys().contains(key) {
                let why = format!("it is signed with key {}, which is pinned here, but --trust names others", key.id());
                return Err(Error::NotTrusted { why, pinned_in: None });
            }
            if pinned.accepted_before(bundle, key, unchanged) {
                let mut pinned = pinned.clone();
                if options.downgrade {
                    pinned.newest = release;
                }
                let authenticity = Authenticity::Verified { key: key.id() };
                return Ok(Admission { authenticity, pinned: Some(pinned) });
            }
        }

        let refuse =
            |why: String| Error::NotTrusted { why, pinned_in: pinned.as_ref().map(|_| self.root().to_owned()) };
        let authenticity = match &pinned {
            Some(pinned) => {
                bundle.checked_authenticity(&TrustSet::new(pinned.trusted.clone())).map_err(|error| {
                    match (error, bundle.signature()) {
                        (_, Signature::Valid { key }) if pinned.revoked.contains(key) => {
                            refuse(format!("it is signed with key {}, which is revoked here", key.id()))
                        }
                        (Error::NotTrusted { why, .. }, _) => refuse(why),
                        (error, _) => error,
                    }
                })?
            }
            None => bundle.checked_authenticity(typed)?,
        };
        if let Authenticity::Unverified { why } = &authenticity
            && !options.forget_trust
            // Installed before keys were pinned.
            && active.as_ref().is_some_and(Installed::is_verified)
        {
            return Err(refuse(format!("{why}; what is installed here was verified")));
        }

        let newest = match (&pinned, &active) {
            (Some(pinned), _) => Some(pinned.newest.clone()),
            (None, Some(active)) => Some(Release { version: active.version.clone(), epoch: active.epoch }),
            (None, None) => None,
        };
        let must_be_newer = !options.downgrade && unchanged.is_none();
        if let Some(newest) = newest.filter(|newest| must_be_newer && release.is_older_than(newest)) {
            return Err(Error::OlderRelease {
                root: self.root().to_owned(),
                offered: release.to_string(),
                newest: newest.to_string(),
            });
        }

        if !authenticity.is_verified() {
            return Ok(Admission { authenticity, pinned: None });
        }
        let mut next = pinned.clone().unwrap_or_else(|| PinnedKeys {
            format: FORMAT,
            trusted: typed.keys().to_vec(),
            revoked: Vec::new(),
            newest: release.clone(),
            accepted: bundle.manifest_digest(),
        });
        next.accept(bundle, release, options.downgrade);
        if next.trusted.is_empty() {
            return Err(refuse("it revokes every key that is trusted here and introduces none".to_owned()));
        }
        if next.trusted.len() + next.revoked.len() > MAX_PINNED_KEYS {
            return Err(refuse(format!("more than {MAX_PINNED_KEYS} keys would be pinned or revoked here")));
        }
        Ok(Admission { authenticity, pinned: Some(next) })
    }

    /// [`Site::activate`] for a content that came from this bundle; pins the keys. The bundle is checked again, because
    /// another process may have changed the pinned keys since.
    pub fn activate_admitted(
        &self,
        name: &str,
        bundle: &Bundle,
        typed: &TrustSet,
        options: AdmissionOptions,
    ) -> Result<Admission> {
        let _lock = self.lock()?;
        let admission = self.admit(bundle, typed, options)?;
        let path = self.root().join(TRUST);
        // Before the switch: after a crash between the two, the same bundle is accepted again.
        match &admission.pinned {
            Some(pinned) if self.pinned_keys().ok().flatten().as_ref() != Some(pinned) => {
                let text =
                    serde_json::to_vec_pretty(pinned).map_err(|error| Error::io("write", &path)(error.into()))?;
                Replace::mode(0o644).sole_writer().write(&path, &text)?;
            }
            Some(_) => {}
            None => remove(&path)?,
        }
        self.choose(name)?;
        Ok(admission)
    }
}

impl PinnedKeys {
    /// Whether this is the bundle that was accepted last, or one that the active content was made from and that it still
    /// holds. A key may have been revoked since, by the bundle itself: an interrupted installation must be repeatable.
    fn accepted_before(&self, bundle: &Bundle, signer: &PublicKey, unchanged: Option<&Installed>) -> bool {
        let digest = bundle.manifest_digest();
        let is_source = |source: &Source| source.manifest == digest && source.authenticity.is_verified();
        (self.trusted.contains(signer) || self.revoked.contains(signer))
            && (self.accepted == digest || unchanged.is_some_and(|active| active.sources.iter().any(is_source)))
    }

    fn accept(&mut self, bundle: &Bundle, release: Release, downgrade: bool) {
        let change = bundle.manifest().keys.clone().unwrap_or_default();
        self.trusted.retain(|key| !change.revokes.contains(key));
        for key in change.revokes {
            if !self.revoked.contains(&key) {
                self.revoked.push(key);
            }
        }
        for key in change.introduces {
            if !self.trusted.contains(&key) && !self.revoked.contains(&key) {
                self.trusted.push(key);
            }
        }
        if downgrade || !release.is_older_than(&self.newest) {
            self.newest = release;
        }
        self.accepted = bundle.manifest_digest();
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// As sshd checks a home folder. A sticky bit protects nothing: others could add a content with the name of the next one.
fn check_owner(path: &Utf8Path, metadata: &Metadata) -> Result<()> {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    let mode = metadata.mode() & 0o7777;
    let why = if ![caller(), 0].contains(&metadata.uid()) {
        Exposure::Owner(metadata.uid())
    } else if mode & WRITABLE_BY_OTHERS != 0 {
        Exposure::Writable(mode)
    } else {
        return Ok(());
    };
    Err(Error::Exposed(Exposed { path: path.into(), why }))
}

/// Whether the active content holds all that the bundle would bring.
fn holds(active: &Installed, bundle: &Bundle) -> bool {
    let manifest = bundle.manifest();
    match (&manifest.kind, &manifest.delta) {
        (Kind::Delta, Some(delta)) => active.contents.has_applied(manifest, delta),
        _ => active.content == bundle.content_digest(),
    }
}
