"""The one clock of the benchmarks: by the wall and by the processor, of calls that take turns."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import psutil
from jaxtyping import Float

from experiments.bench.tables import Row

Seconds = Float[np.ndarray, "2"]  # by the clock, and of processor time


def timed(fn: Callable[..., Any], *args: Any) -> tuple[Any, Seconds]:
    """Returns what a call returns, and its seconds: by the clock, and of the processor.

    Processor time is that of this process and of those that it started and that live before and after.
    """
    children, processor, clock = _children_s(), time.process_time(), time.perf_counter()
    result = fn(*args)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    return result, np.array([clock, processor + _children_s() - children])


def _children_s() -> float:
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            spent = child.cpu_times()
            total += spent.user + spent.system
    return total


def peak_bytes() -> int:
    """Returns the most memory that this process has had resident, in bytes; it never falls."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def take_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, Float[np.ndarray, "rounds 2"]]:
    """Returns the seconds of each call; they take turns, so that a slow spell of the machine hits all."""
    turns = [{name: timed(call)[1] for name, call in calls.items()} for _ in range(rounds)]
    return {name: np.stack([turn[name] for turn in turns]) for name in calls}


def ratios(
    ones: Float[np.ndarray, "rounds 2"], others: Float[np.ndarray, "rounds 2"], name: str = "ratio"
) -> Row:
    """Returns the cells that say how many times as long `ones` took as `others`, turn by turn."""
    clock, processor = (ones / others).T.tolist()
    return {name: clock, f"{name}, processor time": processor}
