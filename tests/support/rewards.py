"""Reward functions of somebody's own, some of which fail."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any


def checksum(completion: str, sample: Mapping[str, Any]) -> dict[str, float]:
    """Returns a number that depends on the text alone, in [0, 1)."""
    return {"checksum": zlib.crc32(completion.encode()) / 2**32}


def often_fails(completion: str, sample: Mapping[str, Any]) -> dict[str, float]:
    """Like `checksum`, but raises for every fifth text or so."""
    value = checksum(completion, sample)
    if value["checksum"] < 0.2:
        raise ValueError("no verdict")
    return value


def of_question(completion: str, sample: Mapping[str, Any]) -> dict[str, float]:
    """Returns a number that depends on the question alone, in [0, 1)."""
    return {"own": zlib.crc32(sample["question"].encode()) / 2**32}


def fails_late(completion: str, sample: Mapping[str, Any], step_percent: float) -> dict[str, float]:
    """Like `checksum`, but raises in the second half of the training."""
    if step_percent > 0.5:
        raise RuntimeError("out of order by now")
    return checksum(completion, sample)


def fails(completion: str, sample: Mapping[str, Any]) -> float:
    raise RuntimeError("out of order")


def estimated(completion: str, sample: Mapping[str, Any], evidence: Sequence[Any] | None) -> dict[str, float]:
    """Returns whether it was given estimates, and how many of them are whole."""
    whole = [e for e in evidence or () if e.time_s >= 0 and len(e.box) == 4]
    return {"given": float(evidence is not None), "estimates": float(len(whole))}
