//! The published models of AWS's APIs, as botocore carries them.
//!
//! A model's text is kept whole, and a shape is parsed when it is first asked for: EC2's has thousands.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use serde::Deserialize;
use serde_json::value::RawValue;

/// The wire protocols that AWS's services speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Form input and XML output, as EC2 alone does it.
    Ec2,
    /// Form input and XML output.
    Query,
    /// JSON, with the operation in a header.
    Json,
    /// JSON, with the operation in method and path.
    RestJson,
    /// XML, with the operation in method and path.
    RestXml,
    /// CBOR, with the operation in the path.
    RpcCbor,
}

/// The type of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Named members.
    Structure,
    /// Items of one shape.
    List,
    /// Values of one shape by text.
    Map,
    /// Text.
    String,
    /// One character.
    Character,
    /// 32 bits.
    Integer,
    /// 64 bits.
    Long,
    /// 32 bits.
    Float,
    /// 64 bits.
    Double,
    /// True or false.
    Boolean,
    /// A point in time.
    Timestamp,
    /// Bytes.
    Blob,
}

/// A shape, and how it is written where it is referred to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reference {
    /// The name of the shape.
    pub shape: String,
    /// The name on the wire.
    pub location_name: Option<String>,
    /// The name in EC2's forms.
    pub query_name: Option<String>,
    /// Where of an HTTP message it lies, if not in the body.
    pub location: Option<Location>,
    /// Whether items follow without an element around them.
    pub flattened: bool,
    /// Whether it is the body itself, of any size.
    pub streaming: bool,
    /// Whether it is an attribute of its element.
    pub xml_attribute: bool,
    /// The namespace of its element.
    pub xml_namespace: Option<Namespace>,
    /// How a time is written.
    pub timestamp_format: Option<String>,
    /// Whether a client fills it with a token.
    pub idempotency_token: bool,
    /// Whether it is JSON in text.
    pub jsonvalue: bool,
    /// The element around the output of a query operation.
    pub result_wrapper: Option<String>,
}

/// A part of an HTTP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Location {
    /// A header.
    Header,
    /// All headers that start with the name.
    Headers,
    /// A part of the path.
    Uri,
    /// A parameter of the query.
    Querystring,
    /// The status code.
    StatusCode,
}

/// An XML namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Namespace {
    /// Only its address.
    Uri(String),
    /// Its address, and perhaps its prefix.
    Full {
        /// The address.
        uri: String,
        /// The prefix.
        prefix: Option<String>,
    },
}

impl Namespace {
    /// Its address.
    #[must_use]
    pub fn uri(&self) -> &str {
        match self {
            Self::Uri(uri) | Self::Full { uri, .. } => uri,
        }
    }
}

/// A type of a model.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The members of a structure.
    #[serde(default)]
    pub members: BTreeMap<String, Reference>,
    /// The members that have to be there.
    #[serde(default)]
    pub required: Vec<String>,
    /// The member that is the body.
    #[serde(default)]
    pub payload: Option<String>,
    /// The items of a list.
    #[serde(default)]
    pub member: Option<Reference>,
    /// The keys of a map.
    #[serde(default)]
    pub key: Option<Reference>,
    /// The values of a map.
    #[serde(default)]
    pub value: Option<Reference>,
    /// Whether items follow without an element around them.
    #[serde(default)]
    pub flattened: bool,
    /// The texts that are allowed.
    #[serde(default, rename = "enum")]
    pub allowed: Vec<String>,
    /// The least length or number.
    #[serde(default)]
    pub min: Option<f64>,
    /// The greatest length or number.
    #[serde(default)]
    pub max: Option<f64>,
    /// What a text has to match.
    #[serde(default)]
    pub pattern: Option<String>,
    /// Whether exactly one member is set.
    #[serde(default)]
    pub union: bool,
    /// Whether it is any JSON.
    #[serde(default)]
    pub document: bool,
    /// Whether it is kept out of logs.
    #[serde(default)]
    pub sensitive: bool,
    /// How a time is written.
    #[serde(default)]
    pub timestamp_format: Option<String>,
    /// The name on the wire.
    #[serde(default)]
    pub location_name: Option<String>,
    /// The namespace of its element.
    #[serde(default)]
    pub xml_namespace: Option<Namespace>,
    /// Whether it is an error.
    #[serde(default)]
    pub exception: bool,
    /// Whether the error is the service's, not the caller's.
    #[serde(default)]
    pub fault: bool,
    /// How the error is named on the wire.
    #[serde(default)]
    pub error: Option<ErrorTrait>,
    /// Whether it is a stream of events.
    #[serde(default)]
    pub eventstream: bool,
}

/// How an error is named on the wire.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorTrait {
    /// Its code.
    pub code: Option<String>,
    /// Its HTTP status.
    pub http_status_code: Option<u16>,
    /// Whether the caller is to blame.
    pub sender_fault: bool,
}

/// Method and path of an operation.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpTrait {
    /// The method.
    pub method: String,
    /// The path with `{Labels}`, and perhaps a query.
    pub request_uri: String,
    /// The status of an answer; 200 without.
    pub response_code: Option<u16>,
}

/// What one can ask of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// Method and path.
    pub http: HttpTrait,
    /// The shape of its input.
    pub input: Option<Reference>,
    /// The shape of its output.
    pub output: Option<Reference>,
    /// The shapes of its errors.
    #[serde(default)]
    pub errors: Vec<Reference>,
    /// `none` where a request needs no signature.
    #[serde(default)]
    pub authtype: Option<String>,
    /// Whether another has taken its place.
    #[serde(default)]
    pub deprecated: bool,
}

/// How an operation's answer comes in pages.
#[derive(Clone, Debug, Deserialize)]
pub struct Paginator {
    /// The members that a page is asked for with.
    pub input_token: OneOrMany,
    /// The members that name the next page.
    pub output_token: OneOrMany,
    /// The member that bounds a page.
    pub limit_key: Option<String>,
    /// The member that tells whether there is more.
    pub more_results: Option<String>,
    /// The members that hold the items.
    pub result_key: OneOrMany,
}

/// One text or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    /// The first, or nothing where there is none.
    #[must_use]
    pub fn first(&self) -> &str {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many.first().map_or("", String::as_str),
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<&str> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many.iter().map(String::as_str).collect(),
        }
    }
}

/// What a model says of its service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The version of the API.
    pub api_version: String,
    /// The protocol that it is described in.
    pub protocol: String,
    /// All protocols that it speaks.
    #[serde(default)]
    pub protocols: Vec<String>,
    /// The start of `X-Amz-Target`, and the service's name in paths of CBOR requests.
    pub target_prefix: Option<String>,
    /// The version of the JSON protocol.
    pub json_version: Option<String>,
    /// The namespace of answers.
    pub xml_namespace: Option<Namespace>,
    /// Whether errors name their code of the query protocol too.
    pub aws_query_compatible: Option<serde::de::IgnoredAny>,
}

type Raw = HashMap<&'static str, &'static RawValue>;

#[derive(Deserialize)]
struct Document<'a> {
    metadata: Metadata,
    #[serde(borrow)]
    operations: HashMap<&'a str, &'a RawValue>,
    #[serde(borrow)]
    shapes: HashMap<&'a str, &'a RawValue>,
}

/// The model of one service. It is loaded once in a process and stays.
pub struct Model {
    /// What it says of the service.
    pub metadata: Metadata,
    folder: PathBuf,
    operations: Raw,
    shapes: Raw,
    parsed_operations: Mutex<HashMap<String, Arc<Operation>>>,
    parsed_shapes: Mutex<HashMap<String, Arc<Shape>>>,
    patterns: Mutex<HashMap<String, Option<Arc<fancy_regex::Regex>>>>,
    paginators: OnceLock<HashMap<String, Paginator>>,
    routes: OnceLock<Vec<Arc<Operation>>>,
}

impl Model {
    /// The newest model in a folder of botocore's data, such as `ec2`.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn of(folder: &str) -> Result<&'static Self, String> {
        static MODELS: OnceLock<Mutex<HashMap<String, &'static Model>>> = OnceLock::new();
        let mut models = lock(MODELS.get_or_init(Mutex::default));
        if let Some(model) = models.get(folder) {
            return Ok(model);
        }
        let model: &'static Self = Box::leak(Box::new(Self::read(folder)?));
        models.insert(folder.to_owned(), model);
        Ok(model)
    }

    fn read(folder: &str) -> Result<Self, String> {
        let versions = data_folder()?.join(folder);
        let entries = std::fs::read_dir(&versions).map_err(|e| format!("read {}: {e}", versions.display()))?;
        let newest = entries.filter_map(|entry| Some(entry.ok()?.path())).max();
        let folder = newest.ok_or_else(|| format!("{} is empty", versions.display()))?;
        let path = folder.join("service-2.json.gz");
        let file = std::fs::File::open(&path).map_err(|e| format!("open {}: {e}", path.display()))?;
        let mut text = String::new();
        let mut reader = flate2::read::GzDecoder::new(file);
        reader.read_to_string(&mut text).map_err(|e| format!("read {}: {e}", path.display()))?;
        let text: &'static str = Box::leak(text.into_boxed_str());
        let document: Document<'static> =
            serde_json::from_str(text).map_err(|e| format!("parse {}: {e}", path.display()))?;
        Ok(Self {
            metadata: document.metadata,
            folder,
            operations: document.operations,
            shapes: document.shapes,
            parsed_operations: Mutex::default(),
            parsed_shapes: Mutex::default(),
            patterns: Mutex::default(),
            paginators: OnceLock::new(),
            routes: OnceLock::new(),
        })
    }

    /// The protocol that the model is described in.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.metadata.protocol.as_str() {
            "ec2" => Protocol::Ec2,
            "query" => Protocol::Query,
            "rest-json" => Protocol::RestJson,
            "rest-xml" => Protocol::RestXml,
            "smithy-rpc-v2-cbor" => Protocol::RpcCbor,
            _ => Protocol::Json,
        }
    }

    /// The names of all operations.
    pub fn operation_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.operations.keys().copied()
    }

    /// An operation by its name.
    #[must_use]
    pub fn operation(&self, name: &str) -> Option<Arc<Operation>> {
        parsed(&self.operations, &self.parsed_operations, name)
    }

    /// All operations: for protocols that tell them by method and path.
    pub(crate) fn routes(&self) -> &[Arc<Operation>] {
        self.routes.get_or_init(|| self.operation_names().filter_map(|name| self.operation(name)).collect())
    }

    /// A shape by its name.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<Arc<Shape>> {
        parsed(&self.shapes, &self.parsed_shapes, name)
    }

    /// How an operation's answer comes in pages, if it does.
    #[must_use]
    pub fn paginator(&self, operation: &str) -> Option<&Paginator> {
        let all = self.paginators.get_or_init(|| {
            #[derive(Deserialize)]
            struct File {
                pagination: HashMap<String, Paginator>,
            }
            let text = std::fs::read_to_string(self.folder.join("paginators-1.json")).unwrap_or_default();
            serde_json::from_str::<File>(&text).map(|file| file.pagination).unwrap_or_default()
        });
        all.get(operation)
    }

    /// Whether a text matches a pattern; one that cannot be compiled is none.
    pub(crate) fn matches(&self, pattern: &str, text: &str) -> bool {
        let mut patterns = lock(&self.patterns);
        let compiled = patterns
            .entry(pattern.to_owned())
            .or_insert_with(|| fancy_regex::Regex::new(pattern).ok().map(Arc::new))
            .clone();
        drop(patterns);
        compiled.is_none_or(|regex| regex.is_match(text).unwrap_or(true))
    }
}

fn parsed<T: for<'a> Deserialize<'a>>(raw: &Raw, known: &Mutex<HashMap<String, Arc<T>>>, name: &str) -> Option<Arc<T>> {
    if let Some(one) = lock(known).get(name) {
        return Some(one.clone());
    }
    let one = Arc::new(serde_json::from_str::<T>(raw.get(name)?.get()).ok()?);
    lock(known).insert(name.to_owned(), one.clone());
    Some(one)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The folder `botocore/data` of the tests' Python packages, which are installed if they are missing.
///
/// # Errors
/// They cannot be installed.
pub fn data_folder() -> Result<&'static Path, String> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let python = python()?;
        let library = python.parent().and_then(Path::parent).ok_or("the interpreter has no folder")?.join("lib");
        let entries = std::fs::read_dir(&library).map_err(|e| format!("read {}: {e}", library.display()))?;
        let data = entries.filter_map(|e| Some(e.ok()?.path().join("site-packages/botocore/data")));
        data.into_iter().find(|data| data.is_dir()).ok_or(format!("botocore is not in {}", library.display()))
    });
    folder.as_deref().map_err(Clone::clone)
}

/// The interpreter that has the tests' Python packages.
///
/// # Errors
/// They cannot be installed.
pub fn python() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../environments");
    let output = Command::new("bash").arg(&script).args(["python", "tests"]).output();
    let output = output.map_err(|e| format!("run {}: {e}", script.display()))?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.success() && !path.is_empty() {
        true => Ok(PathBuf::from(path)),
        false => Err(format!("install Python packages: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
