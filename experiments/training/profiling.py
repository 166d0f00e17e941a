"""The trace of some steps of a run, for TensorBoard's profile plugin or Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax


@contextlib.contextmanager
def profiled(folder: Path, steps: range) -> Iterator[Callable[[int, Any], None]]:
    """Yields what is to be called before each step, and writes the trace of `steps` into a folder.

    It is called with how many steps the state has, and the state: the trace ends when that is computed.
    """
    running = False

    def before(step: int, state: Any) -> None:
        nonlocal running
        if running and step >= steps.stop:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            running = False
        elif steps and not running and step == steps.start:
            jax.block_until_ready(state)  # what came before is not in it
            jax.profiler.start_trace(folder)
            running = True

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()
