"""kube_token.py sign|key|verify: what AWS's and Google's own libraries say of a token. JSON comes in and goes out.

sign    the address of STS that botocore signs for a cluster, as `aws eks get-token` has it signed
key     an RSA key, as service accounts have them
verify  the claims of an assertion, if Google's library believes it
certificate         an RSA key with its certificate, as `az ad sp create-for-rbac --create-cert` writes them
verify-certificate  the claims of an assertion, if it is signed by the key of that certificate and names it
"""

import base64
import datetime
import hashlib
import json
import sys

asked = json.load(sys.stdin) if sys.argv[1] not in ("key", "certificate") else None


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


def certificate():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as out
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "deploy")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    signed = builder.sign(private, hashes.SHA256()).public_bytes(out.Encoding.PEM).decode()

    def pem(form, encryption):
        return private.private_bytes(out.Encoding.PEM, form, encryption).decode()

    return {
        "certificate": signed,
        "pkcs8": pem(out.PrivateFormat.PKCS8, out.NoEncryption()),
        "pkcs1": pem(out.PrivateFormat.TraditionalOpenSSL, out.NoEncryption()),
        "encrypted": pem(out.PrivateFormat.PKCS8, out.BestAvailableEncryption(b"x")),
    }


def verify_certificate():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.serialization import Encoding

    def decoded(part):
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

    known = x509.load_pem_x509_certificate(asked["certificate"].encode())
    head, claims, signature = asked["token"].split(".")
    # PS256: https://www.rfc-editor.org/rfc/rfc7518#section-3.5
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
    known.public_key().verify(decoded(signature), f"{head}.{claims}".encode(), pss, hashes.SHA256())
    header = json.loads(decoded(head))
    assert header["alg"] == "PS256", header
    assert decoded(header["x5t#S256"]) == hashlib.sha256(known.public_bytes(Encoding.DER)).digest(), header
    return json.loads(decoded(claims))


commands = [sign, key, verify, certificate, verify_certificate]
json.dump({one.__name__.replace("_", "-"): one for one in commands}[sys.argv[1]](), sys.stdout)
