//! A model in a bucket: a folder that `model push` or another program wrote, or one .gguf file.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{BackoffConfig, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig};
use reqwest::{StatusCode, Url};
use textnlp_buckets::{BucketOptions, Connector, Route, Scheme};
use textnlp_net::error_chain;
use textnlp_net::retry::Transient;
use textnlp_net::trust::TrustRoots;

use crate::attempts::Attempts;
use crate::download::{Body, Check, Opened, Origin, Placed, Wanted, download, remaining};
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::{MANIFEST, Manifest};
use crate::options::{FetchOptions, Limits};
use crate::progress::{Event, Progress, Pulled};
use crate::select::choose;
use crate::source::BucketSource;
use crate::store::Assembly;
use crate::transport::Fault;

/// The most objects of a folder that are looked at.
const MOST_OBJECTS: usize = 10_000;
/// The largest manifest.
const MANIFEST_MOST: u64 = 4 << 20;
/// The timeout of a request that uploads a part: 16 MiB at 150 kbit/s.
const UPLOAD: Duration = Duration::from_secs(900);
/// The longest time in which a request is repeated.
const REPEATED: Duration = Duration::from_secs(3600);
/// The most characters of a service's answer that are shown.
const SHOWN: usize = 300;

/// An open bucket.
pub(crate) struct Bucket {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) limits: Limits,
    scheme: Scheme,
}

impl Bucket {
    /// Opens the bucket to read from it. Requests are not repeated here, but by the transfers.
    pub(crate) fn open(source: &BucketSource, options: &FetchOptions) -> Result<Bucket> {
        Bucket::with(source, options, 0)
    }

    /// Opens the bucket; `retries` of each request.
    pub(crate) fn with(source: &BucketSource, options: &FetchOptions, retries: usize) -> Result<Bucket> {
        let setting = |why: String| Error::Setting { what: source.to_string(), why };
        // Requests carry signatures or tokens, and those for them carry secrets: they take the way of the credentials' owner.
        let (proxy, ca_file) = match &options.token_route {
            Some((proxy, ca_file)) => (proxy, ca_file.as_deref()),
            None => (&options.proxy, options.ca_file.as_deref()),
        };
        let trust = TrustRoots::public_and(ca_file)?;
        let mut limits = options.limits.clone();
        if retries > 0 {
            limits.attempts = 1;
        }
        let connector = Connector {
            own: Route { trust, proxy: proxy.clone() },
            of_host: None,
            // The silence of an upload lasts as long as it, so that it has a limit as a whole.
            timeout: (retries > 0).then_some(UPLOAD),
            idle_timeout: (retries == 0).then_some(limits.idle),
        };
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: retries, retry_timeout: REPEATED };
        let endpoint = options.variables.endpoint(source.scheme()).map_err(setting)?;
        let opened = BucketOptions { endpoint, region: None, connector, retry };
        let store = textnlp_buckets::open(source.scheme(), source.bucket(), &options.variables, opened)
            .map_err(|error| setting(error_chain(&error)))?;
        Ok(Bucket { store, limits, scheme: source.scheme() })
    }

    /// Asks for the bytes of a file from `offset` on; `tag` is the version that the partial file is of.
    pub(crate) async fn ask(&self, wanted: &Wanted, tag: Option<&str>, offset: u64) -> Result<Placed, Fault> {
        if offset > 0 && wanted.bytes == Some(offset) {
            return Ok(Placed::Whole);
        }
        let what = wanted.url.as_str();
        let path = path_of(&wanted.url).map_err(Fault::Fatal)?;
        let options = GetOptions {
            if_match: tag.map(str::to_owned),
            range: (offset > 0).then_some(GetRange::Offset(offset)),
            ..GetOptions::default()
        };
        match self.store.get_opts(&path, options).await {
            Ok(found) if found.range.start != offset => Ok(Placed::Elsewhere),
            Ok(found) => {
                let (total, etag) = (Some(found.meta.size), found.meta.e_tag.clone());
                Ok(Placed::Go(Opened { from: offset, total, etag, body: Body::Bucket(found.into_stream()) }))
            }
            Err(object_store::Error::Precondition { .. }) => Ok(Placed::Elsewhere),
            Err(error) => Err(self.fault(what, error)),
        }
    }

    /// A small object; `None` if there is none.
    pub(crate) async fn small(&self, what: &str, path: &Path, progress: &Progress<'_>) -> Result<Option<Vec<u8>>> {
        self.repeated(what, progress, || async {
            let found = match self.store.get(path).await {
                Ok(found) => found,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(self.fault(what, error)),
            };
            if found.meta.size > MANIFEST_MOST {
                let why = format!("it has {} bytes", found.meta.size);
                return Err(Fault::Fatal(unusable(what, why, "remove it, and push the model again")));
            }
            let bytes = found.bytes().await.map_err(|error| self.fault(what, error))?;
            Ok(Some(bytes.to_vec()))
        })
        .await
    }

    /// The objects below a folder: their names below it, and their sizes.
    pub(crate) async fn list(&self, folder: &BucketSource, progress: &Progress<'_>) -> Result<Vec<(String, u64)>> {
        let what = folder.to_string();
        let prefix = Path::from(folder.path());
        self.repeated(&what, progress, || async {
            let listed = self.store.list(Some(&prefix)).take(MOST_OBJECTS + 1).try_collect::<Vec<_>>();
            let listed = listed.await.map_err(|error| self.fault(&what, error))?;
            if listed.len() > MOST_OBJECTS {
                let why = format!("it has more than {MOST_OBJECTS} objects");
                return Err(Fault::Fatal(unusable(&what, why, "name the folder of one model")));
            }
            let below = |path: &Path| Some(path.as_ref().strip_prefix(folder.path())?.to_owned());
            Ok(listed.iter().filter_map(|one| Some((below(&one.location)?, one.size))).collect())
        })
        .await
    }

    async fn repeated<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        what: &str,
        progress: &Progress<'_>,
        mut one: impl FnMut() -> F,
    ) -> Result<T> {
        let mut attempts = Attempts::new(&self.limits);
        let mut count = 0;
        loop {
            count += 1;
            let failure = match one().await {
                Ok(found) => return Ok(found),
                Err(Fault::Again(failure)) => failure,
                Err(fault) => return Err(failed(what, fault)),
            };
            let why = failure.reason.clone();
            let paused = attempts.pause(what, failure, false, progress).await;
            paused.map_err(|_| Error::Network { what: what.to_owned(), attempts: count, why })?;
        }
    }

    /// What a failure means.
    fn fault(&self, what: &str, error: object_store::Error) -> Fault {
        let text = error_chain(&error);
        let shown = shown(&text);
        let hint = match self.scheme {
            Scheme::S3 => {
                "give credentials that may read it: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (`aws configure export-credentials --format env` prints them), and AWS_REGION; without the right to list, S3 also denies what does not exist"
            }
            Scheme::Gs => {
                "give credentials that may read it: GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`"
            }
            Scheme::Az => {
                "give AZURE_STORAGE_ACCOUNT_NAME, and credentials that may read it: AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or AZURE_USE_AZURE_CLI=true"
            }
        };
        let denied = |why: String| Fault::Fatal(Error::Denied { what: what.to_owned(), why, hint: hint.to_owned() });
        match error {
            object_store::Error::NotFound { .. } => {
                Fault::Refused { status: StatusCode::NOT_FOUND, code: None, message: None }
            }
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => denied(shown),
            // A new identity is known everywhere after minutes.
            object_store::Error::Generic { .. } if is_of_credentials(&text) => {
                Fault::Again(Transient::connection(shown))
            }
            // The crate has no error of its own for a list that is denied.
            object_store::Error::Generic { .. } if matches!(status(&text), Some("401" | "403")) => denied(shown),
            object_store::Error::Generic { .. } if is_refusal(&text) => {
                let hint = match self.scheme {
                    Scheme::S3 => "check the name of the bucket, and that AWS_REGION is its region",
                    Scheme::Gs | Scheme::Az => "check the name of the bucket and of the account",
                };
                Fault::Fatal(unusable(what, shown, hint))
            }
            _ => Fault::Again(Transient::connection(shown)),
        }
    }
}

/// A text of the crate without the address, which is named already, and of an answer in XML only its message.
fn shown(text: &str) -> String {
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
    };
    let text = match (text.split_once("status code: "), tag("Message").or_else(|| tag("Code"))) {
        (Some((_, status)), Some(message)) => {
            let status = status.split_once(':').map_or(status, |(status, _)| status);
            format!("{status}: {message}")
        }
        (Some((_, status)), None) => status.to_owned(),
        (None, _) => text.to_owned(),
    };
    text.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

/// Whether a text of the crate is that of an answer that another attempt would get again.
fn is_refusal(text: &str) -> bool {
    let is_client = |status: &str| status.starts_with('4') && status != "408" && status != "429";
    status(text).is_some_and(is_client) || text.contains("redirect without LOCATION")
}

/// The status of an answer in a text of the crate.
fn status(text: &str) -> Option<&str> {
    text.split_once("status code: ").and_then(|(_, rest)| rest.get(..3))
}

/// Whether a text of the crate is about a request for credentials, and not for the bucket.
fn is_of_credentials(text: &str) -> bool {
    ["/v1/credentials", "/oauth2/", "/computeMetadata/", "/latest/", "//sts."].iter().any(|part| text.contains(part))
}

/// Brings the file or folder into the assembly.
pub(crate) async fn pull(
    bucket: &Bucket,
    assembly: &Assembly<'_>,
    source: &BucketSource,
    progress: &Progress<'_>,
) -> Result<Pulled> {
    let what = source.to_string();
    progress(Event::Resolving { what: what.clone() });
    let (wanted, manifest) = match source.is_folder() {
        true => folder(bucket, source, progress).await?,
        false => (vec![file(bucket, source, progress).await?], None),
    };
    // Refuse before the first byte, not at the last file.
    assembly.make_room(&what, wanted.iter().map(|file| remaining(assembly, file)).sum())?;
    let mut files = Vec::new();
    for file in &wanted {
        let found = download(Origin::Bucket(bucket), assembly, file, progress).await?;
        files.push(found.map_err(|fault| failed(file.url.as_str(), fault))?);
    }
    let (revision, license) = manifest.map_or((None, None), |manifest| (manifest.revision, manifest.license));
    Ok(Pulled { files, revision, license })
}

/// The files of a folder: those of its manifest, else those that a model of its kind has.
async fn folder(
    bucket: &Bucket,
    source: &BucketSource,
    progress: &Progress<'_>,
) -> Result<(Vec<Wanted>, Option<Manifest>)> {
    let what = source.to_string();
    let listed = bucket.list(source, progress).await?;
    if listed.is_empty() {
        return Err(missing(&what));
    }
    if listed.iter().any(|(name, _)| name == MANIFEST) {
        let at = format!("{what}{MANIFEST}");
        let text = bucket.small(&at, &Path::from(format!("{}{MANIFEST}", source.path())), progress).await?;
        let text = text.ok_or_else(|| missing(&at))?;
        let manifest = Manifest::parse(at.as_str().into(), &text)?;
        let wanted = manifest.files.iter().map(|file| {
            let (bytes, check) = (Some(file.bytes), Check::Sha256(file.digest));
            Ok(Wanted { name: file.name.clone(), url: address(source, &file.name)?, bytes, check })
        });
        return Ok((wanted.collect::<Result<_>>()?, Some(manifest)));
    }
    let names: Vec<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    let wanted = choose(&what, None, &names)?.into_iter().map(|name| {
        let bytes = listed.iter().find(|(listed, _)| listed == name).map(|(_, bytes)| *bytes);
        Ok(Wanted { name: local::stored_name(name), url: address(source, name)?, bytes, check: Check::Nothing })
    });
    Ok((wanted.collect::<Result<_>>()?, None))
}

/// The one file that a source names.
async fn file(bucket: &Bucket, source: &BucketSource, progress: &Progress<'_>) -> Result<Wanted> {
    let name = source.path().rsplit('/').next().unwrap_or_default();
    if !local::safe_name(name) {
        let why = format!("`{name}` is not a file name");
        return Err(unusable(&source.to_string(), why, "give a .gguf file"));
    }
    let (what, url) = (source.to_string(), address(source, "")?);
    let path = path_of(&url)?;
    let found = bucket.repeated(&what, progress, || async {
        bucket.store.head(&path).await.map_err(|error| bucket.fault(&what, error))
    });
    let bytes = Some(found.await?.size);
    Ok(Wanted { name: name.to_owned(), url, bytes, check: Check::Nothing })
}

/// The address of a file below a source. Only this program reads it.
fn address(source: &BucketSource, name: &str) -> Result<Url> {
    let what = format!("{source}{name}");
    if name.contains(['#', '?', '%']) {
        return Err(unusable(&what, "its name has characters of addresses", "give it another name"));
    }
    what.parse().map_err(|error| unusable(&what, format!("it has no address ({error})"), "give it another name"))
}

/// The object at an address.
fn path_of(url: &Url) -> Result<Path> {
    let why = |error: object_store::path::Error| unusable(url.as_str(), error_chain(&error), "give it another name");
    Path::from_url_path(url.path()).map_err(why)
}

fn failed(what: &str, fault: Fault) -> Error {
    match fault {
        Fault::Fatal(error) => error,
        Fault::Refused { .. } => missing(what),
        Fault::Again(failure) => Error::Network { what: what.to_owned(), attempts: 1, why: failure.reason },
    }
}

fn missing(what: &str) -> Error {
    Error::NotFound {
        what: what.to_owned(),
        why: "the bucket has nothing there".to_owned(),
        hint: "check the path; `textnlp-deploy model push SOURCE BUCKET` puts a model there and prints its path"
            .to_owned(),
    }
}

fn unusable(what: &str, why: impl Into<String>, hint: &str) -> Error {
    Error::Unusable { what: what.to_owned(), why: why.into(), hint: hint.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_do_not_change_are_refusals() {
        for (text, expected) in [
            ("Server returned non-2xx status code: 400 Bad Request: wrong region", true),
            ("Server returned non-2xx status code: 503 Slow Down", false),
            ("Server returned non-2xx status code: 429 Too Many Requests", false),
            ("Received redirect without LOCATION, this normally indicates an incorrectly configured region", true),
            ("error sending request", false),
        ] {
            assert_eq!(is_refusal(text), expected, "{text}");
        }
        assert_eq!(status("Server returned non-2xx status code: 403 Forbidden: <Error/>"), Some("403"));
        assert_eq!(status("error sending request"), None);
        let new =
            "POST https://login.microsoftonline.com/t/oauth2/v2.0/token - status code: 400 Bad Request: AADSTS70021";
        assert!(is_of_credentials(new) && !is_of_credentials("GET https://s3.eu-west-1.amazonaws.com/models/x"));
    }

    #[test]
    fn answers_are_shown_by_their_message() {
        let text = "Generic S3 error: Error performing GET http://x/b?list-type=2 in 20ms - Server returned non-2xx status code: \
                    404 Not Found: <?xml version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code><Message>The bucket does not exist</Message></Error>";
        assert_eq!(shown(text), "404 Not Found: The bucket does not exist");
        assert_eq!(shown("error sending request"), "error sending request");
        assert_eq!(shown("status code: 400 Bad Request: AADSTS70021"), "400 Bad Request: AADSTS70021");
    }
}
