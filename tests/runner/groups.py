"""Control groups: nothing that a test program started survives it for long, also what has left its session, and its processor time is
known.

Root may have them on most machines. Without one, only the process group of a program ends with it.
"""

import itertools
import os
import signal
import time
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
MEMBERS = "cgroup.procs"
# For how long helpers of a program that has ended may clean up behind it: those of PostgreSQL and of control planes do.
GRACE = 10
# For how long what is killed may take to end.
END_TIMEOUT = 10
NUMBERS = itertools.count()


def places(own="/proc/self/cgroup", mount=MOUNT):
    """Folders in which a group may be made, below the runner's own group, so that limits of the whole run still hold: in the hierarchy of
    version 1 that also counts processor time, then in version 2."""
    try:
        lines = Path(own).read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, names, path = line.split(":", 2)
        path = path.lstrip("/")
        if ".." in path.split("/"):
            continue
        if "cpuacct" in names.split(","):
            found.insert(0, mount / "cpuacct" / path)
        elif not names:
            found += [mount / path, mount / "unified" / path]
    return [place for place in found if (place / MEMBERS).exists()]


class Group:
    """A control group, or nothing where there are none."""

    def __init__(self, within=None):
        self.folder = None
        name = f"textnlp-tests-{os.getpid()}-{next(NUMBERS)}-{time.time_ns()}"
        for place in places() if within is None else within:
            try:
                (place / name).mkdir()
                self.folder = place / name
                return
            except OSError:
                continue

    def join(self):
        """Runs in the child, before its program; whether it is in the group."""
        try:
            return bool(self.folder and (self.folder / MEMBERS).write_text("0"))
        except OSError:
            return False

    def members(self):
        # One outside of this namespace of processes is 0.
        try:
            return [pid for pid in map(int, (self.folder / MEMBERS).read_text().split()) if pid > 0] if self.folder else []
        except OSError:
            return []

    def cpu(self):
        """Seconds of processor time of all that were members; 0 where nobody counts them."""
        try:
            if self.folder and (self.folder / "cpuacct.usage").exists():
                return int((self.folder / "cpuacct.usage").read_text()) / 1e9
            if self.folder and (self.folder / "cpu.stat").exists():
                stat = dict(line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
                return int(stat.get("usage_usec", 0)) / 1e6
        except (OSError, ValueError):
            pass
        return 0.0

    def end(self, grace=0.0):
        """Waits for helpers that clean up, kills what is left, and removes the group; how many were killed."""
        if not self.folder:
            return 0
        until = time.monotonic() + grace
        while self.members() and time.monotonic() < until:
            time.sleep(0.02)
        killed, until = set(), time.monotonic() + END_TIMEOUT
        while (alive := self.members()) and time.monotonic() < until:
            for pid in alive:
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
            killed.update(alive)
            time.sleep(0.01)
        try:
            self.folder.rmdir()
        except OSError:
            pass
        self.folder = None
        return len(killed)
