"""metrics.jsonl and TensorBoard of a run, and the JSON lines of a run that goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from experiments.training.hosts import is_first_host
from o3jax.files import write_text
from o3jax.train.state import Metrics


def lines_until(path: Path, step: int) -> list[str]:
    """Returns the lines of a file of JSON objects up to a step, from which a run goes on."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if _step_of(line) <= step]


def _step_of(line: str) -> float:
    # A line that was cut off when the process was killed counts as not written.
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


def write_lines(path: Path, lines: list[str]) -> None:
    """Writes a file of lines, whole or not at all; of several hosts the first does."""
    if is_first_host():
        write_text(path, "".join(line + "\n" for line in lines))


class MetricsLog:
    """metrics.jsonl and TensorBoard; lines after the resumed step are dropped, so curves are one line."""

    def __init__(self, workdir: Path, step: int):
        path = workdir / "metrics.jsonl"
        write_lines(path, lines_until(path, step))
        first = is_first_host()
        self.file = open(path if first else os.devnull, "a")
        self.board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1 if step else None, write_to_disk=first
        )

    def write(self, step: int, window: list[Metrics]) -> dict[str, float]:
        """Writes one line for each of the steps up to `step`; returns their mean."""
        rows = [{k: float(v) for k, v in m.items()} for m in jax.device_get(window)]
        for at, values in enumerate(rows, start=step - len(rows) + 1):
            self.file.write(json.dumps({"step": at, **values}) + "\n")
            for name, value in values.items():
                self.board.add_scalar(name, value, at)
        self.file.flush()
        names = dict.fromkeys(name for row in rows for name in row)  # not every step need have all
        return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}

    def close(self) -> None:
        self.file.close()
        self.board.close()
