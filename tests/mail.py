"""mail.py FOLDER [CERTIFICATE KEY]: a mail server (aiosmtpd) that keeps each mail as a file, and asks for `ada` with `hunter2 %`.

With a certificate it speaks TLS from the first byte. It offers the logins that MAIL_LOGINS names.
"""

import asyncio
import os
import pathlib
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

folder = pathlib.Path(sys.argv[1])
count = 0


class Keeper:
    async def handle_DATA(self, server, session, envelope):
        global count
        count += 1
        text = f"{envelope.mail_from} -> {','.join(envelope.rcpt_tos)}\n".encode() + envelope.content
        beside = folder / f"new-{count}"
        beside.write_bytes(text)
        beside.rename(folder / f"mail-{count}")
        return "250 kept"


def login(server, session, envelope, mechanism, data):
    # Not handled: what is to be said is said by the library.
    return AuthResult(success=(data.login, data.password) == (b"ada", b"hunter2 %"), handled=False)


def protocol():
    hidden = {"PLAIN", "LOGIN"} - set(os.environ.get("MAIL_LOGINS", "PLAIN LOGIN").split())
    return SMTP(
        Keeper(), authenticator=login, auth_required=True, auth_require_tls=False, auth_exclude_mechanism=hidden, loop=loop
    )


async def main():
    tls = None
    if len(sys.argv) > 2:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(sys.argv[2], sys.argv[3])
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=tls)
    print("listening on http://127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


loop = asyncio.new_event_loop()
loop.run_until_complete(main())
