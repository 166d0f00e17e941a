"""The folder of a run: its config, its checkpoints, and where in its data it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from configs.checks import renamed
from experiments.cli.locks import lock_folder
from experiments.training.hosts import is_first_host
from experiments.training.mirror import Mirror
from o3jax.errors import UserError
from o3jax.files import as_path, clear_unfinished, is_remote, read_json, write_json, writing
from o3jax.train.lora import LoRA
from o3jax.train.state import TrainState


class Workdir:
    """What a run leaves behind: config.json, metrics.jsonl, TensorBoard events, checkpoints.

    The same folder resumes, one run at a time; several hosts of a run share it. A run with another config is
    refused, so that one folder never holds two experiments.

    Raises:
        UserError: if the folder belongs to a run with another configuration or of an earlier revision, is
            used by another run now, or cannot be written.
    """

    # May differ between a run and its continuation.
    FREE_FIELDS = (
        *("log_every", "save_every", "stop_at_step", "num_workers", "frame_cache", "frame_cache_gib"),
        *("feature_cache", "feature_cache_gib", "max_rejected_share", "max_failed_share"),
        *("max_failed_rewards", "reward_time_limit_s", "reward_workers", "profile"),
        *("eval_every", "eval_batches", "eval_data_path", "eval_prompts", "eval_samples"),
    )
    FOLDERS = ("checkpoints", "tensorboard", "samples", "model", "tokenizer", "damaged", "profile")
    FILES = ("config.json", "metrics.jsonl", "failed.jsonl", "rejected.jsonl", "eval.jsonl", "costs.json")

    def __init__(self, path: str | Path, config: ConfigDict):
        if not os.fspath(path).strip():
            raise UserError("--workdir is empty: name the folder of this run")
        self._mirror = Mirror(as_path(path)) if is_remote(path) else None
        # Where files are written, and where they are for everybody: in a store, another place.
        self.path = self._mirror.path if self._mirror else Path(path).absolute()
        self.place = self._mirror.place if self._mirror else self.path
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            wrong = [
                name for name in self.FOLDERS if (self.path / name).exists() != (self.path / name).is_dir()
            ]
            wrong += [name for name in self.FILES if (self.path / name).is_dir()]
        except OSError as error:
            raise UserError(
                f"--workdir={path} cannot be a folder ({error.strerror}): name another one"
            ) from None
        if wrong:
            what = "no folder" if wrong[0] in self.FOLDERS else "a folder"
            raise UserError(f"{self.path / wrong[0]} is {what}: move it away, or give another --workdir")
        self._lock = None
        self._written: int | None = None  # the step whose checkpoint is being written
        if is_first_host():
            with writing(self.path):
                self._lock = lock_folder(self.path, "--workdir")
                clear_unfinished(self.path)
        # Such as the copies of checkpoints that a killed run left half written.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        try:
            with writing(self.place):
                self.manager = ocp.CheckpointManager(self.place / "checkpoints", options=options)
                self._keep_config(json.loads(config.to_json()))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another run have the folder."""
        with contextlib.suppress(Exception):  # which `save` has raised; open, its threads outlive the command
            self.manager.close()
        if self._lock is not None:
            self._lock.close()
        if self._mirror is not None:
            self._mirror.close()

    def _keep_config(self, new: dict[str, Any]) -> None:
        """Writes config.json, after comparing it with that of the run that the folder holds."""
        path = self.path / "config.json"
        # A run that failed before its first checkpoint left nothing that another could spoil.
        if path.exists() and self.manager.latest_step() is not None:
            try:
                old = read_json(path)
            except UserError as error:  # cut off, say; the checkpoints may be whole all the same
                print(f"{error}; written anew from the config of this run, which it is not compared with")
                old = new
            if found := renamed(old):
                raise UserError(
                    f"{path} is of an earlier revision, whose {found[0]} is now called {found[1]}, and which "
                    "cannot be continued: give another --workdir"
                )
            changed = sorted(
                k for k in {*old, *new} if old.get(k) != new.get(k) and k not in self.FREE_FIELDS
            )
            if changed:
                raise UserError(
                    f"{self.place} holds a run with another config.{changed[0]}: give another --workdir, "
                    "or the config that it was started with"
                )
        if is_first_host():
            write_json(path, new, indent=2)

    def save(self, state: TrainState, position: Position) -> None:
        """Saves state and data position under the state's step.

        Returns when the state is copied, so that it may be given away; threads write it meanwhile. What goes
        wrong there is raised by the next call, or by `wait`.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        self.wait()
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_flat(state)), data=ocp.args.JsonSave(dataclasses.asdict(position))
        )
        with self._saving(step):
            if self._mirror is not None:  # first: a run that goes on from this step reads them
                self._mirror.publish()
            size = sum(leaf.nbytes for leaf in _flat(state).values())
            if jax.process_count() == 1 and self._mirror is None and shutil.disk_usage(self.path).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # before anything is written
            self._written = step
            self.manager.save(step, args=args)

    def wait(self) -> None:
        """Returns when the checkpoint that is being written is complete.

        Raises:
            UserError: if it cannot be written; those before it stay.
        """
        if self._written is not None:
            with self._saving(self._written):
                self.manager.wait_until_finished()
            self._written = None

    def saved_steps(self) -> set[int]:
        """Returns the steps of all checkpoints that a run may go on from, one that is being written too."""
        on_disk = (path.name for path in self.manager.directory.iterdir())
        return {*self.manager.all_steps(), *(int(name) for name in on_disk if name.isdigit())}

    @contextlib.contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        with writing(self.place), _quiet():
            try:
                yield
            except Exception:
                self._written = None
                with contextlib.suppress(Exception):  # half of it: room for another try
                    for left in self.manager.directory.glob(f"{step}.*"):
                        left.rmtree(missing_ok=True)
                raise

    def restore(
        self, state: TrainState, start: Position, check: Callable[[int], None] = lambda step: None
    ) -> tuple[TrainState, Position]:
        """Returns the newest saved state and where its data stopped; what was given if none is saved.

        A checkpoint that cannot be read is moved to WORKDIR/damaged, and the one before it taken.

        Args:
            check: raises for a step from which the run cannot go on, since what else it needs is not there.

        Raises:
            UserError: if the data are not those of the saved state: the position would mean other samples;
                if an earlier revision saved it; or if none of those that are there can be read.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        damaged: list[int] = []
        for step in steps:
            try:
                found = self._read(step, state, start)
                check(step)
            except UserError:
                raise
            except Exception as error:  # the library raises all kinds for files that are not whole
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                print(f"checkpoint {step} of {self.place} cannot be read ({why})", flush=True)
                damaged.append(step)
                # The other hosts may have read it: all must go on from the same.
                if step == steps[-1] or jax.process_count() > 1:
                    raise UserError(
                        f"no checkpoint of {self.place} can be read, such as {step} ({why}): give another "
                        "--workdir"
                    ) from error
            else:
                self._move_away(damaged)
                return found
        return state, start

    def _read(self, step: int, state: TrainState, start: Position) -> tuple[TrainState, Position]:
        """Returns what a checkpoint holds."""
        data = self.manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
        if "facts" in data:
            raise UserError(
                f"{self.place} holds checkpoints of an earlier revision, which cannot be continued: give "
                "another --workdir"
            )
        old, new = data["data_fingerprint"], start.data_fingerprint
        changed = [name for name, value in new.items() if old.get(name) != value]
        if changed:
            what = "it" if changed[0] == "base" else "its order of samples"
            raise UserError(
                f"{self.place} was trained with {changed[0]} {old.get(changed[0])}, which now is "
                f"{new[changed[0]]}, so {what} cannot be continued: put that back as it was, or give another "
                "--workdir"
            )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_flat(state)))
        saved = self.manager.restore(step, args=args)["state"]
        restored = jax.tree_util.tree_map_with_path(
            lambda path, leaf: saved.get(jax.tree_util.keystr(path), leaf), state
        )
        return restored, Position(**data)

    def _move_away(self, steps: Sequence[int]) -> None:
        """Moves checkpoints to WORKDIR/damaged: their steps are to be saved again."""
        for step in steps:
            damaged = epath.Path(self.place) / "damaged" / str(step)
            with writing(damaged):
                if damaged.exists():
                    damaged.rmtree()
                damaged.parent.mkdir(exist_ok=True)
                (self.manager.directory / str(step)).rename(damaged)
        if steps:
            self.manager.reload()


@dataclasses.dataclass(frozen=True)
class Position:
    """Where in its data a run is; the next batch starts at row `rows`."""

    rows: int = 0
    clips: int = 0  # that were in these rows
    data_fingerprint: Mapping[str, str | int] = dataclasses.field(default_factory=dict)  # of `Pipeline`


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the checkpoint library from showing the tracebacks of its threads and tasks.

    What is wrong is raised; beside it each task that failed too would show its own, some when they go.
    """
    log, hook, unraisable = logging.getLogger("absl"), sys.excepthook, sys.unraisablehook
    log.disabled = True
    sys.excepthook = sys.unraisablehook = lambda *_: None
    try:
        yield
    except Exception:
        logging.getLogger("asyncio").disabled = True
        raise
    else:
        sys.excepthook, sys.unraisablehook = hook, unraisable
    finally:
        log.disabled = False


def _flat(state: TrainState) -> dict[str, jax.Array]:
    """Returns what a checkpoint holds, by path, so that it does not depend on our classes.

    Of a model with adapters the base is not in it: that is read from its folder.
    """
    base = ".model.base." if isinstance(state.model, LoRA) else None
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {name: leaf for name, leaf in named.items() if not (base and name.startswith(base))}
