"""Makes a container in an emulator of Azure Blob Storage: blob_container.py ADDRESS NAME."""

import base64
import email.utils
import hashlib
import hmac
import sys
import urllib.request

ACCOUNT = "devstoreaccount1"
# Published with the emulator: it guards nothing.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-08-06"

address, name = sys.argv[1:]
now = email.utils.formatdate(usegmt=True)
text = f"PUT{chr(10) * 12}x-ms-date:{now}\nx-ms-version:{VERSION}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
signature = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
request = urllib.request.Request(f"{address}/{ACCOUNT}/{name}?restype=container", method="PUT")
request.add_header("x-ms-date", now)
request.add_header("x-ms-version", VERSION)
request.add_header("authorization", f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}")
request.add_header("content-length", "0")
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
assert opener.open(request).status == 201
