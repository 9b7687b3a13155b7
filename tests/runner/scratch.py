"""Folders for temporary files, one for each test program that runs, removed when it has ended.

In memory where there is enough: a story copies a program of 150 MB for each process that it starts, and flushes it to the disk.
"""

import itertools
import os
import shutil
from pathlib import Path

MEMORY = Path("/dev/shm")
# More than all programs that run side by side have at once (measured: 6 GB), with what they and a build need beside it.
ENOUGH = 12 << 30
# Paths of sockets begin with this, and have 108 bytes at most.
PREFIX = "tn"


def runs_programs(place, mounts="/proc/mounts"):
    """Whether a file system in memory is mounted there from which programs may be started."""
    for line in Path(mounts).read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if where == str(place) and kind == "tmpfs":
            return not {"noexec", "ro"} & set(options.split(","))
    return False


def available_memory(meminfo="/proc/meminfo", limits="/sys/fs/cgroup"):
    """Bytes that new processes and files can have; of a container's limit half of it."""
    lines = dict(line.split(":", 1) for line in Path(meminfo).read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) << 10
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = Path(limits) / name
        text = limit.read_text().strip() if limit.exists() else "max"
        if text != "max":
            available = min(available, int(text) // 2)
    return available


class Scratch:
    """Makes folders in memory, or none, where the default has to serve."""

    def __init__(self, place=MEMORY, available=available_memory):
        self.available = available
        self.numbers = itertools.count()
        self.place = place if runs_programs(place) and os.access(place, os.W_OK) else None
        if self.place:
            self.remove_forgotten()

    def remove_forgotten(self):
        """Removes what runs that were killed left there."""
        for folder in self.place.glob(f"{PREFIX}*-*"):
            pid = folder.name.removeprefix(PREFIX).split("-")[0]
            if pid.isdecimal() and not Path("/proc", pid).exists():
                self.remove(folder)

    def folder(self):
        """A new folder, used as `/tmp` is, also by other users; None where memory is short."""
        if not self.place or min(shutil.disk_usage(self.place).free, self.available()) < ENOUGH:
            return None
        folder = self.place / f"{PREFIX}{os.getpid()}-{next(self.numbers)}"
        try:
            folder.mkdir()
            folder.chmod(0o1777)
        except OSError:
            return None
        return folder

    @staticmethod
    def remove(folder):
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
