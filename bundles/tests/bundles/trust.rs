//! The keys that a site pins, and the bundles that it accepts with them.

use crate::made::Workshop;
use textnlp_bundle::*;

const FORGET: AdmissionOptions = AdmissionOptions { forget_trust: true, downgrade: false };
const DOWNGRADE: AdmissionOptions = AdmissionOptions { forget_trust: false, downgrade: true };

/// Makes signed bundles and installs them at one site.
struct Publisher {
    shop: Workshop,
    site: Site,
}

/// A release to create: version, epoch, introduced keys, revoked keys.
type Made<'a> = (&'a str, u64, &'a [&'a PublicKey], &'a [&'a PublicKey]);

impl Publisher {
    fn new() -> Publisher {
        let shop = Workshop::new();
        let site = Site::new(&shop.path("site"));
        Publisher { shop, site }
    }

    fn key(&self, name: &str) -> PublicKey {
        let path = |ending: &str| self.shop.path(&format!("{name}.{ending}"));
        keygen(&path("key"), &path("pub"), None).unwrap()
    }

    fn bundle(&self, name: &str, signer: Option<&str>, (version, epoch, introduces, revokes): Made<'_>) {
        let mut inputs = self.shop.inputs();
        (inputs.version, inputs.epoch) = (version.to_owned(), epoch);
        let keys = |keys: &[&PublicKey]| keys.iter().map(|key| (*key).clone()).collect();
        inputs.keys = KeyChange::new(keys(introduces), keys(revokes));
        let content = Content::Bytes(version.as_bytes().to_vec());
        inputs.files.push(Input { path: "configs/version".into(), executable: false, content });
        self.shop.pack(name, &inputs);
        if let Some(signer) = signer {
            let key = SecretKey::read(&self.shop.path(&format!("{signer}.key")), None).unwrap();
            sign(&self.shop.path(name), &key).unwrap();
        }
    }

    fn open(&self, name: &str) -> Bundle {
        Bundle::open(&self.shop.path(name)).unwrap()
    }

    fn install(&self, name: &str, typed: &[&PublicKey], options: AdmissionOptions) -> Result<Admission> {
        let mut bundle = self.open(name);
        let typed = TrustSet::new(typed.iter().map(|key| (*key).clone()));
        let authenticity = self.site.admit(&bundle, &typed, options)?.authenticity;
        let unpack = UnpackOptions { authenticity, deep: false, drive: Drive::default() };
        let name = self.site.unpack(&mut bundle, &unpack)?.name;
        self.site.activate_admitted(&name, &bundle, &typed, options)
    }

    #[track_caller]
    fn refused(&self, name: &str, typed: &[&PublicKey], words: &str) {
        let before = (self.site.current().unwrap(), self.site.pinned_keys().unwrap());
        let error = self.install(name, typed, AdmissionOptions::default()).unwrap_err();
        assert!(matches!(error, Error::NotTrusted { .. } | Error::OlderRelease { .. }), "{error}");
        assert!(error.to_string().contains(words) && error.hint().is_some(), "{error}");
        assert_eq!((self.site.current().unwrap(), self.site.pinned_keys().unwrap()), before, "nothing has changed");
    }

    fn trusted(&self) -> Vec<PublicKey> {
        self.site.pinned_keys().unwrap().unwrap().trusted
    }
}

fn plain(version: &str, epoch: u64) -> Made<'_> {
    (version, epoch, &[], &[])
}

#[test]
fn first_verified_installation_pins_its_keys_and_later_ones_need_them() {
    let it = Publisher::new();
    let (own, other) = (it.key("own"), it.key("other"));
    it.bundle("unsigned.tar", None, plain("1.0.0", 10));
    it.bundle("signed.tar", Some("own"), plain("1.1.0", 11));
    it.bundle("foreign.tar", Some("other"), plain("1.2.0", 12));
    it.bundle("next.tar", Some("own"), plain("1.3.0", 13));

    assert_eq!(it.install("unsigned.tar", &[], AdmissionOptions::default()).unwrap().pinned, None);
    assert!(it.site.pinned_keys().unwrap().is_none());
    it.install("signed.tar", &[&own], AdmissionOptions::default()).unwrap();
    assert_eq!(it.trusted(), std::slice::from_ref(&own));

    // Neither what is typed nor what is not typed widens it.
    it.bundle("unsigned.tar", None, plain("9.0.0", 90));
    for typed in [&[][..], &[&own], &[&other]] {
        it.refused("unsigned.tar", typed, "it is not signed");
        it.refused("foreign.tar", typed, "which is not trusted here");
    }
    // It narrows it: the operator may know that a pinned key is lost.
    it.refused("next.tar", &[&other], "which is pinned here, but --trust names others");
    it.refused("signed.tar", &[&other], "which is pinned here, but --trust names others");
    it.install("next.tar", &[&other, &own], AdmissionOptions::default()).unwrap();
    it.install("next.tar", &[], AdmissionOptions::default()).unwrap();
    assert_eq!(it.site.installed().unwrap().unwrap().sources[0].authenticity, Authenticity::Verified { key: own.id() });

    // With the flag, new keys are pinned.
    it.bundle("foreign.tar", Some("other"), plain("1.4.0", 14));
    it.install("foreign.tar", &[&other], FORGET).unwrap();
    assert_eq!(it.trusted(), [other]);
    it.install("unsigned.tar", &[], FORGET).unwrap();
    assert!(it.site.pinned_keys().unwrap().is_none() && !it.site.root().join(TRUST).exists());
}

#[test]
fn older_releases_are_refused_unless_a_downgrade_is_typed() {
    let it = Publisher::new();
    let own = it.key("own");
    it.bundle("old.tar", Some("own"), plain("3.0.0", 10));
    it.bundle("new.tar", Some("own"), plain("2.0.0", 20));
    it.bundle("same-time.tar", Some("own"), plain("1.9.0", 20));
    it.bundle("unordered.tar", Some("own"), plain("nightly", 20));
    it.bundle("unordered-old.tar", Some("own"), plain("nightly", 15));
    it.install("old.tar", &[&own], AdmissionOptions::default()).unwrap();
    it.install("new.tar", &[], AdmissionOptions::default()).unwrap();
    it.refused("old.tar", &[&own], "version 3.0.0 of 1970-01-01, which is older");
    it.refused("same-time.tar", &[], "version 1.9.0");
    // A rollback does not make an older release acceptable, but what is in use can be repaired.
    it.site.rollback().unwrap();
    it.install("old.tar", &[], AdmissionOptions::default()).unwrap();
    it.refused("same-time.tar", &[], "version 1.9.0");
    it.install("unordered.tar", &[], AdmissionOptions::default()).unwrap();

    it.install("old.tar", &[], DOWNGRADE).unwrap();
    it.install("same-time.tar", &[], AdmissionOptions::default()).unwrap();
    // Also of what is in use already.
    it.site.rollback().unwrap();
    it.refused("unordered-old.tar", &[], "version nightly of 1970-01-01, which is older");
    it.install("old.tar", &[], DOWNGRADE).unwrap();
    it.install("unordered-old.tar", &[], AdmissionOptions::default()).unwrap();
}

#[test]
fn a_trusted_key_introduces_the_next_one_and_revokes_itself() {
    let it = Publisher::new();
    let (first, second, third) = (it.key("first"), it.key("second"), it.key("third"));
    it.bundle("1.tar", Some("first"), plain("1.0.0", 1));
    it.install("1.tar", &[&first], AdmissionOptions::default()).unwrap();
    // A key cannot introduce itself.
    it.bundle("evil.tar", Some("third"), ("2.0.0", 2, &[&third], &[&first]));
    it.refused("evil.tar", &[&third], "which is not trusted here");

    it.bundle("2.tar", Some("first"), ("2.0.0", 2, &[&second], &[]));
    it.install("2.tar", &[], AdmissionOptions::default()).unwrap();
    assert_eq!(it.trusted(), [first.clone(), second.clone()]);
    it.bundle("3.tar", Some("first"), ("3.0.0", 3, &[], &[&first]));
    it.install("3.tar", &[], AdmissionOptions::default()).unwrap();
    assert_eq!(it.trusted(), std::slice::from_ref(&second));
    // An interrupted installation is repeatable, although its own signer is revoked.
    it.install("3.tar", &[], AdmissionOptions::default()).unwrap();
    it.bundle("4.tar", Some("first"), plain("4.0.0", 4));
    it.refused("4.tar", &[&first], "which is revoked here");
    // What is revoked stays revoked.
    it.bundle("5.tar", Some("second"), ("5.0.0", 5, &[&first, &third], &[]));
    it.install("5.tar", &[], AdmissionOptions::default()).unwrap();
    assert_eq!(it.trusted(), [second.clone(), third.clone()]);
    it.bundle("6.tar", Some("second"), ("6.0.0", 6, &[], &[&second, &third]));
    it.refused("6.tar", &[], "it revokes every key that is trusted here");
}

#[test]
fn updates_carry_the_keys_of_their_target_and_repeat_without_a_downgrade() {
    let it = Publisher::new();
    let (first, second) = (it.key("first"), it.key("second"));
    it.bundle("1.tar", Some("first"), plain("1.0.0", 1));
    it.bundle("2.tar", Some("first"), ("2.0.0", 2, &[&second], &[&first]));
    it.bundle("3.tar", Some("second"), plain("3.0.0", 3));
    let step = |from: &str, to: &str, out: &str, signer: &str| {
        let base = Contents::of(it.open(from).manifest()).unwrap();
        let out = it.shop.path(out);
        make_delta(Some(&base), &Target::Bundle(&it.open(to)), &Scope::Everything, &out, &Drive::default()).unwrap();
        sign(&out, &SecretKey::read(&it.shop.path(&format!("{signer}.key")), None).unwrap()).unwrap();
    };
    step("1.tar", "2.tar", "1-2.tar", "first");
    step("2.tar", "3.tar", "2-3.tar", "second");
    it.install("1.tar", &[&first], AdmissionOptions::default()).unwrap();
    let apply = |name: &str| {
        let (mut bundle, none, options) = (it.open(name), TrustSet::default(), AdmissionOptions::default());
        let authenticity = it.site.admit(&bundle, &none, options)?.authenticity;
        let unpack = UnpackOptions { authenticity, deep: false, drive: Drive::default() };
        let applied = it.site.apply(&mut bundle, &unpack)?;
        it.site.activate_admitted(&applied.name, &bundle, &none, options)?;
        Ok::<_, Error>(applied.unchanged)
    };
    assert!(!apply("1-2.tar").unwrap());
    assert_eq!(it.trusted(), [second]);
    assert!(!apply("2-3.tar").unwrap());
    assert!(apply("2-3.tar").unwrap(), "a second time changes nothing");
    assert_eq!(it.site.installed().unwrap().unwrap().version, "3.0.0");
    // The base of the updates is no less old for that, and its key no less revoked.
    it.refused("1.tar", &[], "which is revoked here");
    it.bundle("2-again.tar", Some("second"), plain("2.0.0", 2));
    it.refused("2-again.tar", &[], "version 2.0.0 of 1970-01-01, which is older");
}

#[test]
fn a_site_that_was_verified_before_keys_were_pinned_needs_a_key() {
    let it = Publisher::new();
    let own = it.key("own");
    it.bundle("1.tar", Some("own"), plain("1.0.0", 1));
    it.bundle("2.tar", None, plain("2.0.0", 2));
    it.install("1.tar", &[&own], AdmissionOptions::default()).unwrap();
    std::fs::remove_file(it.site.root().join(TRUST)).unwrap();
    it.refused("2.tar", &[], "what is installed here was verified");
    it.refused("1.tar", &[], "what is installed here was verified");
    it.install("1.tar", &[&own], AdmissionOptions::default()).unwrap();
    assert_eq!(it.trusted(), [own]);
}

#[test]
fn a_damaged_record_of_keys_accepts_nothing() {
    let it = Publisher::new();
    let own = it.key("own");
    it.bundle("1.tar", Some("own"), plain("1.0.0", 1));
    it.install("1.tar", &[&own], AdmissionOptions::default()).unwrap();
    let path = it.site.root().join(TRUST);
    let text = std::fs::read_to_string(&path).unwrap();
    let keyless =
        text.find("\"revoked\"").map(|end| format!("{{\"format\":1,\"trusted\":[],{}", &text[end..])).unwrap();
    for damaged in ["", "{}", &keyless, &text.replace("\"format\": 1", "\"format\": 2"), &text.replace("RW", "XX")] {
        std::fs::write(&path, damaged).unwrap();
        let error = it.install("1.tar", &[&own], AdmissionOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::Altered { path: named, .. } if *named == path), "{damaged}: {error}");
        assert!(error.hint().unwrap().contains("--forget-trust"));
    }
    it.install("1.tar", &[&own], FORGET).unwrap();
    assert_eq!(it.trusted(), [own]);
}

#[test]
fn a_root_whose_keys_other_users_can_replace_is_refused() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let it = Publisher::new();
    let own = it.key("own");
    it.bundle("1.tar", Some("own"), plain("1.0.0", 1));
    it.install("1.tar", &[&own], AdmissionOptions::default()).unwrap();
    let (root, record) = (it.site.root().to_owned(), it.site.root().join(TRUST));
    let mode =
        |path: &camino::Utf8Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let exposed = |path: &camino::Utf8Path, options: AdmissionOptions| {
        let error = it.install("1.tar", &[&own], options).unwrap_err();
        assert!(matches!(&error, Error::Exposed(exposed) if exposed.path == path.as_std_path()), "{error}");
        assert!(error.hint().unwrap().contains(path.as_str()));
    };
    for open in [0o666, 0o664] {
        mode(&record, open);
        exposed(&record, AdmissionOptions::default());
    }
    mode(&record, 0o644);
    for open in [0o777, 0o775, 0o1777] {
        mode(&root, open);
        exposed(&root, AdmissionOptions::default());
        exposed(&root, FORGET);
        assert!(matches!(it.site.rollback(), Err(Error::Exposed(_))), "what it leads to would be run");
    }
    mode(&root, 0o755);
    // Who can rename the root can put another one in its place.
    let above = root.parent().unwrap().to_owned();
    mode(&above, 0o777);
    let error = it.install("1.tar", &[&own], FORGET).unwrap_err();
    assert!(
        matches!(&error, Error::Exposed(exposed) if above.as_std_path().canonicalize().unwrap() == exposed.path),
        "{error}"
    );
    mode(&above, 0o755);
    it.install("1.tar", &[], AdmissionOptions::default()).unwrap();
    // Only root can give a file away.
    if chown(&record, Some(65534), None).is_ok() {
        exposed(&record, AdmissionOptions::default());
        chown(&record, Some(0), None).unwrap();
        chown(&root, Some(65534), None).unwrap();
        exposed(&root, AdmissionOptions::default());
        chown(&root, Some(0), None).unwrap();
    }
    std::fs::rename(&record, root.join("elsewhere")).unwrap();
    symlink("elsewhere", &record).unwrap();
    assert!(matches!(it.site.pinned_keys().unwrap_err(), Error::Io { .. }), "links are not followed");
}

#[test]
fn manifests_with_malformed_key_changes_are_refused() {
    let it = Publisher::new();
    let (a, b) = (it.key("a"), it.key("b"));
    let text = |change: KeyChange| {
        let mut manifest = it.shop.pack("x.tar", &it.shop.inputs()).manifest;
        manifest.keys = Some(change);
        String::from_utf8(manifest.to_bytes().unwrap()).unwrap()
    };
    let change = |introduces: &[&PublicKey], revokes: &[&PublicKey]| {
        let keys = |keys: &[&PublicKey]| keys.iter().map(|key| (*key).clone()).collect();
        KeyChange { introduces: keys(introduces), revokes: keys(revokes) }
    };
    let (low, high) = if a.to_base64() < b.to_base64() { (&a, &b) } else { (&b, &a) };
    let good = text(change(&[low], &[high]));
    assert!(Manifest::parse(good.as_bytes()).is_ok());
    for (bad, words) in [
        (text(change(&[], &[])), "it changes 0 keys"),
        (text(change(&[high, low], &[])), "the introduced keys are not sorted"),
        (text(change(&[], &[low, low])), "the revoked keys are not sorted or not unique"),
        (text(change(&[low], &[low])), "is both introduced and revoked"),
        (good.replace(&low.to_base64(), "RWnonsense"), "not a minisign public key"),
        (good.replace(&low.to_base64(), &format!(" {}", low.to_base64())), "canonical"),
    ] {
        let error = Manifest::parse(bad.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words), "expected `{words}`, it said: {error}");
    }
}
