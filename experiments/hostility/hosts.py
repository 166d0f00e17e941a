"""Runs on two hosts of four devices each, of which one or both get a signal in the middle.

Each must end as two hosts that nothing disturbs, bit for bit; these must have the log of one host.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.hostility.outcome import Outcome, failed
from experiments.hostility.pool import end_orphans
from experiments.hostility.runs import Workplace, difference, logged

_DEVICES, _HOSTS = 8, 2
_LIMIT_S = 600.0  # of two hosts that share a busy machine; jax alone needs 90 s to notice that one is gone
_TOLERANCE = 1e-5  # of a number in the logs of one host and of two
_FLAGS = {
    "sft": "--config.per_device_train_batch_size=1",
    "gspo": "--config.prompts_per_iteration=16",
}


class Stopped(NamedTuple):
    """A run of two hosts, some of which get a signal when so many steps are logged; 0: nothing is."""

    stage: str
    signal: str
    hosts: tuple[int, ...]
    after: int

    def __str__(self) -> str:
        if not self.signal:
            return f"{self.stage}, left alone"
        who = "both" if len(self.hosts) == _HOSTS else f"host {self.hosts[0]}"
        return f"{self.stage}, {self.signal} to {who} after step {self.after}"


def cases() -> list[Stopped]:
    """Returns both stages left alone, and with each signal to each host and to both, at four moments."""
    moments = itertools.product(("sft", "gspo"), ("SIGKILL", "SIGTERM"), ((0,), (1,), (0, 1)), (1, 2, 3, 5))
    return [Stopped("sft", "", (), 0), Stopped("gspo", "", (), 0), *itertools.starmap(Stopped, moments)]


def start_hosts(
    arguments: Sequence[str], hosts: int, devices: int, environment: Mapping[str, str], **pipes: Any
) -> list[subprocess.Popen]:
    """Returns processes of Python that find each other, each with so many devices of a CPU.

    Args:
        arguments: of Python.
        pipes: arguments of `Popen`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    count = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    shared = {"XLA_FLAGS": count, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts)}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**environment, **shared, "JAX_PROCESS_ID": str(number)},
            text=True,
            **pipes,
        )
        for number in range(hosts)
    ]


class _Ended(NamedTuple):
    codes: list[int]
    said: str  # by all
    orphans: int


def _train(
    arguments: Sequence[str], workdir: Path, hosts: int = _HOSTS, stop: Stopped | None = None
) -> _Ended:
    """Returns how a run on some hosts ends; a signal comes if it is not at its end before."""
    mark = f"O3JAX_CASE={uuid.uuid4().hex}"
    command = ["-m", f"experiments.{arguments[0]}", *arguments[1:]]
    with tempfile.TemporaryFile("w+") as log:
        environment = os.environ | dict([mark.split("=")])
        pipes = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        processes = start_hosts(command, hosts, _DEVICES // hosts, environment, **pipes)
        began = time.monotonic()
        while any(process.poll() is None for process in processes):
            if stop and _steps(workdir) >= stop.after:
                for number in stop.hosts:
                    processes[number].send_signal(signal.Signals[stop.signal])
                stop = None
            if time.monotonic() > began + _LIMIT_S:
                break
            time.sleep(0.02)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        return _Ended([process.returncode for process in processes], log.read(), end_orphans(mark))


def _steps(workdir: Path) -> int:
    log = workdir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _command(place: Workplace, stage: str, workdir: Path) -> list[str]:
    """Returns the command of a run on eight devices."""
    return place.stage(stage, workdir, _FLAGS[stage], f"--config.mesh.fsdp={_DEVICES}")


@functools.cache  # there is one workplace
def _undisturbed(place: Workplace, stage: str, hosts: int = _HOSTS) -> Path:
    """Returns the workdir of a run on so many hosts that nothing disturbs."""
    workdir = place.folder / f"{stage}-on-{hosts}"
    ended = _train(_command(place, stage, workdir), workdir, hosts)
    if any(ended.codes):
        raise RuntimeError(f"an undisturbed run failed: {ended.said[-2000:]}")
    return workdir


def attempt(place: Workplace, case: Stopped) -> Outcome:
    """Returns "used" for a run that ends as it must, and that leaves no process."""
    two = _undisturbed(place, case.stage)
    if not case.signal:
        off = _largest_difference(logged(_undisturbed(place, case.stage, 1)), logged(two))
        said = f"the logs of one host and of two are {off:.1e} apart"
        return Outcome("used", said) if off <= _TOLERANCE else failed(said, "wrong")
    with place.workdir() as workdir:
        command = _command(place, case.stage, workdir)
        ended = _train(command, workdir, stop=case)
        wrong = _wrongly_stopped(case, ended)
        if not wrong:
            again = _train(command, workdir)
            stuck = f"it does not go on: {again.said[-300:]}"
            wrong = stuck if any(again.codes) else difference(two, workdir)
    return failed(wrong, "wrong") if wrong else Outcome("used", f"exit codes {ended.codes}")


def _wrongly_stopped(case: Stopped, ended: _Ended) -> str:
    """Returns what is wrong with the end of a run that got a signal, "" if nothing."""
    if ended.orphans:
        return f"{ended.orphans} orphans"
    if -signal.SIGKILL in [code for host, code in enumerate(ended.codes) if host not in case.hosts]:
        return f"no end of the other host: {ended.said[-300:]}"
    if case.signal == "SIGTERM" and (any(ended.codes) or "the same --workdir continues" not in ended.said):
        return f"codes {ended.codes}, not saved: {ended.said[-300:]}"
    return ""


def _largest_difference(one: Sequence[dict], other: Sequence[dict]) -> float:
    """Returns how far numbers of two logs are apart, those above 1 by their share; of other logs infinity."""
    pairs = list(zip(one, other, strict=False))
    if len(one) != len(other) or any(a.keys() != b.keys() for a, b in pairs):
        return math.inf
    return max(abs(b[name] - a[name]) / max(1.0, abs(a[name])) for a, b in pairs for name in a)
