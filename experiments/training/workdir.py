"""The folder of a run: its config, its checkpoints, and where in its data it stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from configs.checks import renamed
from experiments.training.hosts import is_first_host
from o3jax.errors import UserError
from o3jax.files import read_json, write_json
from o3jax.train.state import TrainState


class Workdir:
    """What a run leaves behind: config.json, metrics.jsonl, TensorBoard events, checkpoints.

    The same folder resumes; several hosts share it. A run with another config is refused, so that one
    folder never holds two experiments.

    Raises:
        UserError: if the folder belongs to a run with another configuration or of an earlier revision, or
            cannot be written.
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
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(self.path / "checkpoints", options=options)
        self._keep_config(json.loads(config.to_json()))

    def _keep_config(self, new: dict[str, Any]) -> None:
        """Writes config.json, after comparing it with that of the run that the folder holds."""
        path = self.path / "config.json"
        # A run that failed before its first checkpoint left nothing that another could spoil.
        if path.exists() and self.manager.latest_step() is not None:
            old = read_json(path)
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
                    f"{self.path} holds a run with another config.{changed[0]}: give another --workdir, "
                    "or the config that it was started with"
                )
        if is_first_host():
            write_json(path, new, indent=2)

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
            UserError: if the data are not those of the saved state: the position would mean other samples;
                or if an earlier revision saved it.
        """
        step = self.manager.latest_step()
        if step is None:
            return state, start
        data = self.manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
        if "facts" in data:
            raise UserError(
                f"{self.path} holds checkpoints of an earlier revision, which cannot be continued: give "
                "another --workdir"
            )
        old, new = data["data_fingerprint"], start.data_fingerprint
        changed = [name for name, value in new.items() if old.get(name) != value]
        if changed:
            raise UserError(
                f"{self.path} was trained with {changed[0]} {old.get(changed[0])}, which now is "
                f"{new[changed[0]]}, so its order of samples cannot be continued: put that back as it was, "
                "or give another --workdir"
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
    data_fingerprint: Mapping[str, str | int] = dataclasses.field(default_factory=dict)  # of `Pipeline`


def _flat(state: TrainState) -> dict[str, jax.Array]:
    """Returns the arrays by their path, so that a checkpoint does not depend on our classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
