//! The text that names where a model comes from.

use std::fmt;
use std::str::FromStr;

use camino::Utf8PathBuf;
use reqwest::Url;
use textnlp_buckets::Scheme;
use textnlp_net::client::is_loopback;

use crate::catalogue::Catalogue;
use crate::digest::Digest;
use crate::error::SourceError;

/// Where a model comes from. Its text form is canonical: parsing what is displayed gives the same source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The model compiled into this program.
    Bundled,
    /// A folder or a `.gguf` file on this machine.
    File(Utf8PathBuf),
    /// A folder or a `.gguf` file on a web server.
    Web(WebSource),
    /// A folder or a `.gguf` file in a bucket.
    Bucket(BucketSource),
    /// A folder or a `.gguf` file in the bucket of the site that serves it, which only the site's provider knows.
    SiteBucket(String),
    /// A repository of a Hugging Face hub.
    Hub(HubSource),
    /// A name of the catalogue.
    Catalogue(String),
}

/// An address on a web server: `https:`, or `http:` on loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSource {
    url: Url,
    digest: Option<Digest>,
}

/// An address in a bucket: `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `az://CONTAINER/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketSource {
    scheme: Scheme,
    bucket: String,
    /// Ends with `/`, unless it names a file. Empty for the whole bucket.
    path: String,
}

/// A repository of a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSource {
    repo: String,
    revision: Option<String>,
    file: Option<String>,
}

/// The name of the model of this program in the catalogue, also written `bundled:NAME`.
pub(crate) const BUNDLED: &str = "textnlp-tiny";

const ANY: &str = "`bundled`, `file:PATH`, `https://…`, `s3://…`, `gs://…`, `az://…`, `bucket:path`, `hf:org/name[@revision][/file.gguf]` or a name of the catalogue such as `gpt2`";
const FILE: &str = "`file:PATH`, the path of a folder or of a .gguf file";
const WEB: &str = "`https://host/path/model.gguf` or `https://host/path/` (a folder with config.json), with `#sha256=…` if the digest is known; `http:` only for this machine";
const BUCKET: &str = "`s3://bucket/path`, `gs://bucket/path` or `az://container/path` of a folder or a .gguf file";
const SITE_BUCKET: &str = "`bucket:path` of a folder or a .gguf file in the bucket of the site";
const HUB: &str = "`hf:org/name`, `hf:org/name@revision` or `hf:org/name@revision/file.gguf`";
const NAME: &str = "a name of the catalogue such as `gpt2` or `smollm2-135m-instruct`, or one of `bundled`, `file:PATH`, `https://…`, `s3://…`, `hf:org/name`";

impl SourceError {
    fn new(text: &str, why: impl Into<String>, expected: &'static str) -> SourceError {
        SourceError { text: without_credentials(text).chars().take(200).collect(), why: why.into(), expected }
    }
}

impl Source {
    /// Whether this text is a source that can exist: also refuses names that the catalogue does not have.
    pub fn check(text: &str) -> Result<(), SourceError> {
        let source: Source = text.parse()?;
        source.resolve().map(|_| ())
    }

    /// The source behind a catalogue name; any other source is itself.
    pub fn resolve(&self) -> Result<Source, SourceError> {
        let Source::Catalogue(name) = self else { return Ok(self.clone()) };
        let catalogue = Catalogue::embedded();
        match catalogue.get(name) {
            Some(entry) => Ok(entry.source.clone()),
            None => {
                let near = catalogue.nearest(name).map(|n| format!(" (did you mean `{n}`?)")).unwrap_or_default();
                Err(SourceError::new(name, format!("the catalogue has no model of this name{near}"), NAME))
            }
        }
    }

    /// Whether fetching it may use the network.
    pub fn needs_network(&self) -> bool {
        match self {
            Source::Bundled | Source::File(_) => false,
            Source::Web(_) | Source::Bucket(_) | Source::SiteBucket(_) | Source::Hub(_) => true,
            Source::Catalogue(_) => self.resolve().is_ok_and(|s| s.needs_network()),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let no = |why: &str, expected| Err(SourceError::new(text, why, expected));
        if text.is_empty() {
            return no("it is empty", ANY);
        }
        if text.len() > 4096 || text.chars().any(char::is_control) {
            return no("it is too long or holds control characters", ANY);
        }
        if let Some(name) = text.strip_prefix("bundled") {
            match name {
                "" => return Ok(Source::Bundled),
                name if name.strip_prefix(':') == Some(BUNDLED) => return Ok(Source::Bundled),
                name if name.starts_with(':') => {
                    return no(&format!("this program contains only the model `{}`", BUNDLED), ANY);
                }
                _ => {}
            }
        }
        if let Some(path) = text.strip_prefix("file:") {
            // `file:///a/b` is how browsers write it; a host in the middle is a mistake.
            let path = path.strip_prefix("//").map_or(path, |rest| if rest.starts_with('/') { rest } else { "" });
            return if path.is_empty() { no("it has no path", FILE) } else { Ok(Source::File(path.into())) };
        }
        if let Some(path) = text.strip_prefix("bucket:") {
            return match folder(path) {
                Ok(path) if path.is_empty() => no("it has no path", SITE_BUCKET),
                Ok(path) => Ok(Source::SiteBucket(path)),
                Err(why) => no(&why, SITE_BUCKET),
            };
        }
        if let Some(rest) = text.strip_prefix("hf:") {
            return hub(rest).map(Source::Hub).map_err(|why| SourceError::new(text, why, HUB));
        }
        if text.starts_with("https:") || text.starts_with("http:") {
            return web(text).map(Source::Web).map_err(|why| SourceError::new(text, why, WEB));
        }
        if let Some((scheme, rest)) = text.split_once("://")
            && let Ok(scheme) = scheme.parse()
        {
            return BucketSource::new(scheme, rest)
                .map(Source::Bucket)
                .map_err(|why| SourceError::new(text, why, BUCKET));
        }
        if text.starts_with('/') || text.starts_with("./") || text.starts_with("../") || text.starts_with('~') {
            return no("a path needs `file:` before it", FILE);
        }
        if let Some((scheme, _)) = text.split_once(':') {
            return no(&format!("models cannot come from `{scheme}:`"), ANY);
        }
        if text.contains('/') {
            return no("a repository needs `hf:` before it, a path `file:`", ANY);
        }
        if !text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
            return no("a name has letters, digits, `-`, `.` and `_`", NAME);
        }
        Ok(Source::Catalogue(text.to_ascii_lowercase()))
    }
}

fn web(text: &str) -> Result<WebSource, String> {
    let mut url: Url = text.parse().map_err(|error| format!("it is not a URL ({error})"))?;
    if url.scheme() == "http" && !is_loopback(&url) {
        return Err("`http:` is not encrypted and is only accepted for this machine".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL must not contain a password, because it would be logged".to_owned());
    }
    if url.query().is_some() {
        return Err("a URL must not contain a query, because it may hold a token and would be logged".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("it has no host".to_owned());
    }
    let digest = match url.fragment() {
        None => None,
        Some(fragment) => {
            let digits = fragment.strip_prefix("sha256=").ok_or("only `#sha256=…` may follow the URL")?;
            Some(digits.parse().map_err(|error: crate::digest::InvalidDigest| error.to_string())?)
        }
    };
    url.set_fragment(None);
    let path = url.path();
    if !path.ends_with('/') && !path.ends_with(".gguf") {
        return Err("it is neither a folder (`/` at the end) nor a .gguf file".to_owned());
    }
    if path.ends_with('/') && digest.is_some() {
        return Err("a digest applies to one file, but this is a folder".to_owned());
    }
    Ok(WebSource { url, digest })
}

fn hub(rest: &str) -> Result<HubSource, String> {
    // The revision may not contain a slash here (a branch `refs/pr/1` is written with its commit instead), so the first
    // slash after it begins the file.
    let (repo, revision, file) = match rest.split_once('@') {
        Some((repo, tail)) => match tail.split_once('/') {
            Some((revision, file)) => (repo.to_owned(), Some(revision.to_owned()), Some(file.to_owned())),
            None => (repo.to_owned(), Some(tail.to_owned()), None),
        },
        None => {
            let mut parts = rest.splitn(3, '/');
            let (org, name) = (parts.next().unwrap_or_default(), parts.next());
            let repo = name.map_or_else(|| org.to_owned(), |name| format!("{org}/{name}"));
            (repo, None, parts.next().map(str::to_owned))
        }
    };
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
            && !part.starts_with('.')
            && !part.contains("..")
    };
    let mut segments = repo.split('/');
    if !(segments.next().is_some_and(plain) && segments.next().is_some_and(plain) && segments.next().is_none()) {
        return Err(format!("`{rest}` is not of the form org/name"));
    }
    if let Some(revision) = &revision
        && !plain(revision)
    {
        return Err(format!("`{revision}` is not a valid branch, tag or commit"));
    }
    if let Some(file) = &file {
        if !crate::local::safe_relative(file) {
            return Err(format!("`{file}` is not a valid file name of a repository"));
        }
        if !file.ends_with(".gguf") {
            return Err(format!("`{file}` is not a .gguf file (without a file name, the whole model is pulled)"));
        }
    }
    Ok(HubSource { repo, revision, file })
}

impl WebSource {
    /// The address.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The digest written behind it.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Whether it names a folder and not one file.
    pub fn is_folder(&self) -> bool {
        self.url.path().ends_with('/')
    }
}

/// A path in a bucket: empty, of a folder with `/` at its end, or of a file.
fn folder(path: &str) -> Result<String, String> {
    let path = path.trim_end_matches('/');
    let is_step = |part: &str| part.is_empty() || part.bytes().all(|byte| byte == b'.');
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._=+@".contains(&byte));
    if let Some(part) = path.split('/').find(|part| !path.is_empty() && (is_step(part) || !plain(part))) {
        return Err(format!("`{part}` is not a folder: write letters, digits, `-`, `.`, `_`, `=`, `+` and `@`"));
    }
    let end = if path.is_empty() || path.ends_with(".gguf") { "" } else { "/" };
    Ok(format!("{path}{end}"))
}

impl BucketSource {
    fn new(scheme: Scheme, rest: &str) -> Result<BucketSource, String> {
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        // They become parts of addresses that credentials are sent to.
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if bucket.is_empty() || bucket.len() > 222 || !plain(bucket) || bucket.starts_with('.') {
            return Err("it has no name of a bucket: letters, digits, `-`, `.` and `_`".to_owned());
        }
        Ok(BucketSource { scheme, bucket: bucket.to_owned(), path: folder(path)? })
    }

    /// The protocol.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The bucket; of Azure the container.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The path in it: empty, of a folder with `/` at its end, or of a file.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it names a folder and not one file.
    pub fn is_folder(&self) -> bool {
        !self.path.ends_with(".gguf")
    }

    /// A folder below this one.
    pub fn below(&self, name: &str) -> BucketSource {
        BucketSource { path: format!("{}{name}/", self.path), ..self.clone() }
    }
}

impl fmt::Display for BucketSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.bucket, self.path)
    }
}

impl HubSource {
    /// `org/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Branch, tag or commit; `main` if none is written.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The one file wanted, if not the whole model.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// Whether the revision is a full commit, which can never mean something else later.
    pub fn is_commit(&self) -> bool {
        is_commit(self.revision())
    }
}

pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The text with `***` for what may be a credential in a URL: user, password and query.
fn without_credentials(text: &str) -> String {
    let (rest, fragment) =
        text.split_once('#').map_or((text, String::new()), |(rest, after)| (rest, format!("#{after}")));
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
    let start = rest.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = rest.split_at(start);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) if start > 0 => format!("{scheme}***@{host}{path}{query}{fragment}"),
        _ => format!("{scheme}{rest}{query}{fragment}"),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Bundled => f.write_str("bundled"),
            Source::File(path) => write!(f, "file:{path}"),
            Source::Web(web) => {
                write!(f, "{}", web.url)?;
                web.digest.map_or(Ok(()), |digest| write!(f, "#sha256={}", digest.hex()))
            }
            Source::Bucket(bucket) => bucket.fmt(f),
            Source::SiteBucket(path) => write!(f, "bucket:{path}"),
            Source::Hub(hub) => {
                write!(f, "hf:{}", hub.repo)?;
                if let Some(revision) = &hub.revision {
                    write!(f, "@{revision}")?;
                }
                hub.file.as_ref().map_or(Ok(()), |file| write!(f, "/{file}"))
            }
            Source::Catalogue(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let found = match text.parse::<Source>() {
            Ok(source) => {
                assert_eq!(
                    source.to_string().parse::<Source>().unwrap(),
                    source,
                    "the text form of {text} is not canonical"
                );
                source.to_string()
            }
            Err(error) => format!("no: {}", error.why),
        };
        assert!(
            found == expect || (expect.ends_with('…') && found.starts_with(expect.trim_end_matches('…'))),
            "{text}: {found}"
        );
    }

    #[test]
    fn every_model_source_parses_to_its_canonical_form() {
        check("bundled", "bundled");
        check("bundled:textnlp-tiny", "bundled");
        check("bundled-by-me", "bundled-by-me");
        check("GPT2", "gpt2");
        check("file:models/x", "file:models/x");
        check("file:///models/x y", "file:/models/x y");
        check("hf:openai-community/gpt2", "hf:openai-community/gpt2");
        check("hf:a/b@main", "hf:a/b@main");
        check("hf:a/b@v1.0/q8/x.gguf", "hf:a/b@v1.0/q8/x.gguf");
        check("hf:a/b/x.gguf", "hf:a/b/x.gguf");
        check("https://host/dir/", "https://host/dir/");
        check("http://127.0.0.1:8/x.gguf", "http://127.0.0.1:8/x.gguf");
        check("http://[::1]/x.gguf", "http://[::1]/x.gguf");
        check("bucket:team/mine", "bucket:team/mine/");
        check("bucket:x.gguf", "bucket:x.gguf");
        check("s3://models", "s3://models/");
        check("s3://models/a/b", "s3://models/a/b/");
        check("gs://models/a/x.gguf", "gs://models/a/x.gguf");
        check("az://models/mine/", "az://models/mine/");
        let digest = "ab".repeat(32);
        check(&format!("https://h/x.gguf#sha256={digest}"), &format!("https://h/x.gguf#sha256={digest}"));
    }

    #[test]
    fn invalid_model_sources_name_the_expected_form() {
        check("", "no: it is empty");
        check("file:", "no: it has no path");
        check("file://host/x", "no: it has no path");
        check("/models/x", "no: a path needs `file:` before it");
        check("org/name", "no: a repository needs `hf:` before it, a path `file:`");
        check("hf:name", "no: `name` is not of the form org/name");
        check("hf:../etc", "no: `../etc` is not of the form org/name");
        check("hf://org/name", "no: `//org/name` is not of the form org/name");
        check("hf:a/b@", "no: `` is not a valid branch, tag or commit");
        check("hf:a/b@main/../../x.gguf", "no: `../../x.gguf` is not a valid file name of a repository");
        check("hf:a/b@main/x.bin", "no: `x.bin` is not a .gguf file…");
        check("http://example.org/x.gguf", "no: `http:` is not encrypted…");
        check("https://user:pw@h/x.gguf", "no: a URL must not contain a password…");
        check("https://h/x.gguf?token=pw", "no: a URL must not contain a query…");
        check("https://h/x.tar", "no: it is neither a folder…");
        check("https://h/d/#sha256=00", "no: `00` is not a SHA-256…");
        check("bundled:gpt2", "no: this program contains only the model `textnlp-tiny`");
        check("bucket:", "no: it has no path");
        check("bucket:/a", "no: `` is not a folder…");
        check("ftp://host/x", "no: models cannot come from `ftp:`");
        check("s3://", "no: it has no name of a bucket…");
        check("s3://key@bucket/x", "no: it has no name of a bucket…");
        check("gs://bucket/a//b", "no: `` is not a folder…");
        check("gs://bucket/../b", "no: `..` is not a folder…");
        check("az://models/a b/", "no: `a b` is not a folder…");
        check("s3://bucket/x?versionId=1", "no: `x?versionId=1` is not a folder…");
        check("gpt 2", "no: a name has letters…");
        check("a\nb", "no: it is too long or holds control characters");
    }

    #[test]
    fn errors_never_repeat_credentials() {
        for text in [
            "https://user:hunter2@h/x.gguf",
            "https://hunter2@h:8443/x.gguf#sha256=00",
            "https://h/x.gguf?token=hunter2&a=b#c",
            "https://u:hunter2@h",
            "s3://u:hunter2@bucket/x?hunter2",
        ] {
            let error = Source::check(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("***"), "{error}");
        }
        assert_eq!(without_credentials("hf:a/b@main/x.bin"), "hf:a/b@main/x.bin");
        assert_eq!(without_credentials("https://h/a@b/x.gguf#sha256=0"), "https://h/a@b/x.gguf#sha256=0");
    }

    #[test]
    fn unknown_catalogue_name_gets_a_suggestion() {
        let error = Source::check("gpt2-mediun").unwrap_err().to_string();
        assert!(error.contains("did you mean `gpt2-medium`?"), "{error}");
        Source::check("gpt2-medium").unwrap();
    }
}
