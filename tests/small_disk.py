"""A disk that can be filled up to its last bytes."""

import os
import resource
import shutil
import subprocess

DISK_BYTES = 8 * 2**20


class SmallDisk:
    """A file system of a few megabytes; where none may be mounted, files that may not grow stand for a full one."""

    def __init__(self, folder):
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        has_mount = shutil.which("mount") is not None
        self.is_mounted = has_mount and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, growing=None):
        """Leaves room for a few bytes.

        Args:
            growing: a file that is being written.
        """
        if self.is_mounted:
            free = os.statvfs(self.folder)
            (self.folder / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
        else:
            size = growing.stat().st_size if growing else 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, self._limit[1]))

    def make_room(self):
        (self.folder / "filler").unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
