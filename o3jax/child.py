"""A Python process of its own for what may hang or crash: started once, asked often, ended at will."""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

START_S = 60.0  # a child that cannot even import its modules in this time never will
_STOPS = (signal.SIGINT, signal.SIGTERM)
_WATCH_S = 0.5  # between two looks whether the parent lives
PARENT = "O3JAX_PARENT"  # in the environment of a process: who started it, see `guard_from_the_first_line`
GRACE_S = 1.0  # between the parent's clock and the child's own
# What threads reserve of the address space, which may be limited, without ever using it.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class Died(Exception):
    """How a child ended, to follow "the process" in a sentence; `late` if it had no time left."""

    def __init__(self, how: str, late: bool = False):
        super().__init__(how)
        self.late = late


class Child:
    """One child process and its pipe. It ends with `end()`, with this object, or with this process."""

    def __init__(self, serve: str, hello: Any, files: Sequence[int] = ()):
        """Starts the process, which is ready when it has sent its first message, `greeting`.

        Args:
            serve: "package.module:function", which is called there as function(pipe, hello, *files). It
                answers requests until the pipe raises EOFError.
            hello: plain data.
            files: open files to share, which are closed here when the child ends.

        Raises:
            Died: if it ends, or takes longer than a minute, before it is ready.
        """
        self.owner = os.getpid()
        ours, theirs = socket.socketpair()
        with theirs, no_stops():
            fds = (theirs.fileno(), *files)
            # Not multiprocessing: its children may not have children, and Grain's workers are such.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(os.getpid()), *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # signals to the whole run, such as Ctrl-C, are not for it
                env=os.environ | _ENVIRONMENT,
            )
        self._pipe = Connection(ours.detach())
        self.end = weakref.finalize(self, _end, self.owner, self._process, self._pipe, tuple(files))
        # With the parent's search path, so that it finds what the parent found.
        self._pipe.send((sys.path, serve, hello))
        self.greeting = self.receive(START_S)

    def send(self, request: bytes) -> None:
        """Sends a request; Died if the child ended between two of them."""
        try:
            self._pipe.send_bytes(request)
        except OSError:
            raise self._died() from None

    def receive(self, seconds: float) -> Any:
        """Returns the next message; Died if there is none in this time."""
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        raise Died("takes too long", late=True)

    def ended(self) -> bool:
        """Whether the process has come to its end."""
        return self._process.poll() is not None

    def _died(self) -> Died:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return Died("does not answer")
        if code == -signal.SIGALRM:
            return Died("takes too long", late=True)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Died(f"crashed ({name})")


def _end(owner: int, process: subprocess.Popen, pipe: Connection, files: Sequence[int]) -> None:
    if os.getpid() == owner:  # not in a process that was forked from the owner
        process.kill()
        process.wait()
    pipe.close()
    for file in files:
        os.close(file)


def limit_memory(which: int, most: int) -> None:
    """Limits what this process may have of RLIMIT_AS, say, in bytes; a crash leaves no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, allowed = resource.getrlimit(which)
    most = most if allowed < 0 else min(most, allowed)  # -1: unlimited
    resource.setrlimit(which, (most, most))


@contextlib.contextmanager
def clock(seconds: float) -> Iterator[None]:
    """Ends this process if the block takes longer: should its parent be gone by then, nobody else would."""
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def no_stops() -> Iterator[None]:
    """Lets processes that start in the block be born deaf to what asks a whole run to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def guard_from_the_first_line() -> None:
    """Lets the processes that `multiprocessing` starts end with this one from their first line on.

    Each begins with the main module of the process that starts it, which for a command means seconds of
    imports that it does not need, and in which nothing would notice that the run was killed. So they are
    told that this is `o3jax.started`. For a process whose own functions are not theirs to call.
    """
    os.environ[PARENT] = str(os.getpid())
    sys.modules["__main__"].__spec__ = importlib.machinery.ModuleSpec("o3jax.started", None)


def end_with(parent: int) -> None:
    """Makes this process end with its parent, however that ends, and not before.

    What asks a whole run to stop (Ctrl-C, a batch system's SIGTERM to all its processes) is the parent's, who
    still needs this process to save what is right.
    """
    for number in _STOPS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which a process started here would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

    def watch() -> None:
        # The kernel's PR_SET_PDEATHSIG would come with the end of the parent's thread already.
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


_CODE = """\
import importlib, sys
from multiprocessing.connection import Connection
parent, pipe = int(sys.argv[1]), Connection(int(sys.argv[2]))
try:
    sys.path[:], serve, hello = pipe.recv()
    importlib.import_module("o3jax.child").end_with(parent)
    module, _, function = serve.partition(":")
    getattr(importlib.import_module(module), function)(pipe, hello, *map(int, sys.argv[3:]))
except (EOFError, ConnectionError):
    pass  # the parent is gone, which needs no traceback
"""
