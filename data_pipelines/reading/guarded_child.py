"""The child process of `safety.GuardedReader`: evaluates one call after the other, under its limits."""

from __future__ import annotations

import os
import pickle
import resource
from multiprocessing.connection import Connection
from typing import Any

from data_pipelines.reading import guarded as safety
from data_pipelines.reading.child import clock, limit_memory
from o3jax.errors import UserError
from o3jax.video.files import Limits, set_limits


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
        return "error", f"{path}: reading it failed ({safety.one_line(error)}).", []
