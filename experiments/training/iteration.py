"""GSPO on one screen: what an iteration does, and how the training loop takes its steps."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Float

from data_pipelines.rows.prompts import Minibatch
from experiments.training.build_gspo import GspoRun
from experiments.training.hosts import micro_batches
from experiments.training.loop import StepFn, train
from experiments.training.metrics_log import lines_until, write_lines
from experiments.training.rewarding import mean_rewards, reward_metrics, totals
from experiments.training.rollouts import Rollout
from experiments.training.samples_page import write_samples
from experiments.training.sampling import Sampled
from o3jax.generate.sampling import Sampling
from o3jax.gspo import group_advantages
from o3jax.sharding import use_mesh
from o3jax.train.state import Metrics, TrainState


def train_gspo(run: GspoRun) -> TrainState:
    """Returns the state after the whole run, or where it is told to stop; evaluated at its end."""
    rows, length = run.prompts, run.length
    with use_mesh(run.mesh, run.rules), run.rewarder.scorer:
        state = train(
            run.state, _one_by_one(run), rows, lambda item: item, run.workdir, length, run.note, run.name_of
        )
        if run.held_out is not None and int(state.step) == length.max_steps:
            evaluate(run, state)
    return state


def _one_by_one(run: GspoRun) -> StepFn:
    """Returns `iteration` as the loop takes it, an optimizer step at a time."""
    steps = None

    def step(state: TrainState, item: Minibatch) -> tuple[TrainState, Metrics]:
        nonlocal steps
        if steps is None or item.number == 0:
            steps = iteration(run, state, item)
        return next(steps)

    return step


def iteration(run: GspoRun, state: TrainState, item: Minibatch) -> Iterator[tuple[TrainState, Metrics]]:
    """Yields the state after each optimizer step of an iteration, and what there is to log of it.

    Args:
        item: the prompts, and the first minibatch. Where it is not 0 the run goes on inside the iteration,
            with the rollout that it saved.
    """
    number, policy = int(state.step) // run.prompts.minibatches, run.policy(state)
    path = run.rollout_path(number)
    if item.number == 0:
        if run.held_out is not None and number % run.held_out.every == 0:
            evaluate(run, state)
        clips = [run.clips[n] if n >= 0 else None for n in item.prompts.number.tolist()]
        samples = [clip and clip.samples[0] for clip in clips]
        sources = [clip and run.rows.single_frames(clip) for clip in clips]
        watch = Stopwatch()

        key = jax.random.fold_in(jax.random.key(run.seed), number)
        sampled = run.sampler.sample(policy, item.prompts, samples, sources, key, run.group_size)
        watch.lap("rollout")
        texts, progress = run.sampler.texts(sampled), (int(state.step) + 1) / run.length.max_steps
        scored = run.rewarder.score(policy, run.updates, sampled, samples, texts, progress)
        watch.lap("rewards")
        advantages = group_advantages(totals(scored), **run.advantages)
        logp_old = run.updates.logprobs(policy, sampled)
        logp_ref = None if run.reference is None else run.updates.logprobs(run.reference, sampled)
        watch.lap("logprobs")

        metrics = reward_metrics(samples, scored) | _sampling_metrics(run, sampled, logp_old, watch.seconds)
        write_samples(run.workdir.path, number, samples, texts, scored, advantages, sampled.finished)
        run.rewarder.check()
        rollout = Rollout(sampled, advantages, logp_old, logp_ref, metrics)
        rollout.save(path)
        _clear_rollouts(run, number)
    else:
        rollout = Rollout.load(path, run.sampler.read_again(policy, item.prompts))
    del policy  # its memory is the updates'

    for minibatch in range(item.number, run.prompts.minibatches):
        watch = Stopwatch()
        batch = run.updates.minibatch(rollout, minibatch)
        state, metrics = run.step(state, micro_batches(batch, steps=run.micro_batches, mesh=run.mesh))
        jax.block_until_ready(metrics)
        watch.lap("update")
        yield state, dict(metrics) | rollout.metrics | watch.seconds | {"minibatch": minibatch}


def _sampling_metrics(
    run: GspoRun, sampled: Sampled, logp_old: Float[np.ndarray, "B G T"], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Returns what the log says of the completions themselves."""
    tokens = int(sampled.length.sum())
    counted = run.updates.counted(sampled)  # the others' log-probabilities are masked
    return dict(seconds) | {
        "length": tokens / sampled.length.size,
        "truncated": float(1 - sampled.finished.mean()),
        "tokens_per_s": tokens / seconds["seconds/rollout"],
        # The sampler's log-probabilities against the trainer's: what another engine would get wrong.
        "sampler_gap": float(np.abs(logp_old - sampled.logprobs)[counted].max(initial=0)),
    }


def _clear_rollouts(run: GspoRun, number: int) -> None:
    """Deletes the rollouts that neither this iteration nor any checkpoint goes on from."""
    numbers = {number, *(step // run.prompts.minibatches for step in run.workdir.manager.all_steps())}
    kept = {run.rollout_path(one) for one in numbers}
    for path in set(run.workdir.path.glob("rollout_*.npz")) - kept:
        path.unlink()


def evaluate(run: GspoRun, state: TrainState) -> None:
    """Adds a line to WORKDIR/eval.jsonl: the rewards of completions of the held-out prompts.

    Greedy ones, as answers are written; under "sampled/" those of the policy, the same draws every time.
    """
    policy, asked = run.policy(state), run.held_out
    samples, sources = (
        [clip.samples[0] for clip in asked.clips],
        [run.rows.single_frames(c) for c in asked.clips],
    )
    line: dict[str, float] = {"step": int(state.step)}
    greedy = dataclasses.replace(run.sampler, sampling=Sampling(temperature=0.0))
    for prefix, count, sampler in (("", 1, greedy), ("sampled/", asked.group_size, run.sampler)):
        if count:
            sampled = sampler.sample(policy, asked.prompts, samples, sources, jax.random.key(0), count)
            updates = run.updates.wider(max(count - run.group_size, 0))
            scored = run.rewarder.score(policy, updates, sampled, samples, sampler.texts(sampled), 1.0)
            values = mean_rewards(scored) | {"length": float(sampled.length.mean())}
            line |= {prefix + name: value for name, value in values.items()}
    path = run.workdir.path / "eval.jsonl"
    write_lines(path, [*lines_until(path, line["step"] - 1), json.dumps(line)])
    shown = "  ".join(f"{name} {value:.4g}" for name, value in line.items())
    print(f"held out: {shown}", flush=True)


class Stopwatch:
    """Seconds of the phases of an iteration."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a phase, whose seconds stand under this name."""
        now = time.perf_counter()
        self.seconds[f"seconds/{name}"], self._last = now - self._last, now
