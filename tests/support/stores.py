"""A store whose objects are in this process, in place of gs://."""

from __future__ import annotations

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Store(MemoryFileSystem):
    """A store that holds its objects in this process."""

    protocol = ("gs", "gcs")
    store: dict = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("gs://", "memory://"))


def empty_bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the name of an empty bucket."""
    for scheme in Store.protocol:
        fsspec.register_implementation(scheme, Store, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    monkeypatch.setattr(Store, "store", {})
    monkeypatch.setattr(Store, "pseudo_dirs", [""])
    return "gs://bucket"
