//! What a handler is given, and what it answers.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::aws::model::{Paginator, Protocol};
use crate::clock::{Random, Stages, later};
use crate::world::{Quota, Scope, World};

/// Answers one operation: it changes the world and gives the output by the names of the model, or refuses.
///
/// Times are RFC 3339 text ([`timestamp`]) and bytes base64, in inputs and outputs alike.
///
/// [`timestamp`]: crate::timestamp
pub type Handler = fn(&mut World, &Call) -> Result<Value, Fault>;

/// A simulated service.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its name in the scope of signatures, and in ARNs, such as `elasticloadbalancing`.
    pub name: &'static str,
    /// The folder of its model in botocore's data, such as `elbv2`.
    pub model: &'static str,
    /// Operations of the model and their handlers.
    pub operations: &'static [(&'static str, Handler)],
    /// Its quotas.
    pub quotas: &'static [Quota],
    /// Where what it does is known from.
    pub ledger: &'static [Behaviour],
}

/// One thing that a simulated service does, and where it is known from.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// The service, by its signing name.
    pub service: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Where that is known from.
    pub source: Source,
}

/// Where a behaviour is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The published model says so.
    Model,
    /// The vendor's documentation says so, at this address.
    Documentation(&'static str),
    /// A public recording of the real service shows it, at this address.
    Recording(&'static str),
    /// A double that is trusted for it agrees, and a test compares the two.
    Double(&'static str),
    /// Public reports of users describe it: the repository and the number of one, such as `owner/repository#1`.
    Report(&'static str),
    /// Nothing says so: what is only assumed is not tested.
    Assumed,
    /// No rule of the service: what the simulator leaves out or chooses itself, and why that is enough.
    LeftOut(&'static str),
}

impl Source {
    /// What kind of source it is, in a word.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Documentation(_) => "documentation",
            Self::Recording(_) => "recording",
            Self::Double(_) => "double",
            Self::Report(_) => "report",
            Self::Assumed => "assumed",
            Self::LeftOut(_) => "left out",
        }
    }

    /// The address, the report or the double; of what is left out, the reason.
    #[must_use]
    pub fn cited(self) -> &'static str {
        match self {
            Self::Documentation(text)
            | Self::Recording(text)
            | Self::Double(text)
            | Self::Report(text)
            | Self::LeftOut(text) => text,
            Self::Model | Self::Assumed => "",
        }
    }

    /// Whether a report is its source, or is named in the reason why it is left out.
    #[must_use]
    pub fn cites(self, report: &str) -> bool {
        match self {
            Self::Report(own) => own == report,
            Self::LeftOut(reason) => reason.split([' ', ',', ':', ';']).any(|word| word == report),
            _ => false,
        }
    }
}

/// An error as a service answers it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The code on the wire, such as `InvalidVpcID.NotFound` or `ResourceNotFoundException`.
    pub code: String,
    /// The message.
    pub message: String,
    /// The HTTP status, where it is neither the model's nor the protocol's usual one.
    pub status: Option<u16>,
    /// Further members of the error's shape.
    pub members: Map<String, Value>,
}

impl Fault {
    /// An error with a code of the model, or one that the documentation names.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), status: None, members: Map::new() }
    }

    /// The same with an HTTP status: only for codes that the model does not hold, because it knows those of its own.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// The same with a member of the error's shape.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.members.insert(member.to_owned(), value.into());
        self
    }
}

/// Delays of a simulated cloud, all on its clock.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How far the clock moves with each request.
    pub step: Duration,
    /// Whether what takes time is done at the next request already.
    pub zero_latency: bool,
    /// After which time a new object is seen by lists and by other services, where the real service says "eventually".
    pub consistency: Duration,
    /// The most items of a page, where the caller asks for more or says nothing.
    pub page: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self { step: Duration::from_secs(5), zero_latency: false, consistency: Duration::from_secs(8), page: 1000 }
    }
}

/// A request, checked by the model.
#[derive(Clone)]
pub struct Call {
    /// The service, by its signing name.
    pub service: &'static str,
    /// The operation.
    pub operation: String,
    /// The account of the identity.
    pub account: String,
    /// The region of the signature.
    pub region: String,
    /// The ARN of the identity that signed it; empty where none has to.
    pub identity: String,
    /// The unique id of the identity.
    pub identity_id: String,
    /// The access key that it was signed with.
    pub access_key: String,
    /// The input by the names of the model, without a streaming body.
    pub input: Value,
    /// The virtual time.
    pub now: Timestamp,
    /// The id that the answer carries.
    pub request_id: String,
    /// The host and port that the request was sent to.
    pub host: String,
    /// Delays.
    pub timing: Timing,
    /// Numbers and ids that follow from the seed.
    pub random: Random,
    pub(crate) body: Bytes,
    pub(crate) reply_body: RefCell<Bytes>,
    pub(crate) paginator: Option<Paginator>,
    pub(crate) protocol: Protocol,
}

impl Call {
    /// Where the resources of a regional service are.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::new(&self.account, &self.region)
    }

    /// Where the resources of a global service are.
    #[must_use]
    pub fn global(&self) -> Scope {
        Scope::global(&self.account)
    }

    /// A member of the input that is text, if it is set.
    #[must_use]
    pub fn str(&self, member: &str) -> Option<&str> {
        self.input.get(member)?.as_str()
    }

    /// A member that the model requires to be text.
    #[must_use]
    pub fn text(&self, member: &str) -> &str {
        self.str(member).unwrap_or_default()
    }

    /// A member that is a number without fraction, if it is set.
    #[must_use]
    pub fn int(&self, member: &str) -> Option<i64> {
        self.input.get(member)?.as_i64()
    }

    /// Whether a member is set to true.
    #[must_use]
    pub fn is(&self, member: &str) -> bool {
        self.input.get(member).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The items of a member that is a list; none if it is not set.
    #[must_use]
    pub fn list(&self, member: &str) -> &[Value] {
        self.input.get(member).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The items of a member that is a list of text; none if it is not set.
    #[must_use]
    pub fn texts(&self, member: &str) -> Vec<&str> {
        self.list(member).iter().filter_map(Value::as_str).collect()
    }

    /// The bytes of a streaming input, such as those of an object.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Sends the bytes of a streaming output, whose member the handler leaves out of its answer.
    pub fn send_body(&self, bytes: Bytes) {
        *self.reply_body.borrow_mut() = bytes;
    }

    /// An id as EC2's: the prefix and 17 hexadecimal digits.
    #[must_use]
    pub fn id(&self, prefix: &str) -> String {
        format!("{prefix}-0{}", self.random.hex(16))
    }

    /// An ARN of this service, region and account: `call.arn("vpc/vpc-0…")`.
    #[must_use]
    pub fn arn(&self, resource: &str) -> String {
        format!("arn:aws:{}:{}:{}:{resource}", self.service, self.region, self.account)
    }

    /// When something that takes so long is done. With zero latency that is the next request.
    #[must_use]
    pub fn due(&self, after: Duration) -> Timestamp {
        // The shortest step of the clock is a millisecond.
        later(self.now, if self.timing.zero_latency { Duration::from_millis(1) } else { after })
    }

    /// A first state, and those that follow so long after now.
    #[must_use]
    pub fn stages(&self, first: &'static str, next: &[(Duration, &'static str)]) -> Stages {
        Stages::new(first, next.iter().map(|(after, state)| (self.due(*after), *state)).collect())
    }

    /// From when on lists and other services see an object that is created now.
    #[must_use]
    pub fn visible(&self) -> Timestamp {
        self.due(self.timing.consistency)
    }

    /// The service's error for a caller that no policy allows an action, such as `ec2:CreateVpc`: for authorizers.
    #[must_use]
    pub fn denied(&self, action: &str, resource: &str) -> Fault {
        let reason = format!("is not authorized to perform: {action} on resource: {resource}");
        let message =
            format!("User: {} {reason} because no identity-based policy allows the {action} action", self.identity);
        match self.protocol {
            Protocol::Ec2 => {
                let message = format!("You are not authorized to perform this operation. {message}");
                Fault::new("UnauthorizedOperation", message).status(403)
            }
            Protocol::Query | Protocol::RestXml => Fault::new("AccessDenied", message).status(403),
            Protocol::RestJson => Fault::new("AccessDeniedException", message).status(403),
            Protocol::Json | Protocol::RpcCbor => Fault::new("AccessDeniedException", message).status(400),
        }
    }

    /// The page of items that the input asks for, as the output `{ result_key: […], its token: … }`, by the model's
    /// paginator. `items` are all items in a stable order. Further members are added by the handler.
    ///
    /// # Errors
    /// The token is none of this operation's: the service's `invalid` error.
    pub fn page(&self, result_key: &str, items: Vec<Value>, invalid: Fault) -> Result<Value, Fault> {
        let mut output = json!({});
        let Some(paginator) = &self.paginator else {
            put(&mut output, result_key, items.into());
            return Ok(output);
        };
        let token = paginator.input_token.first();
        let start = match self.str(token).filter(|token| !token.is_empty()) {
            Some(token) => self.offset(token).filter(|start| *start <= items.len()).ok_or(invalid)?,
            None => 0,
        };
        let limit = paginator.limit_key.as_deref().and_then(|key| {
            let limit = self.input.get(key)?;
            limit.as_u64().or_else(|| limit.as_str()?.parse().ok())
        });
        let size = limit.map_or(self.timing.page, |limit| (limit as usize).min(self.timing.page)).max(1);
        let is_more = items.len() - start > size;
        let page: Vec<Value> = items.into_iter().skip(start).take(size).collect();
        put(&mut output, result_key, page.into());
        if let Some(more) = &paginator.more_results {
            put(&mut output, more, is_more.into());
        }
        if is_more {
            put(&mut output, paginator.output_token.first(), self.token(start + size).into());
        }
        Ok(output)
    }

    /// Tokens are opaque, and of no use to another operation.
    fn token(&self, offset: usize) -> String {
        use base64::Engine;
        let text = format!("{}:{}:{offset}", self.service, self.operation);
        base64::engine::general_purpose::URL_SAFE.encode(text)
    }

    fn offset(&self, token: &str) -> Option<usize> {
        use base64::Engine;
        let text = String::from_utf8(base64::engine::general_purpose::URL_SAFE.decode(token).ok()?).ok()?;
        text.strip_prefix(&format!("{}:{}:", self.service, self.operation))?.parse().ok()
    }
}

/// Sets `a.b.c` in an object.
fn put(output: &mut Value, path: &str, value: Value) {
    let mut place = output;
    for part in path.split('.') {
        place = &mut place[part];
    }
    *place = value;
}

impl std::fmt::Debug for Call {
    /// Without the input, which may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = (self.service, &self.operation, &self.account, &self.region, &self.identity);
        f.debug_tuple("Call").field(&name).finish()
    }
}
