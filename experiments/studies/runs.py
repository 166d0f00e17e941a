"""What studies share: a command in a process of its own, a table entry over seeds, a measure of noise."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from o3jax.errors import UserError


def command(name: str, *arguments: str) -> None:
    """Runs one of the commands of this project; it prints its own progress and mistakes.

    Raises:
        UserError: if it fails.
    """
    if subprocess.run([sys.executable, "-m", f"experiments.{name}", *arguments]).returncode:
        raise UserError(f"experiments.{name} failed, see above; the same command goes on from there")


def at(metrics: Any, path: Sequence[str]) -> float | None:
    """Returns a number of an evaluation's `metrics`, or None if there is none."""
    for name in path:
        metrics = None if metrics is None else metrics.get(name)
    return metrics


def entry(values: Sequence[float | None]) -> str:
    """Returns the mean of some seeds' values with their range, or the only one."""
    if None in values:
        return "-"
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


def signal_share(gradients: Sequence[Float[np.ndarray, " n"]]) -> tuple[float, float]:
    """Returns which share of a gradient's squared length is that of their mean, and its standard error.

    Unbiased: products of different gradients over squares; the error is the jackknife's over gradients.
    """
    stacked = np.stack(gradients).astype(np.float64)
    gram = stacked @ stacked.T

    def share(kept: np.ndarray) -> float:
        some, n = gram[np.ix_(kept, kept)], len(kept)
        return (some.sum() - np.trace(some)) / (n - 1) / np.trace(some)

    everything = np.arange(len(gram))
    left_out = np.array([share(np.delete(everything, one)) for one in everything])
    error = np.sqrt((len(gram) - 1) * np.mean(np.square(left_out - left_out.mean())))
    return float(share(everything)), float(error)
