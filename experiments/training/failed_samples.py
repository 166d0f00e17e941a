"""Which samples could not be read in a run, and when that is too many."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.training.hosts import gathered, is_first_host
from experiments.training.metrics_log import lines_until, write_lines
from o3jax.files import append_text
from o3jax.models.batch import Failures


class FailedSamples:
    """The samples that could not be read, in WORKDIR/failed.jsonl; they were in their rows, masked."""

    LEAST = 100  # clips that a share is of, at least: one bad file among the first is no reason to stop

    def __init__(self, workdir: Path, step: int, clips: int, names: Callable[[int], str]):
        path = workdir / "failed.jsonl"
        kept = lines_until(path, step)
        write_lines(path, kept)
        self.path, self.clips, self.failed, self._names = path, clips, len(kept), names
        self._taken: list[tuple[int, np.ndarray, np.ndarray]] = []  # since hosts last shared theirs

    def take(self, step: int, failures: Failures | None) -> None:
        """Remembers which clips of a host's batch could not be read."""
        if failures is not None:
            self._taken.append(
                (step, failures.number.reshape(-1), failures.error.reshape(-1, failures.error.shape[-1]))
            )

    def share(self) -> None:
        """Counts the clips of all hosts since the last time, and writes down those that could not be read.

        Every host must call it after the same steps.
        """
        if not self._taken:
            return
        steps = np.concatenate([np.full(len(numbers), step) for step, numbers, _ in self._taken])
        numbers, errors = (np.concatenate(parts) for parts in list(zip(*self._taken, strict=True))[1:])
        self._taken = []
        steps, numbers, errors = gathered((steps, numbers, errors))
        self.clips += int((numbers >= 0).sum())
        bad = np.flatnonzero(errors[:, 0])
        bad = bad[np.argsort(steps[bad], kind="stable")]
        if len(bad) and is_first_host():
            lines = [
                {
                    "step": int(steps[at]),
                    "id": self._names(int(numbers[at])),
                    "error": errors[at].tobytes().rstrip(b"\0").decode("utf-8", "ignore"),
                }
                for at in bad
            ]
            append_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self.failed += len(bad)

    def note(self) -> str:
        """Returns what a progress line says of them."""
        return f"failed {self.failed}" if self.failed else ""

    def is_over(self, share: float) -> bool:
        """Whether more of the clips failed than this share."""
        return self.failed > share * max(self.clips, self.LEAST)
