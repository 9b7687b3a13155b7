#!/usr/bin/env python3
"""Measures the time to the first token of conversations on two replicas: by the gateway, which sends a message to the replica
that has the ones before it, against requests that take turns.

Each round starts the gateway and new replicas, so that caches are empty. Prompts are token ids, so any model will do; random
weights from make_gguf.py are enough. A message adds tokens in place of the last answer and of the next question.

  replicas.py target/release/textnlp-server /tmp/smollm2-135m-q8_0.gguf --vocabulary 49000 --ceiling 0.5
"""
import argparse
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("program", help="textnlp-server")
parser.add_argument("model", help="a GGUF file or a model folder")
parser.add_argument("--vocabulary", type=int, default=2000, help="token ids are below this")
parser.add_argument("--threads", type=int, default=1, help="compute threads of each replica")
parser.add_argument("--conversations", type=int, default=12)
parser.add_argument("--clients", type=int, default=2, help="conversations at the same time")
parser.add_argument("--messages", type=int, default=6, help="messages of a conversation")
parser.add_argument("--first", type=int, default=512, help="tokens of the first message, with the instructions")
parser.add_argument("--more", type=int, default=64, help="tokens that each message adds")
parser.add_argument("--instructions", type=int, default=0, help="tokens that all conversations begin with")
parser.add_argument("--answer", type=int, default=8, help="tokens of an answer")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--ceiling", type=float, help="highest ratio of the later messages; fail above it")
args = parser.parse_args()

READY_TIMEOUT = 120


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=600)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


@contextlib.contextmanager
def processes():
    """The sockets of the gateway and of two replicas."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        replicas = [folder / "server-0.sock", folder / "server-1.sock"]
        gateway = folder / "gateway.sock"

        def start(command, name, config):
            file = folder / f"{name}.yaml"
            # JSON is YAML.
            file.write_text(json.dumps(config))
            log = stack.enter_context(open(folder / f"{name}.log", "w+"))
            process = subprocess.Popen([args.program, command, "--config", file], stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process, log

        started = []
        for path in replicas:
            server = {
                "environment": "bench",
                "phase": "development",
                "api": {"listen": f"unix:{path}", "metrics_listen": "127.0.0.1:0"},
                "models": {"threads": args.threads, "serve": [{"name": "bench", "path": str(pathlib.Path(args.model).resolve())}]},
                "database": {"url": f"sqlite://{folder}/{path.stem}.db"},
                "security": {"api_keys_enabled": False},
                "monitoring": {"log_level": "WARN"},
            }
            config = folder / f"{path.stem}.yaml"
            config.write_text(json.dumps({"textnlp": server}))
            subprocess.run([args.program, "admin", "migrate", "--config", config], check=True, stdout=subprocess.DEVNULL)
            started.append((path, *start("serve", path.stem, {"textnlp": server})))
        for path, process, log in started:
            wait(path, process, log)
        backends = [{"name": path.stem, "listen": f"unix:{path}"} for path in replicas]
        process, log = start("gateway", "gateway", {"gateway": {"listen": f"unix:{gateway}", "backends": backends}})
        wait(gateway, process, log)
        yield gateway, replicas


def wait(path, process, log):
    deadline = time.monotonic() + READY_TIMEOUT
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = Connection(path)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            sys.exit(f"error: {path.stem} did not become ready:\n{log.read()}")
        time.sleep(0.05)


def ask(path, prompt):
    """The seconds to the first token, and the tokens that were cached."""
    connection = Connection(path)
    body = {"prompt": prompt, "max_tokens": args.answer, "stream": True, "ignore_eos": True, "temperature": 0}
    body["stream_options"] = {"include_usage": True}
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"error: {response.status} {response.read().decode()}")
    first, cached = None, 0
    for line in response:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - started
            usage = json.loads(line[6:]).get("usage") or {}
            cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    connection.close()
    return first, cached


def measure(seed, target):
    """Conversations, whose messages go to what `target` names: seconds of the first and of the later messages, and the share
    of cached tokens in the later ones."""
    chance = random.Random(seed)
    tokens = lambda count: [chance.randrange(10, args.vocabulary) for _ in range(count)]
    instructions = tokens(args.instructions)
    conversations = []
    for _ in range(args.conversations):
        parts = [instructions + tokens(args.first - args.instructions)]
        parts += [tokens(args.more) for _ in range(args.messages - 1)]
        conversations.append(list(itertools.accumulate(parts)))

    def talk(messages):
        return [ask(target(), prompt) for prompt in messages]

    with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
        answers = list(pool.map(talk, conversations))
    later = [answer for conversation in answers for answer in conversation[1:]]
    asked = sum(len(prompt) for messages in conversations for prompt in messages[1:])
    share = sum(cached for _, cached in later) / asked
    return [conversation[0][0] for conversation in answers], [seconds for seconds, _ in later], share


kinds = ("turns", "gateway")
firsts, laters, shares = ({kind: [] for kind in kinds} for _ in range(3))
for number, kind in itertools.product(range(args.rounds), kinds):
    with processes() as (gateway, replicas):
        # By chance, and evenly: in a fixed order an even number of conversations would each stay at one replica.
        order, requests = random.Random(number), args.conversations * args.messages
        turns = iter([replica for _ in range(requests) for replica in order.sample(replicas, len(replicas))])
        lists = measure(number, (lambda: next(turns)) if kind == "turns" else (lambda: gateway))
        for results, values in zip((firsts, laters), lists):
            results[kind] += values
        shares[kind].append(lists[2])

for kind in kinds:
    first, later = statistics.median(firsts[kind]), statistics.median(laters[kind])
    cached = 100 * statistics.mean(shares[kind])
    print(f"{kind:<8} first message {first * 1000:8.1f} ms, later ones {later * 1000:8.1f} ms, {cached:.0f} % of their tokens cached")
ratio = statistics.median(laters["gateway"]) / statistics.median(laters["turns"])
print(f"gateway / turns, time to the first token of later messages: {ratio:.2f}")
if args.ceiling is not None and ratio > args.ceiling:
    sys.exit(f"above the ceiling of {args.ceiling:.2f}")
