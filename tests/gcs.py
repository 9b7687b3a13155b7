"""Google Cloud Storage in small: buckets and whole objects with generations, by the XML protocol and by the JSON one.

The engine's client speaks the XML protocol, Google's own Python client the JSON one; both see the same objects here. What is ours is
little: one lock, under which a condition is looked at and the object written. `gcs_check.py` proves the conditions with Google's client,
`orchestrator/tests/stores/real.rs` the XML half. With `--lax` conditions are ignored, as the usual stand-ins do: then both must fail.

Left out: versions that are not live, permissions, uploads in parts, everything else.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

LAX = "--lax" in sys.argv[1:]
# The longest page of a list, as of the real one.
PAGE = 1000
# The longest object that is taken.
LONGEST = 64 << 20


class Refused(Exception):
    """An answer that is an error: status, code of the XML protocol, sentence."""


class Thing:
    def __init__(self, data, generation, kind):
        self.data, self.generation, self.kind = data, generation, kind
        self.md5 = hashlib.md5(data).digest()
        self.at = time.time()

    def when(self, form="%Y-%m-%dT%H:%M:%S.000Z"):
        return time.strftime(form, time.gmtime(self.at))


class Store:
    def __init__(self):
        self.lock = threading.Lock()
        self.buckets = {}
        self.last = 0

    def make(self, bucket):
        with self.lock:
            if bucket in self.buckets:
                raise Refused(409, "BucketAlreadyOwnedByYou", "Your previous request to create the named bucket succeeded and you already own it.")
            self.buckets[bucket] = {}

    def things(self, bucket):
        if bucket not in self.buckets:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
        return self.buckets[bucket]

    def check(self, thing, match):
        """A condition holds for the live generation; 0 stands for: there is none."""
        live = thing.generation if thing else 0
        if match is not None and not LAX and int(match) != live:
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")

    def put(self, bucket, name, data, kind, match):
        with self.lock:
            things = self.things(bucket)
            self.check(things.get(name), match)
            # Microseconds since 1970 as the real ones, and no two alike.
            self.last = max(self.last + 1, time.time_ns() // 1000)
            things[name] = Thing(data, self.last, kind)
            return things[name]

    def get(self, bucket, name, match=None, generation=None):
        with self.lock:
            thing = self.things(bucket).get(name)
            if thing is None or (generation is not None and int(generation) != thing.generation):
                raise Refused(404, "NoSuchKey", "The specified key does not exist.")
            self.check(thing, match)
            return thing

    def delete(self, bucket, name, match):
        with self.lock:
            things = self.things(bucket)
            self.check(things.get(name), match)
            if things.pop(name, None) is None:
                raise Refused(404, "NoSuchKey", "The specified key does not exist.")

    def list(self, bucket, prefix, delimiter, after, start, most):
        """One page: objects and folders in order, and the name after which the next page begins."""
        most = min(most, PAGE)
        with self.lock:
            things = self.things(bucket)
            found, folders, last = [], [], None
            for name in sorted(things):
                if not name.startswith(prefix) or name <= after or name < start:
                    continue
                at = name.find(delimiter, len(prefix)) if delimiter else -1
                folder = name[: at + len(delimiter)] if at >= 0 else None
                if folder is not None and (folder in folders or after.startswith(folder)):
                    last = name
                    continue
                if len(found) + len(folders) == most:
                    return found, folders, last
                if folder is not None:
                    folders.append(folder)
                else:
                    found.append((name, things[name]))
                last = name
            return found, folders, None


STORE = Store()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", kind="application/json", headers=(), length=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self):
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        length = int(self.headers.get("Content-Length") or 0)
        if length > LONGEST:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(length)
        parts = [unquote(part) for part in url.path.split("/")[1:]]
        by_json = bool(re.match(r"/(upload/|download/)?storage/v1/", url.path))
        try:
            if by_json:
                self.json(url.path, query, body)
            else:
                self.xml(parts[0], "/".join(parts[1:]), query, body)
        except Refused as refused:
            status, code, sentence = refused.args
            if by_json:
                error = {"error": {"code": status, "message": sentence, "errors": [{"message": sentence, "reason": "conditionNotMet" if status == 412 else "notFound"}]}}
                self.answer(status, json.dumps(error).encode())
            else:
                text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{sentence}</Message></Error>"
                self.answer(status, text.encode(), "application/xml; charset=UTF-8")
        except ValueError as error:
            self.answer(400, json.dumps({"error": {"code": 400, "message": str(error)}}).encode())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    # The XML protocol: PUT, GET, HEAD and DELETE of /BUCKET/NAME, GET /BUCKET?list-type=2.

    def xml(self, bucket, name, query, body):
        match = self.headers.get("x-goog-if-generation-match")
        if not name and self.command == "PUT":
            STORE.make(bucket)
            self.answer(200)
        elif not name and self.command == "GET":
            self.xml_list(bucket, query)
        elif self.command == "PUT":
            thing = STORE.put(bucket, name, body, self.headers.get("Content-Type", "application/octet-stream"), match)
            self.answer(200, headers=self.told(thing))
        elif self.command in ("GET", "HEAD"):
            thing = STORE.get(bucket, name, match, query.get("generation"))
            headers = [*self.told(thing), ("Last-Modified", thing.when("%a, %d %b %Y %H:%M:%S GMT"))]
            data = thing.data if self.command == "GET" else b""
            self.answer(200, data, thing.kind, headers, len(thing.data))
        elif self.command == "DELETE":
            STORE.delete(bucket, name, match)
            self.answer(204)
        else:
            raise Refused(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")

    def told(self, thing):
        md5 = base64.b64encode(thing.md5).decode()
        return [
            ("ETag", f'"{thing.md5.hex()}"'),
            ("x-goog-generation", str(thing.generation)),
            ("x-goog-metageneration", "1"),
            ("x-goog-hash", f"md5={md5}"),
        ]

    def xml_list(self, bucket, query):
        after = max(query.get("start-after", ""), query.get("continuation-token", ""))
        found, folders, more = STORE.list(
            bucket, query.get("prefix", ""), query.get("delimiter", ""), after, "", int(query.get("max-keys", PAGE))
        )
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><Generation>{thing.generation}</Generation><MetaGeneration>1</MetaGeneration>"
            f'<LastModified>{thing.when()}</LastModified><ETag>"{thing.md5.hex()}"</ETag><Size>{len(thing.data)}</Size></Contents>'
            for name, thing in found
        )
        prefixes = "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
        token = f"<NextContinuationToken>{escape(more)}</NextContinuationToken>" if more else ""
        text = (
            "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'>"
            f"<Name>{bucket}</Name><Prefix>{escape(query.get('prefix', ''))}</Prefix>"
            f"<KeyCount>{len(found) + len(folders)}</KeyCount><IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
            f"{token}{contents}{prefixes}</ListBucketResult>"
        )
        self.answer(200, text.encode(), "application/xml; charset=UTF-8")

    # The JSON protocol, as far as Google's Python client needs it for whole objects.

    def json(self, path, query, body):
        match = query.get("ifGenerationMatch")
        if path == "/storage/v1/b" and self.command == "POST":
            STORE.make(json.loads(body)["name"])
            return self.say({"kind": "storage#bucket", "name": json.loads(body)["name"]})
        upload = re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path)
        if upload and self.command == "POST":
            name, kind, data = self.uploaded(query, body)
            thing = STORE.put(upload[1], name, data, kind, match)
            return self.say(self.resource(upload[1], name, thing))
        listed = re.fullmatch(r"/storage/v1/b/([^/]+)/o", path)
        if listed and self.command == "GET":
            return self.json_list(listed[1], query)
        one = re.fullmatch(r"/(download/)?storage/v1/b/([^/]+)/o/([^/]+)", path)
        if one and self.command == "GET":
            bucket, name = one[2], unquote(one[3])
            thing = STORE.get(bucket, name, match, query.get("generation"))
            if one[1] or query.get("alt") == "media":
                return self.answer(200, thing.data, thing.kind, self.told(thing))
            return self.say(self.resource(bucket, name, thing))
        if one and self.command == "DELETE":
            STORE.delete(one[2], unquote(one[3]), match)
            return self.answer(204)
        raise Refused(404, "NotFound", "Not Found")

    def uploaded(self, query, body):
        kind = self.headers.get("Content-Type", "application/octet-stream")
        if query.get("uploadType") == "media":
            return query["name"], kind, body
        if query.get("uploadType") != "multipart":
            raise ValueError("only uploads of one request are known here")
        mark = b"--" + re.search(r'boundary="?([^";]+)', kind)[1].encode()
        about, content = body.split(mark)[1:3]
        about = json.loads(about.split(b"\r\n\r\n", 1)[1])
        head, data = content.split(b"\r\n\r\n", 1)
        kind = re.search(rb"(?i)content-type: *([^\r\n]+)", head)[1].decode()
        return about["name"], kind, data.removesuffix(b"\r\n")

    def json_list(self, bucket, query):
        found, folders, more = STORE.list(
            bucket,
            query.get("prefix", ""),
            query.get("delimiter", ""),
            query.get("pageToken", ""),
            query.get("startOffset", ""),
            int(query.get("maxResults", PAGE)),
        )
        answer = {"kind": "storage#objects", "items": [self.resource(bucket, name, thing) for name, thing in found]}
        if folders:
            answer["prefixes"] = folders
        if more:
            answer["nextPageToken"] = more
        self.say(answer)

    def resource(self, bucket, name, thing):
        host = f"http://{self.headers['Host']}"
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{thing.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(thing.generation),
            "metageneration": "1",
            "contentType": thing.kind,
            "size": str(len(thing.data)),
            "md5Hash": base64.b64encode(thing.md5).decode(),
            "updated": thing.when(),
            "mediaLink": f"{host}/download/storage/v1/b/{bucket}/o/{quote(name, safe='')}?generation={thing.generation}&alt=media",
        }

    def say(self, document):
        self.answer(200, json.dumps(document).encode())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    # Many writers that race arrive at once.
    request_queue_size = 128


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
