"""Test programs that the network does not reach: each has a network namespace of its own, in which only this machine answers. A
request to a cloud fails there, so that what passes asked a simulator.
"""

import os
import shutil
import subprocess
from functools import cache

# The API server of Kubernetes wants an address besides those of loopback, and a default route; the rule goes before that route. The
# address is one for tests of networks (RFC 2544), which no test takes for another host. The program follows.
WITHIN = ["unshare", "--net", "sh", "-ec",
          "ip link set lo up; ip address add 198.18.0.1/32 dev lo; ip route add default dev lo; "
          'ip rule add priority 100 unreachable; exec "$@"', "sh"]
# What must succeed there: no route leads to another host, here to an address for documentation.
ISOLATED = ["sh", "-c", "! ip route get 203.0.113.1"]
PROBE_LIMIT = 30


def isolates(within):
    """Whether the network does not reach what `within` starts. A container may not create namespaces, and `ip` may be missing."""
    if shutil.which(within[0]) is None or shutil.which("ip") is None:
        return False
    try:
        return subprocess.run([*within, *ISOLATED], capture_output=True, timeout=PROBE_LIMIT).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def makes_cables(ip="ip"):
    """Whether this user can make network namespaces that a cable joins to a bridge: that takes root, and a kernel that has them."""
    if shutil.which(ip) is None:
        return False
    space = f"probe-{os.getpid()}"
    within = ["-n", space, "link", "add", "name"]
    steps = [["netns", "add", space], [*within, "hub0", "type", "bridge"], [*within, "c0", "type", "veth", "peer", "name", "c1"]]
    try:
        return all(subprocess.run([ip, *step], capture_output=True, timeout=PROBE_LIMIT).returncode == 0 for step in steps)
    except subprocess.TimeoutExpired:
        return False
    finally:
        subprocess.run([ip, "netns", "del", space], capture_output=True)


class Network:
    """Knows how a program starts without the network."""

    def __init__(self, within=WITHIN):
        self.within = within
        self.works = isolates(within)

    def command(self, argv):
        """How a program is started: as it is where it does not work."""
        return [*self.within, *argv] if self.works else argv


@cache
def default():
    return Network()
