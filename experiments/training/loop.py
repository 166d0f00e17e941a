"""The loop that every training command runs: steps, metrics, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.rows.pipeline import Pipeline
from experiments.cli.terminal import rewrite_line
from experiments.training.failed_samples import FailedSamples
from experiments.training.hosts import EverywhereError, is_first_host
from experiments.training.metrics_log import MetricsLog
from experiments.training.profiling import profiled
from experiments.training.stopping import StopAskedError, Stops
from experiments.training.workdir import Position, Workdir
from o3jax.errors import UserError
from o3jax.printing import clock
from o3jax.train.state import Metrics, TrainState

StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class RunLength:
    """How many steps a run has, and at which of them it writes what."""

    max_steps: int
    log_every: int
    save_every: int
    stop_at_step: int = 0  # ends the run early, as if it had been preempted; 0 is off
    max_failed_share: float = 1.0  # of the clips that were to be read; more stops the run, saved
    profiled: range = range(0)  # steps whose trace is written

    @classmethod
    def of(cls, config: ConfigDict, max_steps: int) -> RunLength:
        """Returns that of a config, which may say its steps in epochs."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in config]
        found = {name: config[name] for name in names} | {"max_steps": max_steps}
        if "profile" in config:
            start = config.profile.start
            found["profiled"] = range(start, start + config.profile.steps)
        return cls(**found)

    def logs_after(self, step: int) -> bool:
        """Returns whether lines are written after a step, as they are before every checkpoint too."""
        return step % self.log_every == 0 or self.saves_after(step)

    def saves_after(self, step: int) -> bool:
        """Returns whether a checkpoint is written after a step."""
        return step % self.save_every == 0 or step == self.last

    @property
    def last(self) -> int:
        """The step that the run ends with."""
        return min(self.max_steps, self.stop_at_step or self.max_steps)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Rows that are not trained on; what they say stands in the log beside the metrics of some steps."""

    every: int  # steps; after the last one too
    evaluate: Callable[[TrainState], Mapping[str, float]]

    def is_due(self, step: int, length: RunLength) -> bool:
        """Returns whether to evaluate after a step: wherever the run was interrupted, the same ones."""
        return step % self.every == 0 or step == length.max_steps


@dataclasses.dataclass(frozen=True)
class Feed:
    """Where the batches of a run come from; an `SftRun` is one itself."""

    pipeline: Pipeline  # the position in it is part of every checkpoint
    prepare: Callable[[Any], Any] = lambda batch: batch  # host batch -> what a step takes
    note: str = ""  # on every progress line, such as how many records were rejected
    name_of: Callable[[int], str] = str  # what a clip is called by its number
    check: Callable[[int], None] = lambda step: None  # raises where what goes on from a step is not whole


class _Steps:
    """How far a run is: its steps, and what those since the last line of the log say."""

    def __init__(self, done: int):
        self.done = done
        self._begin()

    def _begin(self) -> None:
        self.metrics: list[dict[str, Any]] = []
        self.started, self.waited = time.perf_counter(), 0.0

    def next(self, batches: Iterator[Any]) -> Any:
        """Returns the next batch; the time that it takes to come is told."""
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        return batch

    def took(self, metrics: Metrics) -> None:
        """Counts a step."""
        self.metrics.append(dict(metrics))
        self.done += 1

    def check_finite(self) -> None:
        """Waits for the last step; one that went wrong left the state as it was, and is taken back."""
        last = self.metrics[-1] if self.metrics else {}
        found = {name: float(last[name]) for name in ("loss", "grad_norm") if name in last}
        if wrong := [f"{name} {value}" for name, value in found.items() if not math.isfinite(value)]:
            self.metrics.pop()
            self.done -= 1
            kept = (
                f"step {self.done} was the last good one and is saved" if self.done else "nothing was trained"
            )
            raise EverywhereError(
                f"step {self.done + 1} has {wrong[0]}; {kept}: start again in another --workdir with a lower "
                "config.learning_rate or config.max_grad_norm, or with config.compute_dtype=float32"
            )

    def tell(self, log: MetricsLog, steps: int, notes: Iterable[str]) -> None:
        """Writes a line of the log for each step, and prints how far the run is."""
        values, elapsed = log.write(self.done, self.metrics), time.perf_counter() - self.started
        rate, waited = len(self.metrics) / elapsed, self.waited / elapsed
        self._begin()
        if not is_first_host():
            return
        # The notes come first, because a narrow terminal cuts the line off.
        shown = "  ".join([*filter(None, notes), *(f"{name} {value:.4g}" for name, value in values.items())])
        eta = clock(round((steps - self.done) / rate))
        line = f"step {self.done}/{steps}  {shown}  {rate:.2f} steps/s  data-wait {waited:.0%}  ETA {eta}"
        if sys.stdout.isatty():
            rewrite_line(line, last=self.done >= steps)
        else:
            print(line, flush=True)


def train(
    state: TrainState,
    step_fn: StepFn,
    feed: Feed,
    workdir: Workdir,
    length: RunLength,
    *,
    held_out: HeldOut | None = None,
    stops: Stops | None = None,
) -> TrainState:
    """Returns the state after `length.max_steps` steps, continuing from the workdir's checkpoint.

    Args:
        state: the state before the first step.
        step_fn: a step that donates its state.
        held_out: is evaluated meanwhile.
        stops: what listens for signals, where `step_fn` asks it too.

    Raises:
        UserError: if more clips than the share `max_failed_share` cannot be read, or a loss or the norm of
            its gradient is no finite number; the last good state is saved.
    """
    pipeline, begun = feed.pipeline, time.perf_counter()
    begin = Position(data_fingerprint=dict(pipeline.data_fingerprint))
    state, start = workdir.restore(state, begin, feed.check)
    first, steps = int(state.step), _Steps(int(state.step))
    iterator = pipeline.open(start.rows)
    failures = FailedSamples(workdir.path, first, start.clips, feed.name_of)
    if first:
        print(f"resuming {workdir.place} from step {first}", flush=True)
    log, stops, stopping = MetricsLog(workdir.path, first), stops or Stops(), False

    def save() -> None:
        rows = start.rows + (steps.done - first) * pipeline.batch_size
        workdir.save(state, Position(rows, failures.clips, dict(pipeline.data_fingerprint)))

    with contextlib.ExitStack() as at_end:
        at_end.enter_context(stops)
        at_end.callback(workdir.wait)  # a signal does not tear the checkpoint that is being written
        at_end.callback(log.close)
        if hasattr(iterator, "close"):
            at_end.callback(iterator.close)
        profile = at_end.enter_context(profiled(workdir.path / "profile", length.profiled))
        while steps.done < length.last and not stopping:
            batch = steps.next(iterator)
            try:
                ready = feed.prepare(batch)  # while the device is at the step before
                steps.check_finite()
                failures.take(steps.done + 1, getattr(batch, "failures", None))
                profile(steps.done, state)
                state, metrics = step_fn(state, ready)
                steps.took(metrics)
                if held_out is not None and held_out.is_due(steps.done, length):
                    steps.check_finite()
                    found = held_out.evaluate(state).items()
                    steps.metrics[-1] |= {f"eval/{name}": value for name, value in found}
                if length.logs_after(steps.done) or jax.process_count() == 1:
                    # Read once: a signal that comes later ends a later step. Any host may get it.
                    stopping = stops.anywhere()
                    failures.share()
                failing = failures.is_over(length.max_failed_share)
                saving = length.saves_after(steps.done) or stopping or failing
                telling = length.logs_after(steps.done) or saving
                if telling:
                    steps.check_finite()
            except (UserError, StopAskedError) as stopped:  # the state is that of the step before
                if jax.process_count() > 1 and not isinstance(stopped, EverywhereError | StopAskedError):
                    raise  # of this host alone: the others would not save with it
                failures.share()
                if steps.metrics:  # as before every checkpoint, see below
                    log.write(steps.done, steps.metrics)
                if steps.done > first:
                    save()
                if isinstance(stopped, UserError):
                    raise
                stopping = True
                break
            if telling:
                # Before a checkpoint too: a step that is not repeated must not be missing in the log.
                steps.tell(log, length.max_steps, (feed.note, failures.note()))
            if saving:
                save()
            if failing:
                raise UserError(
                    f"{failures.failed} of {failures.clips} clips could not be read, more than the share "
                    f"config.max_failed_share={length.max_failed_share:g}; step {steps.done} is saved: mend "
                    f"what {failures.path} names, or raise the share"
                )
    if stopping:
        saved = "saved, " if steps.done else ""
        print(
            f"stopped by {stops.by()} at step {steps.done}; {saved}the same --workdir continues", flush=True
        )
        sys.exit(0)
    took = clock(round(time.perf_counter() - begun))
    print(f"{steps.done - first} steps in {took}: {workdir.place}", flush=True)
    return state
