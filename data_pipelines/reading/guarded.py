"""Reading files from strangers: paths that stay in their folder, and decoding in a process that may die.

`o3jax.video.files` refuses what can be seen from a file: playlists, unknown containers, more than the
limits allow. What cannot be seen - a decoder that hangs, crashes or eats memory - happens in a child process
and costs one call. It is no sandbox: the child may do what the user may.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import resource
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from o3jax.child import Child, Died, clock, limit_memory
from o3jax.errors import UserError
from o3jax.video.files import Limits, VideoError, find_file, local_file, refuse_protocol, set_limits

__all__ = ["GuardedReader", "Limits", "inside", "read_image"]

T = TypeVar("T")
_DEFAULT = Limits()
_KEPT_BYTES = 64 * 2**20  # of the shared file, between calls: what is kept need not be cleared again
_PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


def inside(root: str | os.PathLike[str], relative: str) -> Path:
    """Returns the absolute path, without links, of a file that a data set names.

    Args:
        root: the data set's folder, which the file must be in.
        relative: the path as the record has it.

    Raises:
        UserError: if the path leads out of the folder, looks like a URL, or names nothing that exists.
    """
    shown = f"{relative!r:.200}"
    if not isinstance(relative, str) or not relative:
        raise UserError(f"{shown} is no path; write the file's path inside {root}")
    if ".." in PurePath(relative).parts:
        raise UserError(f"{shown} goes up with '..'; write a path inside {root}")
    if PurePath(relative).is_absolute():
        raise UserError(f"{shown} is an absolute path; write one that is relative to {root}")
    refuse_protocol(relative)
    found = find_file(Path(root) / relative)
    if not found.is_relative_to(Path(root).resolve()):
        raise UserError(f"{shown} is a link out of {root}; copy the file to there")
    return found


def read_image(path: str | os.PathLike[str], limits: Limits = _DEFAULT) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a picture file as RGB, turned upright as its EXIF orientation says.

    Raises:
        VideoError: if it is no JPEG, PNG, WebP, BMP or GIF, is damaged, or is over the limits.
    """
    file = local_file(path, limits)
    try:
        with Image.open(file, formats=_PICTURES) as image:
            if image.width * image.height <= limits.max_pixels:
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.DecompressionBombError:  # Pillow's own limit, 180 million pixels
        pass
    except Exception as error:  # Pillow's plugins raise all kinds for damaged files, SyntaxError among them
        raise VideoError(f"{path} cannot be read as a picture ({one_line(error)}).") from None
    raise VideoError(f"{path}: the picture is refused; the limit max_pixels is {limits.max_pixels}.")


def one_line(error: Exception) -> str:
    """Returns the kind and the words of an exception, as part of a sentence."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class GuardedReader:
    """Runs functions that read files in a child process with limits, which is replaced when it dies.

    The child starts with the first call and serves one call at a time, whichever thread asks. A pickled or
    forked reader starts a child of its own, so it may be part of what a data worker is given.
    """

    def __init__(self, limits: Limits = _DEFAULT):
        self.limits = limits
        self.replaced = 0  # children that hung or crashed
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Returns `function(*args, **kwargs)`, evaluated in the child, where `limits` are in force.

        Args:
            function: one that can be pickled, such as `o3jax.video.read_video`, with such arguments; the
                first of these is the path that errors name.

        Raises:
            VideoError: if the function raises, takes longer than `max_decode_s`, crashes the child, or
                needs more than `max_memory_bytes`.
        """
        request = pickle.dumps((function, args, kwargs))
        with self._lock:
            if self._child is None or self._child.owner != os.getpid():
                self._child = _Child(self.limits)
            try:
                status, value = self._child.ask(request, self.limits.max_decode_s)
            except Died as died:
                self._drop()
                self.replaced += 1
                late = f"reading it took longer than max_decode_s = {self.limits.max_decode_s:g} s"
                why = late if died.late else f"the process that read it {died}"
                raise VideoError(f"{args[0] if args else function}: {why}.") from None
            except BaseException:  # an interrupt: the answer would be taken for that of the next call
                self._drop()
                raise
        if status == "error":
            raise VideoError(value)
        return value

    def close(self) -> None:
        """Ends the child; the next call starts another."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def __getstate__(self) -> dict[str, Any]:
        return {"limits": self.limits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limits"])


class _Child(Child):
    """The child, and the shared file that arrays come through."""

    def __init__(self, limits: Limits):
        self._shared = os.memfd_create("arrays")
        try:
            super().__init__(
                "data_pipelines.reading.guarded:serve", dataclasses.asdict(limits), (self._shared,)
            )
        except Died as died:
            raise RuntimeError(f"the process that reads files did not start: it {died}") from None

    def ask(self, request: bytes, seconds: float) -> tuple[str, Any]:
        """Returns ("value", result) or ("error", sentence); Died if there is no answer in time."""
        self.send(request)
        status, value, sizes = self.receive(seconds)
        if status == "value":
            value = pickle.loads(value, buffers=self._arrays(sizes))
        return status, value

    def _arrays(self, sizes: list[int]) -> list[UInt8[np.ndarray, "bytes"]]:
        """Returns the bytes of each array, copied from the shared file."""
        out, at = [], 0
        for size in sizes:
            memory, done = np.empty(size, np.uint8), 0
            while done < size:  # one call reads at most 2 GiB
                done += os.preadv(self._shared, [memory[done:]], at + done)
            out.append(memory)
            at += size
        if at > _KEPT_BYTES:
            os.ftruncate(self._shared, 0)
        return out


def serve(pipe: Connection, limits: dict[str, Any], shared: int) -> None:
    """Answers requests from the pipe until its other end is closed; never returns an exception.

    An answer is (status, value, sizes): "value" with the pickled result, whose arrays of `sizes` bytes were
    written to the file `shared`, or "error" with a sentence.
    """
    allowed = Limits(**limits)
    set_limits(allowed)
    limit_memory(resource.RLIMIT_AS, allowed.max_memory_bytes)
    pipe.send(("ready", None, []))
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        with clock(allowed.max_decode_s):
            answer = _answer(request, shared, allowed)
        pipe.send(answer)


def _answer(request: bytes, shared: int, limits: Limits) -> tuple[str, Any, list[int]]:
    path = "the file"
    try:
        function, args, kwargs = pickle.loads(request)
        path = args[0] if args else function
        buffers: list[pickle.PickleBuffer] = []
        result = pickle.dumps(function(*args, **kwargs), protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        at = 0
        for view in views:
            done = 0
            while done < len(view):
                done += os.pwrite(shared, view[done:], at + done)
            at += len(view)
        return "value", result, [len(view) for view in views]
    except UserError as error:
        return "error", str(error), []
    except MemoryError:
        gib = limits.max_memory_bytes / 2**30
        return "error", f"{path}: reading it needs more memory than max_memory_bytes = {gib:g} GiB.", []
    except Exception as error:
        return "error", f"{path}: reading it failed ({one_line(error)}).", []
