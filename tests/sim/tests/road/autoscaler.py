#!/usr/bin/env python3
"""What Cluster Autoscaler is to a kubelet: a program that answers its probe."""
import http.server
import sys


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


ADDRESS = next(argument.split("=", 1)[1] for argument in sys.argv if argument.startswith("--address="))
HOST, PORT = ADDRESS.rsplit(":", 1)
http.server.ThreadingHTTPServer((HOST, int(PORT)), Healthy).serve_forever()
