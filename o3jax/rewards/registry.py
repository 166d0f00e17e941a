"""Reward functions by name: (completion, sample) -> a number, or a dictionary of terms with their "total".

A sample is a record in the published format with, beside its fields, `duration` in seconds and `evidence`, a
list of {"object", "time", "box"} with normalised boxes; time and box may be None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from o3jax.errors import UserError
from o3jax.rewards import open_o3

Reward = Callable[[str, Mapping[str, Any]], float | Mapping[str, float]]

REWARDS: dict[str, Reward] = {"format": open_o3.format_term}


def total(reward: str, completion: str, sample: Mapping[str, Any]) -> float:
    """Returns what a completion is worth by the named reward function.

    Raises:
        UserError: if there is none of this name.
    """
    if reward not in REWARDS:
        raise UserError(f"--reward={reward!r:.80} is unknown; use one of {', '.join(REWARDS)}")
    score = REWARDS[reward](completion, sample)
    return float(score["total"] if isinstance(score, Mapping) else score)
