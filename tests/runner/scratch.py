"""Temporary files of test programs in memory, where there is enough: a story copies a program of 150 MB for each process that it
starts, and flushes it to the disk.

Each program gets a `/tmp` of its own, in a mount namespace of its own: it has the same short name as on a disk, because the paths of
sockets have 108 bytes, and it ends with the last process of the program.
"""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

PLACE = Path("/tmp")
# What is available when a program starts: for its files, and for programs and a build beside it.
ENOUGH = 12 << 30
# The limit of one program (measured: 8 GB for the largest, with a program of 200 MB). One that exceeds it gets an error, and the others keep their memory.
MOST = 10 << 30
# The program follows.
WITHIN = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
          f'mount -t tmpfs -o mode=1777,size={MOST} tmpfs {PLACE} && exec "$@"', "sh"]


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
    """Knows how a program starts with temporary files in memory."""

    def __init__(self, within=WITHIN, available=available_memory, place=PLACE):
        self.within, self.available, self.place = within, available, place
        # A container may not mount, and who chose another folder keeps it.
        is_default = "TMPDIR" not in os.environ
        self.works = is_default and shutil.which(within[0]) is not None and self.tried()

    def tried(self):
        """Whether it works here: a file that is written there is not seen outside."""
        name = self.place / f"textnlp-scratch-{os.getpid()}"
        done = subprocess.run([*self.within, "touch", name], capture_output=True)
        seen = name.exists()
        name.unlink(missing_ok=True)
        return done.returncode == 0 and not seen

    def command(self, argv, cwd="/"):
        """How a program is started; as it is where memory is short, nothing may be mounted, or its own `/tmp` would hide it or its
        folder."""
        hides = any(Path(path).is_relative_to(self.place) for path in (argv[0], cwd))
        return [*self.within, *argv] if self.works and not hides and self.available() >= ENOUGH else argv


@cache
def default():
    return Scratch()
