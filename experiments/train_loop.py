"""The loop that every training command runs: steps, metrics, checkpoints, exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import einops
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from data_pipelines.pipeline import Pipeline
from data_pipelines.sft import LEDGER_KEYS
from o3jax.errors import UserError
from o3jax.sft.state import Metrics, TrainState
from o3jax.sharding import batch_sharding, make_mesh

StepFn = Callable[[TrainState, Mapping[str, np.ndarray]], tuple[TrainState, Metrics]]


def is_first_host() -> bool:
    """Returns whether this process is the one of several that writes what all of them know."""
    return jax.process_index() == 0


def gathered(part: np.ndarray) -> np.ndarray:
    """Returns the arrays of all hosts, one behind the other; every host must ask."""
    return multihost_utils.process_allgather(part, tiled=True) if jax.process_count() > 1 else part


class Workdir:
    """What a run leaves behind: config.json, metrics.jsonl, TensorBoard events, checkpoints.

    The same folder resumes; several hosts share it. A run with another config is refused, so that one
    folder never holds two experiments.

    Raises:
        UserError: if the folder belongs to a run with another configuration, or cannot be written.
    """

    # May differ between a run and its continuation.
    FREE_FIELDS = (
        *("log_every", "save_every", "stop_at_step", "num_workers", "frame_cache", "frame_cache_gib"),
        *("feature_cache", "feature_cache_gib", "max_rejected_share", "max_failed_share"),
        *("max_failed_rewards", "reward_time_limit_s", "reward_workers"),
    )

    def __init__(self, path: str | Path, config: ConfigDict):
        self.path = Path(path).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--workdir={path} cannot be a folder ({error.strerror}): name another one"
            ) from None
        new = json.loads(config.to_json())
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(self.path / "checkpoints", options=options)
        known = self.path / "config.json"
        # A run that failed before its first checkpoint left nothing that another could spoil.
        if known.exists() and self.manager.latest_step() is not None:
            old = json.loads(known.read_text())
            changed = sorted(
                k for k in {*old, *new} if old.get(k) != new.get(k) and k not in self.FREE_FIELDS
            )
            if changed:
                raise UserError(
                    f"{self.path} holds a run with another config.{changed[0]}: give another --workdir, "
                    "or the config that it was started with"
                )
        if is_first_host():
            _replace(known, json.dumps(new, indent=2) + "\n")

    def save(self, state: TrainState, position: Position) -> None:
        """Saves state and data position under the state's step; returns when the checkpoint is complete."""
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_flat(state)), data=ocp.args.JsonSave(dataclasses.asdict(position))
        )
        self.manager.save(step, args=args)
        self.manager.wait_until_finished()

    def restore(self, state: TrainState, start: Position) -> tuple[TrainState, Position]:
        """Returns the newest saved state and where its data stopped; what was given if none is saved.

        Raises:
            UserError: if the data are not those of the saved state: the position would mean other samples.
        """
        step = self.manager.latest_step()
        if step is None:
            return state, start
        data = self.manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
        changed = [name for name, fact in start.facts.items() if data["facts"].get(name) != fact]
        if changed:
            raise UserError(
                f"{self.path} was trained with {changed[0]} {data['facts'].get(changed[0])}, which now is "
                f"{start.facts[changed[0]]}, so its order of samples cannot be continued: put that back as "
                "it was, or give another --workdir"
            )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_flat(state)))
        saved = self.manager.restore(step, args=args)["state"]
        structure = jax.tree.structure(state)
        restored = jax.tree.unflatten(structure, [saved[name] for name in _flat(state)])
        return restored, Position(**data)


@dataclasses.dataclass(frozen=True)
class Position:
    """Where in its data a run is; the next batch starts at row `rows`."""

    rows: int = 0
    clips: int = 0  # that were in these rows
    facts: Mapping[str, str | int] = dataclasses.field(default_factory=dict)  # of `Pipeline`


def _replace(path: Path, text: str) -> None:
    """Writes the whole file or nothing: a run may be killed at any moment, and must find it again."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


def _flat(state: TrainState) -> dict[str, jax.Array]:
    """Returns the arrays by their path, so that a checkpoint does not depend on our classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


class MetricsLog:
    """metrics.jsonl and TensorBoard; lines after the resumed step are dropped, so curves are one line."""

    def __init__(self, workdir: Path, step: int):
        path = workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        first = is_first_host()
        if first:
            _replace(path, "".join(line + "\n" for line in kept))
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


def _step_of(line: str) -> float:
    # A line that was cut off when the process was killed counts as not written.
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


class Ledger:
    """Which samples could not be read, in WORKDIR/failed.jsonl; they were in their rows, masked."""

    LEAST = 100  # clips that a share is of, at least: one bad file among the first is no reason to stop

    def __init__(self, workdir: Path, step: int, clips: int, names: Callable[[int], str]):
        path = workdir / "failed.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        if is_first_host():
            _replace(path, "".join(line + "\n" for line in kept))
        self.path, self.clips, self.failed, self._names = path, clips, len(kept), names

    def take(self, step: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the batch without what only the ledger reads, which is written down."""
        if not all(key in batch for key in LEDGER_KEYS):
            return batch
        numbers, errors = (gathered(batch[key].reshape(-1, *batch[key].shape[2:])) for key in LEDGER_KEYS)
        self.clips += int((numbers >= 0).sum())
        bad = np.flatnonzero(errors[:, 0])
        if len(bad) and is_first_host():
            with self.path.open("a", encoding="utf-8") as file:
                for at in bad:
                    error = errors[at].tobytes().rstrip(b"\0").decode("utf-8", "ignore")
                    line = {"step": step, "id": self._names(int(numbers[at])), "error": error}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.failed += len(bad)
        return {key: value for key, value in batch.items() if key not in LEDGER_KEYS}

    def note(self) -> str:
        return f"failed {self.failed}" if self.failed else ""

    def is_over(self, share: float) -> bool:
        return self.failed > share * max(self.clips, self.LEAST)


@dataclasses.dataclass
class Clock:
    """Where the time goes between two lines of the log."""

    started: float = dataclasses.field(default_factory=time.perf_counter)
    waited: float = 0.0

    def next(self, batches: Iterator[Any]) -> Any:
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        return batch


def open_mesh(config: ConfigDict) -> Mesh:
    """Returns the mesh of `config.mesh`, over the first devices if it needs fewer than there are."""
    needed, found = math.prod(config.mesh.values()), jax.device_count()
    if needed > found:
        raise UserError(f"config.mesh needs {needed} devices, but there are {found}: make its axes smaller")
    hosts = jax.process_count()
    if hosts > 1 and (needed < found or config.mesh.data * config.mesh.fsdp % hosts):
        raise UserError(
            f"config.mesh must use all {found} devices of {hosts} hosts, and data x fsdp must be a multiple "
            f"of {hosts}, or their parts of a batch would overlap: change its axes"
        )
    if needed < found:
        print(f"config.mesh uses {needed} of {found} devices", flush=True)
    return make_mesh(jax.devices()[:needed], **config.mesh)


def micro_batches(batch: Mapping[str, np.ndarray], steps: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the batch with a leading axis of micro-batches, each spread over the mesh's data axes.

    Of several hosts each gives its own rows.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))
    split = {key: einops.rearrange(a, "(a b) ... -> a b ...", a=steps) for key, a in batch.items()}
    return {key: jax.make_array_from_process_local_data(sharding, a) for key, a in split.items()}


def train(
    state: TrainState,
    step_fn: StepFn,
    pipeline: Pipeline,
    prepare: Callable[[Any], Mapping[str, np.ndarray]],
    workdir: Workdir,
    config: ConfigDict,
    note: str = "",
    names: Callable[[int], str] = str,
) -> TrainState:
    """Returns the state after `config.max_steps` steps, continuing from the workdir's checkpoint.

    Args:
        state: the state before the first step.
        step_fn: a jitted step that donates its state.
        pipeline: batches; the position in it is part of every checkpoint.
        prepare: host batch -> what `step_fn` takes.
        workdir: where everything is kept.
        config: log_every, save_every, max_steps, and stop_at_step (0: none) to end a run early as if
            it had been preempted.
        note: stands on every progress line, such as how many records were rejected.
        names: what a clip is called by its number.

    Raises:
        UserError: if more clips than the share `config.max_failed_share` cannot be read; the state is saved.
    """
    state, start = workdir.restore(state, Position(facts=dict(pipeline.facts)))
    step = first = int(state.step)
    iterator = pipeline.open(start.rows)
    ledger = Ledger(workdir.path, step, start.clips, names)
    if first:
        print(f"resuming {workdir.path} from step {first}", flush=True)
    log = MetricsLog(workdir.path, step)
    stop = {"now": False}
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.update(now=True))
    last = min(config.max_steps, config.stop_at_step or config.max_steps)
    run_started, clock = time.perf_counter(), Clock()
    window: list[Metrics] = []
    stopping = False

    def save(step: int) -> None:
        rows = start.rows + (step - first) * pipeline.batch_size
        workdir.save(state, Position(rows, ledger.clips, dict(pipeline.facts)))

    try:
        while step < last and not stopping:
            batch = ledger.take(step + 1, clock.next(iterator))
            try:
                state, metrics = step_fn(state, prepare(batch))
            except UserError:  # raised on the host, before the state was given away
                if window:  # as before every checkpoint, see below
                    log.write(step, window)
                if step > first:
                    save(step)
                raise
            window.append(metrics)
            step += 1
            failing = ledger.is_over(config.get("max_failed_share", 1.0))
            # Read once: a signal that comes later ends the next step, which saves. Any host may get it.
            stopping = bool(gathered(np.array([stop["now"]])).any())
            saving = step % config.save_every == 0 or step == last or stopping or failing
            if step % config.log_every == 0 or saving:
                # Before a checkpoint too: a step that is not repeated must not be missing in the log.
                values = log.write(step, window)
                elapsed = time.perf_counter() - clock.started
                rate, waited = len(window) / elapsed, clock.waited / elapsed
                told = "  ".join(filter(None, (note, ledger.note())))
                if is_first_host():
                    _print_progress(step, config.max_steps, values, rate, waited, told)
                window, clock = [], Clock()
            if saving:
                save(step)
            if failing:
                raise UserError(
                    f"{ledger.failed} of {ledger.clips} clips could not be read, more than the share "
                    f"config.max_failed_share={config.max_failed_share:g}; step {step} is saved: mend what "
                    f"{ledger.path} names, or raise the share"
                )
    finally:
        signal.signal(signal.SIGTERM, previous)
        log.close()
        if hasattr(iterator, "close"):
            iterator.close()
    if stopping:
        print(f"stopped by SIGTERM at step {step}; saved, the same --workdir continues", flush=True)
        sys.exit(0)
    print(
        f"{step - first} steps in {_duration(time.perf_counter() - run_started)}: {workdir.path}", flush=True
    )
    return state


def _print_progress(
    step: int, steps: int, values: Mapping[str, float], rate: float, waited: float, note: str
) -> None:
    # The note comes first, because a narrow terminal cuts the line off.
    shown = "  ".join([*filter(None, [note]), *(f"{name} {value:.4g}" for name, value in values.items())])
    eta = _duration((steps - step) / rate)
    line = f"step {step}/{steps}  {shown}  {rate:.2f} steps/s  data-wait {waited:.0%}  ETA {eta}"
    if sys.stdout.isatty():
        columns = os.get_terminal_size().columns
        print("\r" + line[: columns - 1].ljust(columns - 1), end="\n" if step >= steps else "", flush=True)
    else:
        print(line, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
