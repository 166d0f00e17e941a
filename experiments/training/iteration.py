"""GSPO on one screen: what an iteration does, and how the training loop takes its steps."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping

import jax

from data_pipelines.rows.prompts import Minibatch
from experiments.training.build_gspo import GspoRun
from experiments.training.hosts import is_first_host, micro_batches
from experiments.training.loop import Feed, StepFn, train
from experiments.training.metrics_log import lines_until, write_lines
from experiments.training.rewarding import mean_rewards, reward_metrics, totals
from experiments.training.rollouts import Rollout
from experiments.training.samples_page import write_samples
from experiments.training.stopping import Stops
from experiments.training.told import Told, of_all_hosts, sampler_gap
from o3jax.generate.sampling import Sampling
from o3jax.gspo import group_advantages
from o3jax.sharding import use_mesh
from o3jax.train.state import Metrics, TrainState


def train_gspo(run: GspoRun) -> TrainState:
    """Returns the state after the whole run, or where it is told to stop; evaluated at its end."""
    length, stops = run.length, Stops()
    with use_mesh(run.mesh, run.rules), run.rewarder.scorer:
        step = _one_by_one(run, stops)
        feed = Feed(run.prompts, note=run.note, name_of=run.name_of, check=run.check)
        state = train(run.state, step, feed, run.workdir, length, stops=stops)
        if run.held_out is not None and int(state.step) == length.max_steps:
            evaluate(run, state)
    return state


def _one_by_one(run: GspoRun, stops: Stops) -> StepFn:
    """Returns `iteration` as the loop takes it, an optimizer step at a time."""
    steps = None

    def step(state: TrainState, item: Minibatch) -> tuple[TrainState, Metrics]:
        nonlocal steps
        if steps is None or item.number == 0:
            steps = iteration(run, state, item, stops)
        return next(steps)

    return step


def iteration(
    run: GspoRun, state: TrainState, item: Minibatch, stops: Stops
) -> Iterator[tuple[TrainState, Metrics]]:
    """Yields the state after each optimizer step of an iteration, and what there is to log of it.

    Of several hosts each reads, rewards and keeps its own prompts; what devices compute is computed together.

    Args:
        item: the prompts, and the first minibatch. Where it is not 0 the run goes on inside the iteration,
            with the rollout that it saved.
        stops: is asked between the phases: what is then stopped begins the iteration anew.
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
        stops.check()
        texts, progress = run.sampler.texts(sampled), (int(state.step) + 1) / run.length.max_steps
        scored = run.rewarder.score(policy, run.updates, sampled, samples, texts, progress)
        watch.lap("rewards")
        stops.check()
        advantages = group_advantages(totals(scored), **run.advantages)
        logp_old = run.updates.logprobs(policy, sampled)
        logp_ref = None if run.reference is None else run.updates.logprobs(run.reference, sampled)
        watch.lap("logprobs")

        gap = sampler_gap(run.updates, policy, sampled, logp_old)
        told = of_all_hosts(item.prompts.number, texts, scored, advantages, sampled, gap)
        samples = [run.clips[n].samples[0] if n >= 0 else None for n in told.number]
        metrics = reward_metrics(samples, told.scored) | _sampling_metrics(told, watch.seconds)
        if is_first_host():
            shown = samples, told.texts, told.scored, told.advantages, told.finished
            write_samples(run.workdir.path, number, *shown)
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


def _sampling_metrics(told: Told, seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns what the log says of the completions themselves."""
    tokens = int(told.length.sum())
    return dict(seconds) | {
        "length": tokens / told.length.size,
        "truncated": float(1 - told.finished.mean()),
        "tokens_per_s": tokens / seconds["seconds/rollout"],
        "sampler_gap": max(told.gap),
    }


def _clear_rollouts(run: GspoRun, number: int) -> None:
    """Deletes the rollouts that neither this iteration nor any checkpoint goes on from."""
    numbers = {number, *(step // run.prompts.minibatches for step in run.workdir.saved_steps())}
    kept = {run.rollout_path(one) for one in numbers}
    for path in set(run.workdir.path.glob(run.rollout_path("*").name)) - kept:
        path.unlink()


def evaluate(run: GspoRun, state: TrainState) -> None:
    """Adds a line to WORKDIR/eval.jsonl: the rewards of completions of the held-out prompts.

    Greedy ones, as answers are written; under "sampled/" those of the policy, the same draws every time.
    """
    asked = run.held_out
    samples, sources = (
        [clip.samples[0] for clip in asked.clips],
        [run.rows.single_frames(c) for c in asked.clips],
    )
    line: dict[str, float] = {"step": int(state.step)}
    greedy = dataclasses.replace(run.sampler, sampling=Sampling(temperature=0.0))
    policy = run.policy(state)
    for prefix, count, sampler in (("", 1, greedy), ("sampled/", asked.group_size, run.sampler)):
        if count:
            sampled = sampler.sample(policy, asked.prompts, samples, sources, jax.random.key(0), count)
            updates, texts = run.updates.wider(max(count - run.group_size, 0)), sampler.texts(sampled)
            scored = run.rewarder.score(policy, updates, sampled, samples, texts, 1.0)
            told = of_all_hosts(asked.prompts.number, texts, scored, None, sampled, None)
            values = mean_rewards(told.scored) | {"length": float(told.length.mean())}
            line |= {prefix + name: value for name, value in values.items()}
    path = run.workdir.path / "eval.jsonl"
    write_lines(path, [*lines_until(path, line["step"] - 1), json.dumps(line)])
    shown = "  ".join(f"{name} {value:.4g}" for name, value in line.items())
    if is_first_host():
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
