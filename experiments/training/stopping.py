"""Signals that ask a run to stop: it saves, and the same command goes on."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any

import numpy as np

from experiments.training.hosts import gathered


class StopAskedError(Exception):
    """A run is asked to stop where nothing of its state has changed yet."""


class Stops:
    """Listens for SIGTERM (a preemption) and Ctrl-C inside its `with` block, on every host."""

    def __init__(self):
        self.asked: list[str] = []  # by signals of this host
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._previous:
            signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        self.asked.append(signal.Signals(number).name)
        # A second Ctrl-C does not wait.
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def anywhere(self) -> bool:
        """Returns whether any host is asked; every host must ask at the same place."""
        return bool(gathered(np.array([bool(self.asked)])).any())

    def check(self) -> None:
        """Raises `StopAskedError` if any host is asked to stop, on all of them."""
        if self.anywhere():
            raise StopAskedError

    def by(self) -> str:
        """Returns who asked."""
        return self.asked[0] if self.asked else "another host"
