"""Completions -> rewards, and what the log says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from data_pipelines.formats.sample import Sample
from experiments.data.audit import as_record
from experiments.training.estimates import estimates_of
from experiments.training.hosts import EverywhereError, gathered
from experiments.training.rollouts import Updates
from experiments.training.sampling import Sampled
from experiments.training.scoring import Scored, Scorer
from o3jax.errors import UserError
from o3jax.inputs.processor import Processor
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.rewards import registry


def open_scorer(config: ConfigDict) -> Scorer:
    """Returns what scores completions by the reward of a config.

    Raises:
        UserError: if there is no such reward, or it cannot read what it is to reward.
    """
    options = config.reward_options.to_dict()
    if config.reward_evidence != "text":
        reads = registry.parameters(registry.load(config.reward))
        if not reads & {"evidence", "source"}:
            raise UserError(
                f"config.reward_evidence is '{config.reward_evidence}', but reward '{config.reward}' reads "
                "the text alone: write text, or a reward with a parameter `evidence`, such as article"
            )
        options |= {"source": config.reward_evidence} if "source" in reads else {}
    return Scorer(
        config.reward,
        options=options,
        workers=config.reward_workers,
        time_limit_s=config.reward_time_limit_s,
        fallback=config.reward_fallback,
        max_failed_share=config.max_failed_rewards,
    )


@dataclasses.dataclass(frozen=True)
class Rewarder:
    """How completions are rewarded."""

    scorer: Scorer
    processor: Processor
    reads_estimates: bool  # of the evidence modules

    def score(
        self,
        policy: Qwen3VL,
        updates: Updates,
        sampled: Sampled,
        samples: Sequence[Sample | None],
        texts: Sequence[Sequence[str]],
        step_percent: float,
    ) -> list[list[Scored]]:
        """Returns what the completions are worth; those about a clip that could not be read all 0."""
        group, evidence = sampled.tokens.shape[1], None
        readable = [row for row, one in enumerate(samples) if one is not None]
        if self.reads_estimates:
            found = estimates_of(policy, self.processor, updates, sampled)
            evidence = [one for row in readable for one in found[row]]
        completions = [text for row in readable for text in texts[row]]
        records = [as_record(samples[row]) for row in readable for _ in range(group)]
        results = iter(self.scorer.score(completions, records, evidence, step_percent))
        scored = [
            [Scored({}, 0.0) if one is None else next(results) for _ in range(group)] for one in samples
        ]
        for error in [one.error for row in scored for one in row if one.error]:
            print(f"not scored: {error}", flush=True)
        return scored

    def check(self) -> None:
        """Raises a UserError if too many completions of the run could not be scored; all hosts must ask."""
        failed, scored = gathered(np.array([[self.scorer.failed, self.scorer.scored]])).sum(0).tolist()
        if self.scorer.is_over(failed, scored):
            raise EverywhereError(
                f"{failed} of {scored} completions could not be scored, more than "
                f"the share config.max_failed_rewards={self.scorer.max_failed_share:g}: mend the reward "
                "function, or raise config.reward_time_limit_s or the share: the command then goes on here"
            )


def totals(scored: Sequence[Sequence[Scored]]) -> Float[np.ndarray, "B G"]:
    """Returns the rewards alone."""
    return np.array([[one.total for one in group] for group in scored], np.float32)


def mean_rewards(scored: Sequence[Sequence[Scored]]) -> dict[str, float]:
    """Returns the mean reward and that of each term, over the completions that have it."""
    flat = [one for group in scored for one in group]
    means = {"reward": float(np.mean([one.total for one in flat]))}
    for name in sorted({name for one in flat for name in one.terms}):
        means[f"reward/{name}"] = float(np.mean([one.terms[name] for one in flat if name in one.terms]))
    return means


def reward_metrics(samples: Sequence[Sample | None], scored: Sequence[Sequence[Scored]]) -> dict[str, float]:
    """Returns what the log says of the rewards of the groups whose clip could be read."""
    read = [row for row, one in enumerate(samples) if one is not None] or [*range(len(samples))]
    rewards = totals(scored)
    spread = rewards[read].max(-1) - rewards[read].min(-1)
    by_task: dict[str, list[float]] = {}
    for one, row in zip(samples, rewards, strict=True):
        if one is not None:
            by_task.setdefault(one.task, []).append(row.mean())
    return (
        mean_rewards([scored[row] for row in read])
        | {f"task/{task}": float(np.mean(means)) for task, means in sorted(by_task.items())}
        | {"reward_std": float(rewards[read].std(-1, ddof=1).mean())}
        | {"zero_variance": float((spread == 0).mean())}
    )
