"""Control groups: nothing that a test program started survives it, also what has left its session, and its processor time is known.

Root may have them on most machines. Without one, only the process group of a program ends with it.
"""

import itertools
import os
import signal
import time
from pathlib import Path

# Where a group may be made: the hierarchy of version 1 that also counts processor time, that of version 2, and version 2 beside 1.
ROOTS = ("/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup", "/sys/fs/cgroup/unified")
MEMBERS = "cgroup.procs"
# For how long what is killed may take to end.
END_TIMEOUT = 10
NUMBERS = itertools.count()


class Group:
    """A control group, or nothing where there are none."""

    def __init__(self, roots=ROOTS):
        self.folder = None
        name = f"textnlp-tests-{os.getpid()}-{next(NUMBERS)}"
        for root in map(Path, roots):
            try:
                if (root / MEMBERS).exists():
                    (root / name).mkdir()
                    self.folder = root / name
                    return
            except OSError:
                continue

    def join(self):
        """Runs in the child, before its program."""
        if self.folder:
            try:
                (self.folder / MEMBERS).write_text("0")
            except OSError:
                pass

    def members(self):
        if not self.folder:
            return []
        return [int(pid) for pid in (self.folder / MEMBERS).read_text().split()]

    def cpu(self):
        """Seconds of processor time of all that were members; 0 where nobody counts them."""
        if self.folder and (self.folder / "cpuacct.usage").exists():
            return int((self.folder / "cpuacct.usage").read_text()) / 1e9
        if self.folder and (self.folder / "cpu.stat").exists():
            stat = dict(line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
            return int(stat.get("usage_usec", 0)) / 1e6
        return 0.0

    def end(self):
        """Kills all members and removes the group; how many there were."""
        if not self.folder:
            return 0
        killed, until = set(), time.monotonic() + END_TIMEOUT
        while (alive := self.members()) and time.monotonic() < until:
            for pid in alive:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            killed.update(alive)
            time.sleep(0.01)
        try:
            self.folder.rmdir()
        except OSError:
            pass
        self.folder = None
        return len(killed)
