"""A folder that keeps arrays that cost more to make than to read: decoded frames, features of a tower.

A cache never changes what a batch holds: a key names the file as it is now, what was asked and the code
that answered, and what is not whole is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import ml_dtypes  # noqa: F401 - so that numpy knows bfloat16 by its name
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_pipelines.reading import guarded, sources
from data_pipelines.reading.guarded import GuardedReader, Limits
from o3jax import video
from o3jax.errors import UserError
from o3jax.files import PART, code_hash, refusal, whole_file
from o3jax.inputs import image

Arrays = tuple[np.ndarray, ...]
_SUFFIX = ".array_record"


class ArrayCache:
    """Tuples of arrays by a key, each an ArrayRecord file in a folder that never grows beyond `max_bytes`.

    Several processes may share it. When it is full, nothing is added and nothing goes: where every epoch
    reads everything once in another order, what was used last is not what is used next. What belongs to
    files or settings that are no more stays too; the folder may be deleted at any time. Where it cannot be
    written, on a full disk say, a line in the log says so, and nothing more is added.

    Raises:
        UserError: if the limit is not positive, or the folder is a file.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int):
        self.folder, self.max_bytes = Path(folder).absolute(), max_bytes
        self._writable = True
        if max_bytes <= 0:
            raise UserError(
                f"the cache {self.folder} may hold {max_bytes} bytes: allow it more, or name none"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._total() as total:
                for left in self.folder.glob(f"*{PART}"):  # of a process that was killed
                    left.unlink()
                with os.scandir(self.folder) as found:
                    total.set(sum(e.stat().st_size for e in found if e.name.endswith(_SUFFIX)))
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"the cache {self.folder} cannot be written ({error.strerror}): name another"
            ) from None
        except OSError as error:
            self._give_up(error)

    def get(self, key: str) -> Arrays | None:
        """Returns what was put there; None where nothing is, or nothing whole."""
        try:
            # Its own checksums tell what is not whole. Without this option it starts threads.
            reader = ArrayRecordReader(str(self._file(key)), "readahead_buffer_size:0")
            try:
                head, *parts = reader.read_all()
            finally:
                reader.close()
            written = json.loads(head)
            if written["key"] != key:
                return None
            forms = zip(parts, written["arrays"], strict=True)
            return tuple(np.frombuffer(part, dtype).reshape(shape) for part, (dtype, shape) in forms)
        except (RuntimeError, ValueError, KeyError, TypeError):  # not there, cut off, other bytes, not ours
            return None

    def put(self, key: str, arrays: Arrays) -> bool:
        """Keeps the arrays in place of what is there; returns whether there was room for them."""
        if not self._writable:
            return False
        head = {"key": key, "arrays": [(array.dtype.name, array.shape) for array in arrays]}
        file = self._file(key)
        try:
            with self._total() as total:
                old = file.stat().st_size if file.exists() else 0
                if total.get() - old + sum(array.nbytes for array in arrays) > self.max_bytes:
                    return False
                with whole_file(file) as part:
                    writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")
                    for record in (json.dumps(head).encode(), *(array.tobytes() for array in arrays)):
                        writer.write(record)
                    writer.close()
                    size = total.get() - old + part.stat().st_size
                    if size > self.max_bytes:
                        raise _Full
                total.set(size)
                return True
        except _Full:
            return False
        except (OSError, RuntimeError, UserError) as error:
            self._give_up(error)
            return False

    def _give_up(self, error: Exception) -> None:
        self._writable = False
        why = refusal(error) or " ".join(str(error).split())
        logging.warning("the cache %s cannot be written (%s): going on without it", self.folder, why)

    def _file(self, key: str) -> Path:
        return self.folder / (hashlib.sha256(key.encode()).hexdigest() + _SUFFIX)

    @contextlib.contextmanager
    def _total(self) -> Iterator[_Total]:
        """Yields how many bytes the folder holds; no other thread or process writes to it meanwhile."""
        with open(os.open(self.folder / "total", os.O_RDWR | os.O_CREAT, 0o666), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield _Total(file)


class _Full(Exception):
    pass


class _Total:
    def __init__(self, file: TextIO):
        self._file = file

    def get(self) -> int:
        self._file.seek(0)
        return int(self._file.read() or 0)

    def set(self, size: int) -> None:
        self._file.seek(0)
        self._file.write(f"{size:20}")  # of one length, so that it is never half written
        self._file.flush()


class CachedReader:
    """A `GuardedReader` for functions of a file that return tuples of arrays, with a cache before it."""

    def __init__(self, reader: GuardedReader, cache: ArrayCache):
        self.reader, self.cache = reader, cache

    def run(self, function: Callable[..., Arrays], path: str | os.PathLike[str], *args: Any) -> Arrays:
        """Returns `function(path, *args)`, from the cache or else from the reader, whose errors it raises."""
        # With the limits too: what they refuse must stay refused.
        key = entry_key([path], function.__name__, args, self.limits)
        arrays = self.cache.get(key) if key else None
        if arrays is None:
            arrays = self.reader.run(function, path, *args)
            if key:
                self.cache.put(key, arrays)
        return arrays

    @property
    def limits(self) -> Limits:
        return self.reader.limits

    def close(self) -> None:
        """Ends the reader's child."""
        self.reader.close()


def entry_key(paths: Sequence[str | os.PathLike[str]], *asked: Any) -> str:
    """Returns the key of what is asked of files as they are now; nothing if one is missing, or there is none.

    Args:
        asked: plain data, arrays, or what its `repr` tells.
    """
    try:
        found = [(str(path), (s := os.stat(path)).st_size, s.st_mtime_ns) for path in paths]
    except OSError:
        return ""
    text = json.dumps((code_version(), found, asked), default=_json_default)
    return hashlib.sha256(text.encode()).hexdigest() if found else ""


def _json_default(value: Any) -> Any:
    """Returns what JSON writes for a value that it does not know."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)


@functools.cache
def code_version() -> str:
    """Returns a hash of the code that decodes and resizes: this project's and the libraries' versions."""
    modules = (Path(module.__file__) for module in (image, guarded, sources))
    return code_hash([*sorted(Path(video.__file__).parent.glob("*.py")), *modules], "av", "pillow")
