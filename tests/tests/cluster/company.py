"""Files over HTTPS that are reached by a proxy alone, whatever name is asked of it. Says the proxy's port; ends with its standard input."""

import functools, http.server, socket, ssl, sys, threading

FOLDER, CERTIFICATE, KEY, LOG = sys.argv[1:]


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_CONNECT(self):
        with open(LOG, "a") as log:
            log.write(self.path + "\n")
        there = socket.create_connection(files.server_address)
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        back = threading.Thread(target=pump, args=(there, self.connection), daemon=True)
        back.start()
        pump(self.connection, there)
        back.join()

    def log_message(self, *_):
        pass


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=FOLDER))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
files.socket = context.wrap_socket(files.socket, server_side=True)
threading.Thread(target=files.serve_forever, daemon=True).start()
proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
print(proxy.server_address[1], flush=True)
threading.Thread(target=proxy.serve_forever, daemon=True).start()
sys.stdin.read()
