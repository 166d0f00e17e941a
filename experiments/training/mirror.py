"""A run's small files on this disk, and the same in a store, such as gs://bucket/run.

A store takes whole files: a log cannot grow there, and TensorBoard's library cannot write to it. So a run
writes to a folder on the disk, whose new files are copied to the store before each checkpoint and at its end.
Checkpoints go straight to the store, from every host.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from etils import epath

from o3jax.files import PART, writing


class Mirror:
    """A folder on the disk that mirrors one in a store; what the store has at its top is fetched."""

    def __init__(self, place: epath.Path):
        self.place, self.path = place, Path(tempfile.mkdtemp(prefix="o3jax-"))
        self._there: dict[str, tuple[int, int]] = {}  # what the store has, by name: when it was written, size
        with writing(place):
            # In a store there is no folder before there is a file in it.
            for file in place.iterdir() if place.is_dir() else ():
                if not file.is_dir():
                    file.copy(self.path / file.name)
        self._there = self._here()

    def _here(self) -> dict[str, tuple[int, int]]:
        files = (file for file in self.path.rglob("*") if file.is_file() and PART not in file.name)
        stats = {file.relative_to(self.path).as_posix(): file.stat() for file in files}
        return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}

    def publish(self) -> None:
        """Copies what is new or has changed to the store, and deletes there what was deleted here."""
        here = self._here()
        with writing(self.place):
            for name in [name for name, stat in here.items() if self._there.get(name) != stat]:
                target = self.place / name
                target.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(self.path / name).copy(target, overwrite=True)
            for name in self._there.keys() - here.keys():
                (self.place / name).unlink(missing_ok=True)
        self._there = here

    def close(self) -> None:
        """Copies what is new, and removes the folder on the disk."""
        try:
            self.publish()
        finally:
            shutil.rmtree(os.fspath(self.path), ignore_errors=True)
