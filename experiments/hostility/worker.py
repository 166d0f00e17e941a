"""The process that tries hostile cases for `experiments.hostility.pool`."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from experiments.hostility.outcome import Outcome, failed
from o3jax.child import limit_memory

Attempts = Sequence[tuple[str, Callable[[], Outcome]]]  # the cases by name, and what tries them
Opened = Callable[[Path], AbstractContextManager[Attempts]]  # of an empty folder


class Tried(NamedTuple):
    """A case that was tried.

    Attributes:
        seconds: on the wall.
        gib: the largest memory of one process meanwhile; 0 where the case measures itself.
    """

    name: str
    outcome: Outcome
    seconds: float
    gib: float


def peak_gib(process: int | str = "self") -> float:
    """Returns the largest memory that a process had since `_forget_peak`; 0 if it is gone."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text()):
            return int(found[1]) / 2**20
    return 0.0


def _forget_peak(processes: Sequence[str]) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")


def _family() -> list[str]:
    """Returns the numbers of this process and of its children."""
    found = ["self"]
    for tasks in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += tasks.read_text().split()
    return found


def work(pipe: Connection) -> None:
    """Receives what makes the cases, sends their names, and answers each number with a `Tried` until None."""
    with contextlib.suppress(EOFError):  # the parent is gone
        _work(pipe)


def _work(pipe: Connection) -> None:
    opened, folder, limit_gib = pipe.recv()
    if limit_gib:
        # Address space counts what is reserved and never touched, of which JAX has much.
        limit_memory(resource.RLIMIT_DATA, int(limit_gib * 2**30))
    with opened(folder) as attempts:
        pipe.send([name for name, _ in attempts])
        while (number := pipe.recv()) is not None:
            name, attempt = attempts[number]
            _forget_peak(_family())
            began = time.monotonic()
            try:
                outcome = attempt()
            except Exception as error:
                outcome = failed(f"{type(error).__name__}: {error}", "traceback")
            seconds = time.monotonic() - began
            gib = max(map(peak_gib, _family())) if limit_gib else 0.0
            pipe.send(Tried(name, outcome, seconds, gib))
