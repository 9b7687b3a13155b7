//! AWS's wire protocols: which operation a request asks for, its input, and the answer.
//!
//! The specifications are those of Smithy: <https://smithy.io/2.0/aws/protocols/index.html>.

mod cbor;
mod form;
mod json;
mod rest;
mod text;
mod xml;

pub(crate) use rest::decode;
pub(crate) use text::http_date;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Map, Value, json};

use super::model::{Model, Operation, Protocol, Reference, Shape};
use super::xml::escape;
use crate::{Fault, Service};

/// A request whose body is there in full.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path as it was sent.
    pub path: String,
    /// The query as it was sent.
    pub raw_query: String,
    /// The query's parameters, without those of a presigned URL's signature.
    pub query: Vec<(String, String)>,
    /// The headers.
    pub headers: HeaderMap,
    /// The body without any transfer coding.
    pub body: Bytes,
}

impl Request {
    /// A header that is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The members of a form, from the body or else from the query.
    pub(crate) fn form(&self) -> Vec<(String, String)> {
        let is_form = self.header("content-type").is_some_and(|t| t.starts_with("application/x-www-form-urlencoded"));
        match is_form && !self.body.is_empty() {
            true => url::form_urlencoded::parse(&self.body).into_owned().collect(),
            false => self.query.clone(),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// An input as a handler sees it, and what of it the model does not allow.
#[derive(Debug)]
pub struct Input {
    /// The input without a streaming body.
    pub value: Value,
    /// The streaming body.
    pub body: Bytes,
    /// What could not be read.
    pub problems: Vec<String>,
}

/// The protocol of a request to a service that may speak several.
#[must_use]
pub fn protocol_of(model: &Model, request: &Request) -> Protocol {
    let described = model.protocol();
    if request.header("smithy-protocol") == Some("rpc-v2-cbor") {
        return Protocol::RpcCbor;
    }
    match described {
        Protocol::RpcCbor if request.headers.contains_key("x-amz-target") => Protocol::Json,
        Protocol::RpcCbor => Protocol::Query,
        described => described,
    }
}

/// The name of the operation that a request asks for, and the operation if the model has it.
#[must_use]
pub fn operation_of(
    model: &Model,
    service: &Service,
    protocol: Protocol,
    request: &Request,
) -> (String, Option<Arc<Operation>>) {
    let name = match protocol {
        Protocol::Ec2 | Protocol::Query => {
            request.form().into_iter().find(|(name, _)| name == "Action").map(|(_, action)| action)
        }
        Protocol::Json => {
            let prefix = model.metadata.target_prefix.as_deref().unwrap_or_default();
            let target = request.header("x-amz-target").unwrap_or_default();
            Some(target.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or(target).to_owned())
        }
        Protocol::RpcCbor => request.path.rsplit_once("/operation/").map(|(_, name)| name.to_owned()),
        Protocol::RestJson | Protocol::RestXml => {
            let found = rest::route(model, service, request);
            return (found.as_ref().map_or_else(String::new, |operation| operation.name.clone()), found);
        }
    };
    let name = name.unwrap_or_default();
    let operation = model.operation(&name);
    (name, operation)
}

/// The input of an operation.
#[must_use]
pub fn parse(model: &Model, protocol: Protocol, operation: &Operation, request: &Request) -> Input {
    let mut reader = Reader { model, problems: Vec::new() };
    let empty = Reference::default();
    let reference = operation.input.as_ref().unwrap_or(&empty);
    let mut body = Bytes::new();
    let value = match protocol {
        Protocol::Ec2 | Protocol::Query => form::parse(&mut reader, protocol, reference, request),
        Protocol::Json => json::parse(&mut reader, reference, &request.body),
        Protocol::RpcCbor => cbor::parse(&mut reader, reference, &request.body),
        Protocol::RestJson | Protocol::RestXml => {
            rest::parse(&mut reader, protocol, operation, reference, request, &mut body)
        }
    };
    Input { value, body, problems: reader.problems }
}

/// The answer of an operation that succeeded. The output has been checked against the model.
#[must_use]
pub fn reply(
    model: &Model,
    protocol: Protocol,
    operation: &Operation,
    output: &Value,
    body: Bytes,
    request_id: &str,
) -> Reply {
    let mut reply = Reply { status: operation.http.response_code.unwrap_or(200), ..Reply::default() };
    let empty = Reference::default();
    let reference = operation.output.as_ref().unwrap_or(&empty);
    match protocol {
        Protocol::Ec2 | Protocol::Query => {
            reply.set("content-type", "text/xml;charset=UTF-8");
            reply.body = xml::form_reply(model, protocol, operation, reference, output, request_id).into();
        }
        Protocol::Json => {
            reply.set("content-type", &json_type(model));
            let shape = model.shape(&reference.shape);
            let body = shape.map(|shape| json::write(model, &shape, output, false).to_string());
            reply.body = body.unwrap_or_default().into();
        }
        Protocol::RpcCbor => {
            reply.set("content-type", "application/cbor");
            reply.set("smithy-protocol", "rpc-v2-cbor");
            reply.body = cbor::write(model, reference, output).into();
        }
        Protocol::RestJson | Protocol::RestXml => {
            rest::reply(model, protocol, operation, reference, output, body, &mut reply)
        }
    }
    reply.set(request_id_header(protocol, model), request_id);
    reply
}

/// The answer of an operation that failed.
#[must_use]
pub fn fault(
    model: &Model,
    protocol: Protocol,
    operation: Option<&Operation>,
    fault: &Fault,
    request: &Request,
    request_id: &str,
) -> Reply {
    let known = error_shape(model, operation, &fault.code);
    let declared = known.as_ref().and_then(|(_, shape)| shape.error.clone()).unwrap_or_default();
    let is_ours = known.as_ref().is_some_and(|(_, shape)| shape.fault);
    let modelled = declared.http_status_code.or(known.is_some().then_some(if is_ours { 500 } else { 400 }));
    let status = fault.status.or(modelled).unwrap_or(400);
    let mut reply = Reply { status, ..Reply::default() };
    let name = known.as_ref().map_or(fault.code.as_str(), |(name, _)| name);
    let code = declared.code.as_deref().unwrap_or(name);
    let blame = if status < 500 { "Sender" } else { "Receiver" };
    let (message, id) = (escape(&fault.message), escape(request_id));
    match protocol {
        Protocol::Ec2 => {
            reply.set("content-type", "text/xml;charset=UTF-8");
            reply.body = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{}</Code><Message>{message}\
                 </Message></Error></Errors><RequestID>{id}</RequestID></Response>",
                escape(code)
            )
            .into();
        }
        Protocol::RestXml if model.metadata.target_prefix.is_none() && is_s3(model) => {
            reply.set("content-type", "application/xml");
            let members = xml::members(model, known.as_ref().map(|(_, shape)| shape.as_ref()), &fault.members);
            reply.body = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{}</Code><Message>{message}</Message>{members}\
                 <RequestId>{id}</RequestId><HostId>{id}</HostId></Error>",
                escape(code)
            )
            .into();
        }
        Protocol::Query | Protocol::RestXml => {
            reply.set("content-type", "text/xml");
            let namespace = model.metadata.xml_namespace.as_ref().map(|n| n.uri().to_owned());
            let namespace = namespace
                .unwrap_or_else(|| format!("https://route53.amazonaws.com/doc/{}/", model.metadata.api_version));
            let members = xml::members(model, known.as_ref().map(|(_, shape)| shape.as_ref()), &fault.members);
            reply.body = format!(
                "<ErrorResponse xmlns=\"{}\"><Error><Type>{blame}</Type><Code>{}</Code><Message>{message}</Message>\
                 {members}</Error><RequestId>{id}</RequestId></ErrorResponse>",
                escape(&namespace),
                escape(code)
            )
            .into();
        }
        Protocol::Json | Protocol::RestJson | Protocol::RpcCbor => {
            let shape = known.as_ref().map(|(_, shape)| shape.clone());
            let members = fault_members(shape.as_deref(), fault);
            if model.metadata.aws_query_compatible.is_some() {
                reply.set("x-amzn-query-error", &format!("{code};{blame}"));
            }
            if protocol == Protocol::RpcCbor {
                reply.set("content-type", "application/cbor");
                reply.set("smithy-protocol", "rpc-v2-cbor");
                let reference = Reference { shape: name.to_owned(), ..Reference::default() };
                reply.body = cbor::write_fault(model, &reference, name, &members).into();
            } else {
                let mut body = match &shape {
                    Some(shape) => json::write(model, shape, &members, protocol == Protocol::RestJson),
                    None => members,
                };
                // Some shapes do not declare the message that all errors have.
                if body["message"].is_null() && body["Message"].is_null() {
                    body["message"] = fault.message.clone().into();
                }
                if protocol == Protocol::Json {
                    reply.set("content-type", &json_type(model));
                    body["__type"] = json!(name);
                } else {
                    reply.set("content-type", "application/json");
                    reply.set("x-amzn-errortype", name);
                }
                reply.body = body.to_string().into();
            }
        }
    }
    // Such answers have no body: the status says what failed.
    if request.method == "HEAD" || status == 304 {
        reply.body = Bytes::new();
    }
    reply.set(request_id_header(protocol, model), request_id);
    reply
}

/// The message under the name that the error's shape has for it, and the further members.
fn fault_members(shape: Option<&Shape>, fault: &Fault) -> Value {
    let name = shape.and_then(|shape| shape.members.keys().find(|name| name.eq_ignore_ascii_case("message")));
    let mut members = Map::new();
    members.insert(name.map_or("message", String::as_str).to_owned(), fault.message.clone().into());
    members.extend(fault.members.clone());
    Value::Object(members)
}

/// The shape of an error by its code or its own name: of the operation, else of any in the service.
#[must_use]
pub fn error_shape(model: &Model, operation: Option<&Operation>, code: &str) -> Option<(String, Arc<Shape>)> {
    let errors = operation.into_iter().flat_map(|operation| &operation.errors).map(|error| error.shape.as_str());
    let is_named = |shape: &Shape| shape.error.as_ref().and_then(|e| e.code.as_deref()) == Some(code);
    let shapes = errors.filter_map(|name| Some((name.to_owned(), model.shape(name)?)));
    let mut shapes = shapes.filter(|(name, shape)| name == code || is_named(shape));
    shapes.next().or_else(|| {
        let shape = model.shape(code).filter(|shape| shape.exception)?;
        Some((code.to_owned(), shape))
    })
}

fn is_s3(model: &Model) -> bool {
    // Its is the only model in XML that is older than the shared form of errors.
    model.metadata.api_version == "2006-03-01"
}

fn json_type(model: &Model) -> String {
    format!("application/x-amz-json-{}", model.metadata.json_version.as_deref().unwrap_or("1.0"))
}

fn request_id_header(protocol: Protocol, model: &Model) -> &'static str {
    if protocol == Protocol::RestXml && is_s3(model) { "x-amz-request-id" } else { "x-amzn-requestid" }
}

impl Reply {
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.headers.push((name.to_owned(), value.to_owned()));
    }
}

/// Reads inputs, and notes what it cannot read.
struct Reader<'a> {
    model: &'a Model,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn problem(&mut self, path: &str, what: impl std::fmt::Display) {
        self.problems.push(format!("{path}: {what}"));
    }

    fn shape(&mut self, reference: &Reference, path: &str) -> Option<Arc<Shape>> {
        let shape = self.model.shape(&reference.shape);
        if shape.is_none() && !reference.shape.is_empty() {
            self.problem(path, format!("the model has no shape {}", reference.shape));
        }
        shape
    }
}
