"""Test programs that the network does not reach: each has a network namespace of its own, in which only this machine answers. A
request to a cloud fails there, so that what passes asked a simulator.
"""

import shutil
import subprocess
from functools import cache

# The API server of Kubernetes wants an address besides those of loopback, and a default route; the rule goes before that route. The
# program follows.
WITHIN = ["unshare", "--net", "sh", "-ec",
          "ip link set lo up; ip address add 192.0.2.1/32 dev lo; ip route add default dev lo; "
          'ip rule add priority 100 unreachable; exec "$@"', "sh"]


class Network:
    """Knows how a program starts without the network."""

    def __init__(self, within=WITHIN):
        self.within = within
        # A container may not create namespaces, and `ip` may be missing.
        self.works = shutil.which(within[0]) is not None and subprocess.run([*within, "true"], capture_output=True).returncode == 0

    def command(self, argv):
        """How a program is started: as it is where it does not work."""
        return [*self.within, *argv] if self.works else argv


@cache
def default():
    return Network()
