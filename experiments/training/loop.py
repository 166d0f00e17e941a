"""The loop that every training command runs: steps, metrics, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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


@dataclasses.dataclass
class _Clock:
    """Where the time goes between two lines of the log."""

    started: float = dataclasses.field(default_factory=time.perf_counter)
    waited: float = 0.0

    def next(self, batches: Iterator[Any]) -> Any:
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        return batch


def train(
    state: TrainState,
    step_fn: StepFn,
    pipeline: Pipeline,
    prepare: Callable[[Any], Any],
    workdir: Workdir,
    length: RunLength,
    note: str = "",
    names: Callable[[int], str] = str,
    *,
    held_out: HeldOut | None = None,
    stops: Stops | None = None,
) -> TrainState:
    """Returns the state after `length.max_steps` steps, continuing from the workdir's checkpoint.

    Args:
        state: the state before the first step.
        step_fn: a step that donates its state.
        pipeline: batches; the position in it is part of every checkpoint.
        prepare: host batch -> what `step_fn` takes.
        workdir: where everything is kept.
        note: stands on every progress line, such as how many records were rejected.
        names: what a clip is called by its number.
        held_out: is evaluated meanwhile.
        stops: what listens for signals, where `step_fn` asks it too.

    Raises:
        UserError: if more clips than the share `max_failed_share` cannot be read, or a loss or the norm of
            its gradient is no finite number; the last good state is saved.
    """
    state, start = workdir.restore(state, Position(data_fingerprint=dict(pipeline.data_fingerprint)))
    step = first = int(state.step)
    iterator = pipeline.open(start.rows)
    failures = FailedSamples(workdir.path, step, start.clips, names)
    if first:
        print(f"resuming {workdir.place} from step {first}", flush=True)
    log = MetricsLog(workdir.path, step)
    stops = stops or Stops()
    run_started, clock = time.perf_counter(), _Clock()
    window: list[Metrics] = []
    stopping = False

    def save() -> None:
        rows = start.rows + (step - first) * pipeline.batch_size
        workdir.save(state, Position(rows, failures.clips, dict(pipeline.data_fingerprint)))

    def check_finite() -> None:
        """Waits for the last step; where it went wrong, it left the state as it was and is taken back."""
        nonlocal step
        wrong = _not_finite(window[-1]) if window else ""
        if wrong:
            window.pop()
            step -= 1
            raise EverywhereError(_went_wrong(step, wrong))

    with contextlib.ExitStack() as at_end:
        at_end.enter_context(stops)
        at_end.callback(workdir.wait)  # a signal does not tear the checkpoint that is being written
        at_end.callback(log.close)
        if hasattr(iterator, "close"):
            at_end.callback(iterator.close)
        profile = at_end.enter_context(profiled(workdir.path / "profile", length.profiled))
        while step < length.last and not stopping:
            batch = clock.next(iterator)
            try:
                ready = prepare(batch)  # while the device is at the step before
                check_finite()
                failures.take(step + 1, getattr(batch, "failures", None))
                profile(step, state)
                state, metrics = step_fn(state, ready)
                window.append(metrics)
                step += 1
                if held_out is not None and held_out.is_due(step, length):
                    check_finite()
                    found = {f"eval/{name}": v for name, v in held_out.evaluate(state).items()}
                    window[-1] = dict(metrics) | found
                if length.logs_after(step) or jax.process_count() == 1:
                    # Read once: a signal that comes later ends a later step. Any host may get it.
                    stopping = stops.anywhere()
                    failures.share()
                failing = failures.is_over(length.max_failed_share)
                saving = length.saves_after(step) or stopping or failing
                writing = length.logs_after(step) or saving
                if writing:
                    check_finite()
            except (UserError, StopAskedError) as stopped:  # the state is that of the step before
                if jax.process_count() > 1 and not isinstance(stopped, EverywhereError | StopAskedError):
                    raise  # of this host alone: the others would not save with it
                failures.share()
                if window:  # as before every checkpoint, see below
                    log.write(step, window)
                if step > first:
                    save()
                if isinstance(stopped, UserError):
                    raise
                stopping = True
                break
            if writing:
                # Before a checkpoint too: a step that is not repeated must not be missing in the log.
                values = log.write(step, window)
                elapsed = time.perf_counter() - clock.started
                rate, waited = len(window) / elapsed, clock.waited / elapsed
                if is_first_host():
                    notes = "  ".join(filter(None, (note, failures.note())))
                    _print_progress(step, length.max_steps, values, rate, waited, notes)
                window, clock = [], _Clock()
            if saving:
                save()
            if failing:
                raise UserError(
                    f"{failures.failed} of {failures.clips} clips could not be read, more than the share "
                    f"config.max_failed_share={length.max_failed_share:g}; step {step} is saved: mend what "
                    f"{failures.path} names, or raise the share"
                )
    if stopping:
        saved = "saved, " if step else ""
        print(f"stopped by {stops.by()} at step {step}; {saved}the same --workdir continues", flush=True)
        sys.exit(0)
    print(
        f"{step - first} steps in {_duration(time.perf_counter() - run_started)}: {workdir.place}", flush=True
    )
    return state


def _not_finite(metrics: Metrics) -> str:
    """Returns which of a step's loss and gradient norm is no finite number, and what it is; "" for none."""
    found = {name: float(metrics[name]) for name in ("loss", "grad_norm") if name in metrics}
    return next((f"{name} {value}" for name, value in found.items() if not math.isfinite(value)), "")


def _went_wrong(step: int, wrong: str) -> str:
    """Returns the sentence that ends a run whose step after `step` went wrong."""
    kept = f"step {step} was the last good one and is saved" if step else "nothing was trained"
    return (
        f"step {step + 1} has {wrong}; {kept}: start again in another --workdir with a lower "
        "config.learning_rate or config.max_grad_norm, or with config.compute_dtype=float32"
    )


def _print_progress(
    step: int, steps: int, values: Mapping[str, float], rate: float, waited: float, note: str
) -> None:
    # The note comes first, because a narrow terminal cuts the line off.
    shown = "  ".join([*filter(None, [note]), *(f"{name} {value:.4g}" for name, value in values.items())])
    eta = _duration((steps - step) / rate)
    line = f"step {step}/{steps}  {shown}  {rate:.2f} steps/s  data-wait {waited:.0%}  ETA {eta}"
    if sys.stdout.isatty():
        rewrite_line(line, last=step >= steps)
    else:
        print(line, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
