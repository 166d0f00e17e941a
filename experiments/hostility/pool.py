"""Processes that try hostile cases, and are replaced when a case takes one of them down."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, NamedTuple

from experiments.hostility.outcome import failed
from experiments.hostility.worker import Opened, Tried, peak_gib

_START_S = 900.0  # to make what the cases need
_GRACE_S = 3.0  # that processes have to notice that their parent is gone
_POLL_S = 0.05
_WORK = """\
from multiprocessing.connection import Connection
from experiments.hostility.worker import work
work(Connection({}))
"""


class Limits(NamedTuple):
    """What a case may take; 0: the case starts processes with limits of their own."""

    seconds: float
    gib: float


class _Died(Exception):
    """A worker ended, or was ended, while it was to answer."""


def end_orphans(mark: str) -> int:
    """Returns how many processes with this in their environment outlive a grace; ends them."""

    def alive() -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # A zombie's environment is empty.
                if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    until = time.monotonic() + _GRACE_S
    while (left := alive()) and time.monotonic() < until:
        time.sleep(0.1)
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return len(left)


class _Worker:
    """A process that runs `experiments.hostility.worker.work`."""

    def __init__(self, opened: Opened, folder: Path, limits: Limits, log: Path) -> None:
        self._mark = f"O3JAX_WORKER={uuid.uuid4().hex}"
        self._pipe, theirs = Pipe()
        self._limits, self._peak = limits, 0.0
        with log.open("ab") as said, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WORK.format(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=os.environ | dict([self._mark.split("=")]),
            )
        self._pipe.send((opened, Path(tempfile.mkdtemp(dir=folder)), limits.gib))
        self.names: list[str] = self._answer(_START_S)

    def attempt(self, number: int) -> tuple[Tried, bool]:
        """Returns what became of a case, and whether the worker lives."""
        began, most = time.monotonic(), self._limits.gib
        try:
            self._pipe.send(number)
            tried = self._answer(self._limits.seconds)
        except _Died as died:
            said, fault = died.args
            # What cannot get its memory aborts, where it is not Python.
            if fault == "traceback" and most and self._peak > 0.75 * most:
                fault = "memory"
            seconds = time.monotonic() - began
            return Tried(self.names[number], failed(said, fault), seconds, self._peak), False
        if most and tried.gib > most and tried.outcome.status != "failed":
            tried = tried._replace(outcome=failed(f"{tried.gib:.1f} GiB", "memory"))
        return tried, True

    def _answer(self, limit_s: float) -> Any:
        """Returns what it sends; _Died, with the signal and the fault, if that takes too long or it ends."""
        until = time.monotonic() + (limit_s or float("inf"))
        try:
            while not self._pipe.poll(_POLL_S):
                self._peak = peak_gib(self._process.pid) or self._peak
                if time.monotonic() > until:
                    raise _Died(f"no end after {limit_s:.0f} s", "time")
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            raise _Died(f"the process ended with {self._process.wait()}", "traceback") from None

    def end(self, kill: bool = False) -> int:
        """Ends the process; returns how many processes that it started are still there."""
        if not kill:
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        self._process.kill()
        self._process.wait()
        self._pipe.close()
        return end_orphans(self._mark)


def try_all(
    opened: Opened,
    folder: Path,
    limits: Limits,
    log: Path,
    *,
    processes: int,
    chosen: Callable[[Sequence[str]], Sequence[str]],
) -> Iterator[Tried]:
    """Yields what became of each case, in the order in which they end.

    Args:
        opened: a function of a module, which makes the cases; it opens once in each process.
        folder: where it works; made here.
        log: gets what the processes print.
        chosen: which of the names are tried.
    """
    done: queue.Queue[Tried | BaseException | None] = queue.Queue()
    waiting: deque[int] = deque()
    stopped = threading.Event()
    folder.mkdir(parents=True, exist_ok=True)

    def start() -> _Worker:
        return _Worker(opened, folder, limits, log)

    def work(worker: _Worker | None) -> None:
        last = "no case"
        try:
            while not stopped.is_set():
                try:
                    number = waiting.popleft()
                except IndexError:
                    break
                worker = worker or start()
                tried, lives = worker.attempt(number)
                last = tried.name
                done.put(tried)
                if not lives:
                    dead, worker = worker, None
                    note_orphans(dead.end(kill=True), last)
        except BaseException as error:
            done.put(error)
        finally:
            if worker:
                note_orphans(worker.end(kill=stopped.is_set()), last)
            done.put(None)

    def note_orphans(count: int, last: str) -> None:
        if count and not stopped.is_set():
            done.put(Tried(f"processes left after {last}", failed(f"{count} orphans", "orphans"), 0.0, 0.0))

    first = start()
    wanted = set(chosen(first.names))
    waiting.extend(number for number, name in enumerate(first.names) if name in wanted)
    threads = [threading.Thread(target=work, args=(first if not n else None,)) for n in range(processes)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            while (tried := done.get()) is not None:
                if isinstance(tried, BaseException):
                    raise tried
                yield tried
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
