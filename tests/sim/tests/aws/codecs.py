"""Requests as botocore writes them, and answers as it reads them, of every operation of the services given.

`requests SERVICE…` prints a line of JSON for each operation, protocol and size: the request, and its input as handlers see
it; then the same of outputs. `replies` reads such lines with answers, and says what botocore reads otherwise.
"""

import base64
import datetime
import json
import re
import sys

import botocore.parsers
import botocore.serialize
import botocore.session
from botocore.awsrequest import HeadersDict, create_request_object, prepare_request_dict
from botocore.model import OperationNotFoundError
from botocore.serialize import SERIALIZERS

TIME = datetime.datetime(2026, 11, 23, 7, 43, 10, tzinfo=datetime.timezone.utc)
TEXTS = ["a", "1", "abc-1", "Ab1_-", "2026-11-23", "arn:aws:iam::123456789012:role/a", "https://example.com/a", "s3://a/b",
         "123456789012", "sha256:" + "a" * 64, "0" * 8 + "-0000-0000-0000-" + "0" * 12, "ml.m5.large", "10.0.0.0/16"]
SPECIAL = "x é<&>\"'+%=/ y"
# The one answer that a hook of the client reads, not the parser.
HOOKED = {("s3", "GetBucketLocation")}

# Old ones, two members of which have one name in XML.
AMBIGUOUS = {("s3", "PutBucketNotification"), ("s3", "GetBucketNotification")}
# Members that botocore adds to the models, and its hooks take away or read.
ADDED = {"SourceRegion", "Expires"}

SESSION = botocore.session.get_session()


def model_of(service):
    return SESSION.get_service_model(service)


def text(shape, largest, where):
    enum = shape.metadata.get("enum")
    if enum:
        return enum[-1 if largest else 0]
    least, most = int(shape.metadata.get("min", 0)), int(shape.metadata.get("max", 1 << 30))
    pattern = shape.metadata.get("pattern")
    if pattern:
        try:
            known = re.compile(pattern)
            return next(one for one in TEXTS if least <= len(one) <= most and known.fullmatch(one))
        except (re.error, StopIteration):
            # Not one of Python's, or of nothing known: the text is right but for its pattern.
            pass
    value = SPECIAL if largest and where == "body" and not pattern else "a/b" if where == "greedy" else "a b" if where == "uri" else "ab"
    return (value * (least // len(value) + 1))[: max(least, min(most, len(value)))] or "a"


def innermost(shape):
    while shape.type_name in ("list", "map"):
        shape = shape.member if shape.type_name == "list" else shape.value
    return shape


def value(shape, largest, where="body", above=()):
    kind = shape.type_name
    if getattr(shape, "is_document_type", False):
        return {"a": [1, "b", True]}
    if kind == "structure":
        members = {}
        names = list(shape.members) if largest else list(shape.required_members)
        if getattr(shape, "is_tagged_union", False):
            # One that does not hold the same again.
            names = sorted(shape.members, key=lambda name: innermost(shape.members[name]).name == shape.name)[:1]
        # Forms do not show a structure that is empty.
        names = names or list(shape.members)[:1] if above else names
        for name in names:
            if name in ADDED and name not in shape.required_members:
                continue
            member = shape.members[name]
            inner = innermost(member)
            is_endless = inner.type_name == "structure" and (inner.name in above or len(above) > 6)
            if member.serialization.get("eventstream") or is_endless and name not in shape.required_members:
                continue
            location = member.serialization.get("location", "body")
            if location == "uri" and member.serialization.get("greedy"):
                location = "greedy"
            if location == "statusCode":
                continue
            members[name] = value(member, largest, location if not above else "body", (*above, shape.name))
        return members
    if kind == "list":
        least, most = shape.metadata.get("min", 0), shape.metadata.get("max", 1 << 30)
        count = max(least, min(2 if largest else 1, most))
        # Many of something large would be too many.
        return [value(shape.member, largest and len(above) < 4, where, above)] * int(min(count, 4 if above else count))
    if kind == "map":
        key = value(shape.key, largest and not shape.key.metadata.get("pattern"), "header" if where == "headers" else "body", above)
        item = value(shape.value, largest, "header" if where == "headers" else where, above)
        return {(f"{key}{number}" if number else key): item for number in range(max(1, int(shape.metadata.get("min", 1))))}
    if kind in ("integer", "long"):
        bound = (1 << 31) - 1 if kind == "integer" else 1 << 40
        return int(shape.metadata.get("max", bound) if largest else shape.metadata.get("min", 1))
    if kind in ("float", "double"):
        return float(shape.metadata.get("min", 0)) + 0.5 if not largest else float(shape.metadata.get("max", 1.25))
    if kind == "boolean":
        return largest
    if kind == "timestamp":
        return TIME
    if kind == "blob":
        return b"\x00\xff bytes"
    return text(shape, largest, where)


def seen(shape, given):
    """The value as handlers see it."""
    kind = shape.type_name
    if getattr(shape, "is_document_type", False):
        return given
    if kind == "structure":
        members = {name: seen(shape.members[name], value) for name, value in given.items()}
        return {name: value for name, value in members.items() if not shape.members[name].serialization.get("streaming")}
    if kind == "list":
        return [seen(shape.member, item) for item in given]
    if kind == "map":
        return {key: seen(shape.value, item) for key, item in given.items()}
    if kind == "timestamp":
        return given.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    if kind == "blob":
        return base64.b64encode(given if isinstance(given, bytes) else given.encode()).decode()
    return given


def streamed(shape, given):
    for name, member in shape.members.items():
        if member.serialization.get("streaming") and name in given:
            return base64.b64encode(given[name]).decode()
    return ""


def is_stream_of_events(shape):
    return shape is not None and any(member.serialization.get("eventstream") for member in shape.members.values())


def protocols(model):
    known = model.metadata.get("protocols") or [model.metadata["protocol"]]
    return [protocol for protocol in known if protocol in SERIALIZERS]


def requests(services):
    for service in services:
        model = model_of(service)
        for name in model.operation_names:
            operation = model.operation_model(name)
            for protocol in protocols(model):
                serializer = botocore.serialize.create_serializer(protocol, False)
                for largest in (False, True):
                    line = {"service": service, "protocol": protocol, "operation": name}
                    if not is_stream_of_events(operation.input_shape) and (service, name) not in AMBIGUOUS:
                        shape = operation.input_shape
                        given = value(shape, largest) if shape else {}
                        written = serializer.serialize_to_request(dict(given), operation)
                        prepare_request_dict(written, endpoint_url="http://127.0.0.1", context={"is_presign_request": False})
                        sent = create_request_object(written).prepare()
                        body = sent.body if isinstance(sent.body, bytes) else (sent.body or "").encode()
                        headers = {key: value.decode() if isinstance(value, bytes) else str(value) for key, value in sent.headers.items()}
                        print(json.dumps({
                            **line,
                            "request": {"method": sent.method, "url": sent.url, "headers": headers,
                                        "body": base64.b64encode(body).decode()},
                            "input": seen(shape, given) if shape else {},
                            "streamed": streamed(shape, given) if shape else "",
                        }))
                    shape = operation.output_shape
                    if not is_stream_of_events(shape) and (service, name) not in HOOKED | AMBIGUOUS:
                        given = value(shape, largest) if shape else {}
                        print(json.dumps({**line, "output": seen(shape, given) if shape else {},
                                          "streamed": streamed(shape, given) if shape else "",
                                          "errors": [error.name for error in operation.error_shapes]}))


def is_same(wanted, read):
    if isinstance(wanted, dict) and isinstance(read, dict):
        # The parser adds what is empty.
        extra = [name for name in read if name not in wanted and read[name] not in ({}, [], "", None)]
        return not extra and all(name in read and is_same(value, read[name]) for name, value in wanted.items())
    if isinstance(wanted, list) and isinstance(read, list):
        return len(wanted) == len(read) and all(map(is_same, wanted, read))
    if isinstance(wanted, float):
        return float(read) == wanted
    return wanted == read


class Stream:
    """A body that is read once."""

    def __init__(self, content):
        self.content = content

    def read(self):
        return self.content


def replies():
    models, wrong, count = {}, 0, 0
    for line in sys.stdin:
        line = json.loads(line)
        count += 1
        model = models.setdefault(line["service"], model_of(line["service"]))
        operation = model.operation_model(line["operation"])
        parser = botocore.parsers.create_parser(line["protocol"])
        body = base64.b64decode(line["body"])
        shape = None if "error" in line else operation.output_shape
        if operation.has_streaming_output and shape is not None:
            body_given = Stream(body)
        else:
            body_given = body
        headers = HeadersDict()
        for name, value in line["headers"]:
            headers[name] = value
        answer = {"status_code": line["status"], "headers": headers, "body": body_given, "context": {"operation_name": line["operation"]}}
        name = (line["service"], line["protocol"], line["operation"])
        try:
            read = parser.parse(answer, shape)
            metadata = read.pop("ResponseMetadata")
            # Without an output the parser of CBOR leaves it out.
            if metadata.get("RequestId", "an-id") != "an-id":
                raise AssertionError(f"the request's id is {metadata}")
            if "error" in line:
                code = read["Error"]["Code"]
                if line["method"] != "HEAD" and (code != line["error"] or read["Error"]["Message"] != "a <message>"):
                    raise AssertionError(f"{read['Error']} is not {line['error']}")
                continue
            if shape is None:
                continue
            for member, inner in shape.members.items():
                if inner.serialization.get("streaming") and member in read:
                    stream = read.pop(member)
                    if base64.b64encode(stream.read()).decode() != line["streamed"]:
                        raise AssertionError("the body differs")
            read = seen(shape, read)
            if not is_same(line["output"], read):
                raise AssertionError(f"{json.dumps(line['output'])[:1500]}\n is read as\n {json.dumps(read)[:1500]}")
        except Exception as error:
            wrong += 1
            if wrong <= 20:
                print(name, type(error).__name__, error, body[:1500])
    print(f"{count} answers, {wrong} differ")
    sys.exit(bool(wrong))


if sys.argv[1] == "requests":
    requests(sys.argv[2:])
else:
    replies()
