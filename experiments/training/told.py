"""What there is to tell of an iteration's completions, of those of all hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.training.hosts import gathered_lists, interleaved
from experiments.training.rollouts import Updates
from experiments.training.sampling import Sampled
from experiments.training.scoring import Scored
from o3jax.models.qwen3_vl import Qwen3VL


@dataclasses.dataclass(frozen=True)
class Told:
    """Prompts in their order, and a group of completions of each."""

    number: list[int]  # of the clip; -1 where it could not be read
    texts: list[list[str]]
    scored: list[list[Scored]]
    advantages: Float[np.ndarray, "B G"]
    length: Int[np.ndarray, "B G"]
    finished: Bool[np.ndarray, "B G"]
    gap: list[float | None]  # see `sampler_gap`


def of_all_hosts(
    number: Int[np.ndarray, " B"],
    texts: Sequence[Sequence[str]],
    scored: Sequence[Sequence[Scored]],
    advantages: Float[np.ndarray, "B G"] | None,
    sampled: Sampled,
    gap: Sequence[float] | None,
) -> Told:
    """Returns what the hosts have to tell, each of its own prompts; all must ask."""
    rows = zip(
        number.tolist(),
        texts,
        [[dataclasses.astuple(one) for one in group] for group in scored],
        np.zeros(sampled.length.shape).tolist() if advantages is None else advantages.tolist(),
        sampled.length.tolist(),
        sampled.finished.tolist(),
        [None] * len(texts) if gap is None else gap,
        strict=True,
    )
    columns = [list(column) for column in zip(*interleaved(gathered_lists(list(rows))), strict=True)]
    columns[2] = [[Scored(*one) for one in group] for group in columns[2]]
    return Told(*columns[:3], *(np.array(column) for column in columns[3:6]), columns[6])


def sampler_gap(
    updates: Updates, policy: Qwen3VL, sampled: Sampled, logp_old: Float[np.ndarray, "B G T"]
) -> list[float]:
    """Returns how far the sampler's log-probabilities are from the trainer's, the most of each prompt.

    What another engine would get wrong. The sampler's are the model's own, at temperature 1.
    """
    if updates.temperature != 1:
        logp_old = dataclasses.replace(updates, temperature=1.0).logprobs(policy, sampled)
    counted = updates.counted(sampled)[..., None]  # the others' log-probabilities are masked
    return np.where(counted, np.abs(logp_old - sampled.logprobs), 0).max((1, 2)).tolist()
