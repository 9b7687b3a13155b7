"""kube_token.py sign|key|verify: what AWS's and Google's own libraries say of a token. JSON comes in and goes out.

sign    the address of STS that botocore signs for a cluster, as `aws eks get-token` has it signed
key     an RSA key, as service accounts have them
verify  the claims of an assertion, if Google's library believes it
"""

import datetime
import json
import sys

asked = json.load(sys.stdin) if sys.argv[1] != "key" else None


def sign():
    import botocore.auth
    import botocore.session

    now = datetime.datetime.strptime(asked["time"], "%Y%m%dT%H%M%SZ")
    botocore.auth.get_current_datetime = lambda *_, **__: now
    session = botocore.session.Session()
    session.set_credentials(asked["access"], asked["secret"], asked.get("session"))
    client = session.create_client("sts", region_name=asked["region"])

    def name_cluster(request, **_):
        request.headers["x-k8s-aws-id"] = asked["cluster"]

    client.meta.events.register("before-sign.sts.GetCallerIdentity", name_cluster)
    url = client.generate_presigned_url("get_caller_identity", Params={}, ExpiresIn=60, HttpMethod="GET")
    return {"url": url}


def key():
    from cryptography.hazmat.primitives import serialization as out
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(out.Encoding.PEM, out.PrivateFormat.PKCS8, out.NoEncryption())
    public = private.public_key().public_bytes(out.Encoding.PEM, out.PublicFormat.SubjectPublicKeyInfo)
    return {"private": pem.decode(), "public": public.decode()}


def verify():
    from google.auth import jwt

    claims = jwt.decode(asked["token"], certs=asked["public"], audience=asked["audience"])
    return {"header": jwt.decode_header(asked["token"]), "claims": claims}


json.dump({"sign": sign, "key": key, "verify": verify}[sys.argv[1]](), sys.stdout)
