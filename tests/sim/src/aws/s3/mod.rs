//! Simple Storage Service: buckets, their settings, and objects with versions. Ranges, lists by delimiter and uploads in
//! parts are not simulated.

mod objects;
mod settings;

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{Behaviour, Call, Fault, Quota, Scope, Service, Source, World, later};

pub use objects::{content, insert};

/// The service.
pub const SERVICE: Service = Service {
    name: "s3",
    model: "s3",
    operations: &[
        ("CreateBucket", create),
        ("DeleteBucket", delete),
        ("DeleteBucketLifecycle", settings::delete_lifecycle),
        ("DeleteBucketPolicy", settings::delete_policy),
        ("DeleteBucketReplication", settings::delete_replication),
        ("DeleteObject", objects::delete),
        ("DeleteObjects", objects::delete_many),
        ("GetBucketEncryption", settings::get_encryption),
        ("GetBucketLifecycleConfiguration", settings::get_lifecycle),
        ("GetBucketOwnershipControls", settings::get_ownership),
        ("GetBucketPolicy", settings::get_policy),
        ("GetBucketReplication", settings::get_replication),
        ("GetBucketTagging", settings::get_tagging),
        ("GetBucketVersioning", settings::get_versioning),
        ("GetObject", objects::get),
        ("GetPublicAccessBlock", settings::get_public_access),
        ("HeadBucket", head),
        ("ListObjectVersions", objects::list_versions),
        ("ListObjectsV2", objects::list),
        ("PutBucketEncryption", settings::put_encryption),
        ("PutBucketLifecycleConfiguration", settings::put_lifecycle),
        ("PutBucketOwnershipControls", settings::put_ownership),
        ("PutBucketPolicy", settings::put_policy),
        ("PutBucketReplication", settings::put_replication),
        ("PutBucketTagging", settings::put_tagging),
        ("PutBucketVersioning", settings::put_versioning),
        ("PutObject", objects::put),
        ("PutPublicAccessBlock", settings::put_public_access),
    ],
    quotas: &[BUCKETS],
    ledger: LEDGER,
};

/// Buckets of an account.
const BUCKETS: Quota =
    Quota { service: "s3", code: "L-DC2B2D3D", name: "General purpose buckets", value: 10_000.0, adjustable: true };

const ERRORS: Source = Source::Documentation("https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html");

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "s3",
        what: "names have 3 to 63 characters of a-z, 0-9, dots and hyphens, are no address, and have no reserved start or end",
        source: Source::Documentation("https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html"),
    },
    Behaviour {
        service: "s3",
        what: "a name is taken in all accounts: BucketAlreadyExists; by the account itself: BucketAlreadyOwnedByYou, and in \
               us-east-1 success",
        source: Source::Documentation("https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html"),
    },
    Behaviour {
        service: "s3",
        what: "the name of a deleted bucket may stay taken for an hour: OperationAborted",
        source: Source::Report("aws/aws-cli#2593"),
    },
    Behaviour {
        service: "s3",
        what: "a bucket with objects, versions or delete markers is not deleted: BucketNotEmpty",
        source: ERRORS,
    },
    Behaviour {
        service: "s3",
        what: "a request to another region than the bucket's is redirected, and one that expects another owner is denied",
        source: ERRORS,
    },
    Behaviour {
        service: "s3",
        what: "new buckets enforce their owner, block public access, and encrypt with keys of S3",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonS3/latest/userguide/default-bucket-encryption.html",
        ),
    },
    Behaviour {
        service: "s3",
        what: "settings of buckets are eventually consistent",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html#ConsistencyModel",
        ),
    },
    Behaviour {
        service: "s3",
        what: "a changed setting is read some seconds later",
        source: Source::LeftOut("a wait of the simulator, which the row before allows"),
    },
    Behaviour {
        service: "s3",
        what: "replication needs versions in both buckets, and versions are not suspended while there is replication",
        source: Source::Documentation("https://docs.aws.amazon.com/AmazonS3/latest/userguide/replication.html"),
    },
    Behaviour {
        service: "s3",
        what: "new objects are copied after 15 seconds",
        source: Source::LeftOut("a wait of the simulator: callers poll until the state is there"),
    },
    Behaviour {
        service: "s3",
        what: "objects that a key of KMS encrypts are copied only if the rule selects them",
        source: Source::Documentation("https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketReplication.html"),
    },
    Behaviour {
        service: "s3",
        what: "a policy is shown with its lists in another order, and with one text in place of a list of one",
        source: Source::Report("hashicorp/terraform#2432"),
    },
    Behaviour {
        service: "s3",
        what: "a policy that admits everybody is refused while public access is blocked",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-control-block-public-access.html",
        ),
    },
    Behaviour {
        service: "s3",
        what: "lifecycle rules need an action, unique ids, and 30 days before STANDARD_IA and ONEZONE_IA",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonS3/latest/userguide/lifecycle-transition-general-considerations.html",
        ),
    },
    Behaviour {
        service: "s3",
        what: "writes with If-None-Match: * and If-Match are refused with PreconditionFailed where an object differs",
        source: Source::Documentation("https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html"),
    },
    Behaviour {
        service: "s3",
        what: "lists have at most 1,000 keys in their order, and a token for those that follow",
        source: Source::Documentation("https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html"),
    },
    Behaviour {
        service: "s3",
        what: "objects cannot be written or read with a key that is disabled or waits for its deletion",
        source: Source::Documentation("https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html"),
    },
];

/// All buckets of all accounts: their names are unique.
#[derive(Default)]
pub struct S3 {
    /// The buckets by their names.
    pub buckets: BTreeMap<String, Bucket>,
    /// Whether the names of buckets that are deleted from now on stay taken for an hour.
    pub keeps_names: bool,
    /// Until when the names of deleted buckets are taken.
    taken: BTreeMap<String, Timestamp>,
}

/// A bucket.
pub struct Bucket {
    /// The account that owns it.
    pub account: String,
    /// Its region.
    pub region: String,
    /// Its objects by their keys, each with its versions, the newest first.
    pub objects: BTreeMap<String, Vec<Version>>,
    settings: BTreeMap<&'static str, Setting>,
}

/// A version of an object, or a mark that it was deleted.
#[derive(Clone)]
pub struct Version {
    /// Its id; `null` where the bucket has no versions.
    pub id: String,
    /// The content; `None` for a mark.
    pub content: Option<Bytes>,
    /// Its entity tag.
    pub etag: String,
    modified: Timestamp,
}

/// A setting, and what reads show until it is seen everywhere.
struct Setting {
    value: Option<Value>,
    before: Option<Value>,
    visible: Timestamp,
}

impl Bucket {
    /// What is in force.
    fn setting(&self, name: &str) -> Option<&Value> {
        self.settings.get(name)?.value.as_ref()
    }

    /// What reads show.
    fn shown(&self, name: &str, now: Timestamp) -> Option<&Value> {
        let setting = self.settings.get(name)?;
        if setting.visible <= now { setting.value.as_ref() } else { setting.before.as_ref() }
    }

    fn set(&mut self, name: &'static str, value: Option<Value>, call: &Call) {
        let before = self.shown(name, call.now).cloned();
        self.settings.insert(name, Setting { value, before, visible: call.visible() });
    }

    fn is_versioned(&self) -> bool {
        self.setting("versioning").is_some_and(|one| one["Status"] == "Enabled")
    }
}

/// Names are the same in all accounts and regions.
fn everywhere() -> Scope {
    Scope::new("", "")
}

/// A bucket by its name.
#[must_use]
pub fn bucket<'a>(world: &'a World, name: &str) -> Option<&'a Bucket> {
    world.find::<S3>(&everywhere())?.buckets.get(name)
}

fn arn(name: &str) -> String {
    format!("arn:aws:s3:::{name}")
}

/// The bucket of the input, if the caller owns it and asks in its region.
fn find<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Bucket, Fault> {
    let name = call.text("Bucket");
    let bucket = world.state::<S3>(&everywhere()).buckets.get_mut(name);
    let bucket = bucket.ok_or_else(|| Fault::new("NoSuchBucket", "The specified bucket does not exist"))?;
    let is_expected = call.str("ExpectedBucketOwner").is_none_or(|owner| owner == bucket.account);
    if bucket.account != call.account || !is_expected {
        return Err(Fault::new("AccessDenied", "Access Denied").status(403));
    }
    if bucket.region != call.region {
        let message = "The bucket you are attempting to access must be addressed using the specified endpoint.";
        return Err(Fault::new("PermanentRedirect", message).status(301));
    }
    Ok(bucket)
}

fn is_name(name: &str) -> bool {
    let is_alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let is_address = name.split('.').count() == 4 && name.split('.').all(|part| part.parse::<u8>().is_ok());
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'.' || *b == b'-')
        && is_alphanumeric(bytes.first())
        && is_alphanumeric(bytes.last())
        && !name.contains("..")
        && !is_address
        && !["xn--", "sthree-", "amzn-s3-demo-"].iter().any(|start| name.starts_with(start))
        && !["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"].iter().any(|end| name.ends_with(end))
}

fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("Bucket");
    if !is_name(name) {
        return Err(Fault::new("InvalidBucketName", "The specified bucket is not valid.").status(400));
    }
    let configuration = &call.input["CreateBucketConfiguration"];
    let constraint = configuration["LocationConstraint"].as_str();
    if constraint.unwrap_or("us-east-1") != call.region {
        let message = format!(
            "The {} location constraint is incompatible for the region specific endpoint this request was sent to.",
            constraint.unwrap_or("unspecified")
        );
        return Err(Fault::new("IllegalLocationConstraintException", message).status(400));
    }
    let tags = settings::pairs(configuration["Tags"].as_array().map_or(&[], Vec::as_slice))?;
    let location = json!({ "Location": format!("/{name}"), "BucketArn": arn(name) });
    let limit = world.quotas.of(&Scope::global(&call.account), &BUCKETS);
    let S3 { buckets, taken, .. } = world.state::<S3>(&everywhere());
    if taken.get(name).is_some_and(|until| call.now < *until) {
        let message =
            "A conflicting conditional operation is currently in progress against this resource. Please try again.";
        return Err(Fault::new("OperationAborted", message).status(409));
    }
    match buckets.get(name) {
        Some(taken) if taken.account != call.account => {
            let message = "The requested bucket name is not available. The bucket namespace is shared by all users of the \
                           system. Please select a different name and try again.";
            return Err(Fault::new("BucketAlreadyExists", message));
        }
        Some(own) if own.region == "us-east-1" && call.region == "us-east-1" => return Ok(location),
        Some(_) => {
            let message = "Your previous request to create the named bucket succeeded and you already own it.";
            return Err(Fault::new("BucketAlreadyOwnedByYou", message));
        }
        None => {}
    }
    if buckets.values().filter(|bucket| bucket.account == call.account).count() as f64 >= limit {
        let message = "You have attempted to create more buckets than allowed";
        return Err(Fault::new("TooManyBuckets", message).status(400));
    }
    let ownership = call.str("ObjectOwnership").unwrap_or("BucketOwnerEnforced");
    let at_first = [
        (
            "encryption",
            json!({ "Rules": [{
            "ApplyServerSideEncryptionByDefault": { "SSEAlgorithm": "AES256" },
            "BucketKeyEnabled": false,
        }] }),
        ),
        ("ownership", json!({ "Rules": [{ "ObjectOwnership": ownership }] })),
        (
            "public_access",
            json!({
                "BlockPublicAcls": true, "IgnorePublicAcls": true, "BlockPublicPolicy": true, "RestrictPublicBuckets": true,
            }),
        ),
    ];
    let setting = |value| Setting { value: Some(value), before: None, visible: call.now };
    let bucket = Bucket {
        account: call.account.clone(),
        region: call.region.clone(),
        objects: BTreeMap::new(),
        settings: at_first.into_iter().map(|(name, value)| (name, setting(value))).collect(),
    };
    buckets.insert(name.to_owned(), bucket);
    world.tags.set(&arn(name), tags, call.visible());
    Ok(location)
}

fn head(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let region = find(world, call)?.region.clone();
    Ok(json!({ "BucketArn": arn(call.text("Bucket")), "BucketRegion": region, "AccessPointAlias": false }))
}

fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    if !find(world, call)?.objects.is_empty() {
        let message = "The bucket you tried to delete is not empty. You must delete all versions in the bucket.";
        return Err(Fault::new("BucketNotEmpty", message).status(409));
    }
    let name = call.text("Bucket");
    let state = world.state::<S3>(&everywhere());
    state.buckets.remove(name);
    if state.keeps_names {
        state.taken.insert(name.to_owned(), later(call.now, std::time::Duration::from_secs(3600)));
    }
    world.tags.forget(&arn(name));
    Ok(json!({}))
}
