//! Amazon Web Services.

pub mod acm;
pub mod autoscaling;
mod body;
pub mod budgets;
pub mod check;
pub mod cloudwatch;
pub mod costexplorer;
pub mod ec2;
pub mod ecr;
pub mod eks;
pub mod elasticache;
pub mod elb;
pub mod iam;
mod key_values;
pub mod kms;
pub mod logs;
pub mod model;
pub mod protocol;
pub mod rds;
pub mod route53;
pub mod s3;
pub mod sagemaker;
pub mod secretsmanager;
pub mod servicequotas;
mod signature;
pub mod sns;
pub mod sts;
pub mod tagging;
mod xml;

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::Value;

use crate::fault_plan::Disruption;
use crate::simulator::{Exchange, Outcome, Shared};
use crate::{Behaviour, Call, Fault, Service, Source};
use model::{Model, Operation, Protocol, Reference, lock};
use protocol::{Reply, Request};
use signature::{Refusal, Signature, refusal_of};

/// The services that are simulated.
pub const SERVICES: &[&Service] = &[
    &acm::SERVICE,
    &autoscaling::SERVICE,
    &budgets::SERVICE,
    &cloudwatch::SERVICE,
    &costexplorer::SERVICE,
    &ec2::SERVICE,
    &ecr::SERVICE,
    &eks::SERVICE,
    &elasticache::SERVICE,
    &elb::SERVICE,
    &elb::CLASSIC,
    &iam::SERVICE,
    &kms::SERVICE,
    &logs::SERVICE,
    &rds::SERVICE,
    &route53::SERVICE,
    &s3::SERVICE,
    &sagemaker::SERVICE,
    &sagemaker::RUNTIME,
    &secretsmanager::SERVICE,
    &servicequotas::SERVICE,
    &sns::SERVICE,
    &sts::SERVICE,
    &tagging::SERVICE,
];

/// What all services share, and where it is known from.
pub const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "*",
        what: "answers have empty maps of tags also where the model asks for one entry",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/eks/latest/APIReference/API_DescribeAccessEntry.html",
        ),
    },
    Behaviour {
        service: "*",
        what: "requests and answers have the members, types and bounds of the models, in each service's protocol",
        source: Source::Model,
    },
    Behaviour {
        service: "*",
        what: "a request that does not fit the model is refused with ValidationError by the query protocol",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html"),
    },
    Behaviour {
        service: "*",
        what: "with ValidationException by protocols of JSON",
        source: Source::Report("aws/amazon-sagemaker-examples#2236"),
    },
    Behaviour {
        service: "*",
        what: "with InvalidParameterValue by EC2",
        source: Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html"),
    },
    Behaviour {
        service: "*",
        what: "signatures of version 4, in headers and in presigned URLs, are verified with the payload's hash",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html"),
    },
    Behaviour {
        service: "*",
        what: "error codes of wrong keys, tokens, times and signatures by protocol",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html"),
    },
    Behaviour {
        service: "*",
        what: "throttling and internal errors have the codes of the model where it has them",
        source: Source::Model,
    },
    Behaviour {
        service: "*",
        what: "throttling and internal errors of services whose model has none: RequestLimitExceeded and Unavailable of EC2, \
               SlowDown of S3, Throttling, InternalFailure and ServiceUnavailable of the query protocol",
        source: Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html"),
    },
    Behaviour {
        service: "*",
        what: "chunked bodies: signatures of chunks and trailers, checksums in headers and trailers, BadDigest",
        source: Source::Documentation("https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html"),
    },
    Behaviour {
        service: "*",
        what: "DryRun of EC2 is DryRunOperation for whoever is allowed the operation, before its input is looked at",
        source: Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/CommonParameters.html"),
    },
    Behaviour {
        service: "*",
        what: "AccessDenied, AccessDeniedException and UnauthorizedOperation by protocol",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html"),
    },
    Behaviour {
        service: "*",
        what: "a signature is too old after 5 minutes",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_aws-signing.html"),
    },
    Behaviour {
        service: "*",
        what: "also in services that allow more, such as S3",
        source: Source::LeftOut("requests are signed when they are sent"),
    },
];

/// Answers a request. `None` says that the connection closes without an answer.
pub(crate) fn answer(shared: &Shared, mut request: Request) -> (Option<Reply>, Option<Disruption>) {
    let request_id = shared.request_id();
    let signature = match Signature::of(&request) {
        Ok(signature) => signature,
        Err(problem) => {
            let fault = Fault::new("IncompleteSignature", problem).status(403);
            return (Some(plain(&fault, &request_id)), None);
        }
    };
    if signature.is_none()
        && let Some((action, reply)) = ecr::registry(&mut shared.world(), &request)
    {
        if !action.is_empty() {
            let outcome = match reply.status {
                ..400 => Outcome::Succeeded,
                status => Outcome::Failed(status.to_string()),
            };
            shared.record(Exchange {
                service: ecr::SERVICE.name,
                operation: action.to_owned(),
                outcome,
                ..Exchange::default()
            });
        }
        return (Some(reply), None);
    }
    request.query.retain(|(name, _)| !name.starts_with("X-Amz-"));
    // Only STS has operations that no key signs.
    let name = signature.as_ref().map_or("sts", |signature| signature.service.as_str());
    let is_one = |service: &&&Service| {
        service.name == name && sagemaker::is_of(service, &request.path) && elb::is_of(service, &request)
    };
    let Some(service) = SERVICES.iter().find(is_one) else {
        shared.violation(format!("{name}: the service is not simulated"));
        return (Some(plain(&Fault::new("NotImplemented", "not simulated").status(501), &request_id)), None);
    };
    let model = match Model::of(service.model) {
        Ok(model) => model,
        Err(problem) => {
            shared.violation(format!("{name}: {problem}"));
            return (Some(plain(&Fault::new("InternalFailure", problem).status(500), &request_id)), None);
        }
    };
    let protocol = protocol::protocol_of(model, &request);
    let (name, operation) = protocol::operation_of(model, service, protocol, &request);
    let mut exchange = Exchange {
        service: service.name,
        operation: name.clone(),
        region: signature.as_ref().map(|signature| signature.region.clone()).unwrap_or_default(),
        ..Exchange::default()
    };
    let mut disruption = None;
    let answer = Answer { shared, service, model, protocol, operation: operation.as_deref(), request_id: &request_id };
    let result = answer.result(&request, signature.as_ref(), &mut exchange, &mut disruption);
    let reply = match &result {
        Ok((output, body)) => {
            let operation = operation.as_deref().unwrap_or_else(|| unreachable!("it succeeded"));
            protocol::reply(model, protocol, operation, output, body.clone(), &request_id)
        }
        Err(fault) => protocol::fault(model, protocol, operation.as_deref(), fault, &request, &request_id),
    };
    let is_lost = matches!(disruption, Some(Disruption::LostRequest | Disruption::LostReply | Disruption::Reset));
    exchange.outcome = match &result {
        Ok(_) => Outcome::Succeeded,
        Err(fault) => Outcome::Failed(fault.code.clone()),
    };
    exchange.is_lost = is_lost;
    shared.record(exchange);
    ((!is_lost).then_some(reply), disruption)
}

struct Answer<'a> {
    shared: &'a Shared,
    service: &'static Service,
    model: &'static Model,
    protocol: Protocol,
    operation: Option<&'a Operation>,
    request_id: &'a str,
}

impl Answer<'_> {
    fn result(
        &self,
        request: &Request,
        signature: Option<&Signature>,
        exchange: &mut Exchange,
        disruption: &mut Option<Disruption>,
    ) -> Result<(Value, Bytes), Fault> {
        let (service, model, protocol) = (self.service, self.model, self.protocol);
        let mut world = self.shared.world();
        let step = self.shared.timing.step.max(std::time::Duration::from_millis(1));
        world.advance(step);
        let signed = match signature {
            Some(signature) => Some(signature.verify(request, &world, protocol)?),
            None if self.operation.and_then(|o| o.authtype.as_deref()) == Some("none") => None,
            None => return Err(refusal_of(service.name, protocol, Refusal::NoSignature)),
        };
        if let Some(signed) = &signed {
            exchange.account.clone_from(&signed.credential.account);
            exchange.identity.clone_from(&signed.credential.identity);
        }
        let Some(operation) = self.operation else {
            self.shared.violation(format!("{}: the model has no operation {:?}", service.name, exchange.operation));
            return Err(unknown_operation(protocol, &exchange.operation));
        };
        let body = body::decode(service.name, request, signed.as_ref())?;
        let input = protocol::parse(model, protocol, operation, &Request { body, ..request.clone() });
        let mut problems = input.problems;
        let empty = Reference::default();
        if let Some(reference) = &operation.input {
            check::check(model, reference, &input.value, "input", &mut problems);
        }
        exchange.input = check::redacted(model, operation.input.as_ref().unwrap_or(&empty), &input.value);
        if !problems.is_empty() {
            let problems = problems.join("; ");
            self.shared.violation(format!("{} {}: {problems}", service.name, operation.name));
            let code = match protocol {
                Protocol::Ec2 => "InvalidParameterValue",
                Protocol::Query | Protocol::RestXml => "ValidationError",
                _ => "ValidationException",
            };
            return Err(Fault::new(code, problems));
        }
        *disruption = lock(&self.shared.log.faults).next(service.name, &operation.name, &exchange.region);
        match disruption {
            Some(Disruption::Throttled) => return Err(throttled(model, service.name, protocol)),
            Some(Disruption::Internal) => return Err(internal(model, service.name, protocol, 500)),
            Some(Disruption::Unavailable) => return Err(internal(model, service.name, protocol, 503)),
            Some(Disruption::Refused(fault)) => return Err(fault.clone()),
            Some(Disruption::LostRequest | Disruption::Reset) => {
                return Err(Fault::new("Lost", "the connection ends before the request takes effect"));
            }
            Some(Disruption::LostReply | Disruption::Delayed(_)) | None => {}
        }
        let call = Call {
            service: service.name,
            operation: operation.name.clone(),
            account: exchange.account.clone(),
            region: exchange.region.clone(),
            identity: exchange.identity.clone(),
            identity_id: signed.as_ref().map(|signed| signed.credential.id.clone()).unwrap_or_default(),
            access_key: signed.map(|signed| signed.access_key).unwrap_or_default(),
            input: input.value,
            now: world.now(),
            request_id: self.request_id.to_owned(),
            host: request.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned(),
            timing: self.shared.timing,
            random: world.random.clone(),
            body: input.body,
            reply_body: Default::default(),
            paginator: model.paginator(&operation.name).cloned(),
            protocol,
        };
        if let Some(authorizer) = world.authorizer {
            authorizer(&world, &call)?;
        }
        if protocol == Protocol::Ec2 && call.is("DryRun") {
            let message = "Request would have succeeded, but DryRun flag is set.";
            return Err(Fault::new("DryRunOperation", message).status(412));
        }
        let handler = service.operations.iter().find(|(name, _)| *name == operation.name).map(|(_, handler)| *handler);
        let Some(handler) = handler else {
            self.shared.violation(format!("{} {}: not simulated", service.name, operation.name));
            return Err(Fault::new("NotImplemented", "not simulated").status(501));
        };
        let output = handler(&mut world, &call)?;
        drop(world);
        self.check_output(operation, &output);
        Ok((output, call.reply_body.take()))
    }

    fn check_output(&self, operation: &Operation, output: &Value) {
        let mut problems = Vec::new();
        match &operation.output {
            Some(reference) => check::check(self.model, reference, output, "output", &mut problems),
            None if output.as_object().is_some_and(|members| !members.is_empty()) => {
                problems.push("output: the operation has none".to_owned());
            }
            None => {}
        }
        if !problems.is_empty() {
            let problems = problems.join("; ");
            self.shared.violation(format!("{} {}: {problems}", self.service.name, operation.name));
        }
    }
}

fn unknown_operation(protocol: Protocol, name: &str) -> Fault {
    match protocol {
        Protocol::Ec2 => Fault::new("InvalidAction", format!("The action {name} is not valid for this web service.")),
        Protocol::Query => Fault::new("InvalidAction", format!("Could not find operation {name} for version")),
        Protocol::RestXml => {
            Fault::new("MethodNotAllowed", "The specified method is not allowed against this resource.").status(405)
        }
        Protocol::RestJson => Fault::new("UnknownOperationException", "").status(404),
        Protocol::Json | Protocol::RpcCbor => Fault::new("UnknownOperationException", ""),
    }
}

/// The service's error for too many requests: the model's if it has one, else that of the protocol.
fn throttled(model: &Model, service: &str, protocol: Protocol) -> Fault {
    let modelled = ["ThrottlingException", "ThrottledException", "TooManyRequestsException"];
    if let Some(code) = modelled.into_iter().find(|code| model.shape(code).is_some()) {
        return Fault::new(code, "Rate exceeded");
    }
    match (service, protocol) {
        ("ec2", _) => Fault::new("RequestLimitExceeded", "Request limit exceeded.").status(503),
        ("s3", _) => Fault::new("SlowDown", "Please reduce your request rate.").status(503),
        (_, Protocol::Query) => Fault::new("Throttling", "Rate exceeded"),
        _ => Fault::new("ThrottlingException", "Rate exceeded"),
    }
}

/// The service's error for a failure of its own, with status 500 or 503.
fn internal(model: &Model, service: &str, protocol: Protocol, status: u16) -> Fault {
    let modelled: &[&str] = match status {
        503 => &["ServiceUnavailableException"],
        _ => &[
            "InternalServerException",
            "InternalServiceException",
            "InternalErrorException",
            "InternalServiceError",
            "InternalServiceFault",
            "KMSInternalException",
            "ServerException",
            "ServiceFailureException",
        ],
    };
    let code = modelled.iter().find(|code| model.shape(code).is_some()).copied();
    let code = code.unwrap_or(match (service, protocol, status) {
        ("ec2", _, 503) => "Unavailable",
        ("ec2" | "s3", _, 500) => "InternalError",
        (_, _, 503) => "ServiceUnavailable",
        (_, Protocol::Query, _) => "InternalFailure",
        _ => "InternalServerError",
    });
    Fault::new(code, "We encountered an internal error. Please try again.").status(status)
}

/// An answer where not even the service is known.
fn plain(fault: &Fault, request_id: &str) -> Reply {
    let body = format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{}</Code><Message>{}</Message></Error><RequestId>{request_id}\
         </RequestId></ErrorResponse>",
        xml::escape(&fault.code),
        xml::escape(&fault.message)
    );
    let headers = vec![("content-type".to_owned(), "text/xml".to_owned())];
    Reply { status: fault.status.unwrap_or(400), headers, body: body.into() }
}

/// The sources of all behaviours, with how many each has.
#[must_use]
pub fn ledger() -> (Vec<Behaviour>, HashMap<&'static str, usize>) {
    let behaviours: Vec<Behaviour> =
        LEDGER.iter().chain(SERVICES.iter().flat_map(|service| service.ledger)).copied().collect();
    let mut counts = HashMap::new();
    for behaviour in &behaviours {
        *counts.entry(behaviour.source.kind()).or_default() += 1;
    }
    (behaviours, counts)
}
