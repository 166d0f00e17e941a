"""The folder of a run: who may use it, what damage it survives, and when a disk is full."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from data_pipelines.rows.pipeline import Pipeline
from experiments.hostility.damage import DAMAGES
from experiments.training import workdir as workdirs
from experiments.training.loop import Feed, RunLength, train
from experiments.training.workdir import Position, Workdir
from o3jax.errors import UserError
from o3jax.train.state import TrainState
from tests.support.disks import full_disk
from tests.support.stores import empty_bucket
from tests.support.streams import Named

CONFIG = ConfigDict({"max_steps": 6, "log_every": 1, "save_every": 3, "stop_at_step": 0})
REFUSED = {"config/folder", "log/folder", "failed/folder", "costs/folder", "all/cut"}
REFUSED |= {"file/checkpoints", "file/model", "file/tensorboard", "file/samples", "file/all"}
OLDER = {name for name in DAMAGES if name.startswith("newest/")} | {"stray/number"}
OLDER -= {"newest/no metadata"}  # which the library does without


def start() -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(1000)}, {})


def go_on(folder: Path, stop: int = 0, interrupt_at: int = 0) -> np.ndarray:
    """Returns the weights after a run of steps that add up the rows' numbers, or go on to."""

    def step(state, batch):
        if state.step + 1 == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        model = {"w": state.model["w"] * 0.9 + float(batch.failures.number.sum())}
        new = dataclasses.replace(state, step=state.step + 1, model=model)
        return new, {"loss": jnp.float32(state.step) / 3}

    config = ConfigDict(CONFIG.to_dict() | {"stop_at_step": stop})
    pipeline = Pipeline([(number,) * 3 for number in range(9)], [Named()], batch_size=1, seed=0)
    with Workdir(folder, config) as workdir:
        length = RunLength.of(config, config.max_steps)
        end = train(start(), step, Feed(pipeline), workdir, length)
    return np.asarray(end.model["w"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[np.ndarray, list[str]]:
    """The weights and the log of a run that nothing disturbs."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    return go_on(run), (run / "metrics.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The workdir of a run that stopped after step 5, with checkpoints of steps 3 and 5."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    go_on(run, stop=5)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"3", "5"}
    return run


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_workdir_goes_on_to_the_same_end_or_is_refused(stopped, undisturbed, tmp_path, capfd, name):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    DAMAGES[name](run)
    capfd.readouterr()
    if name in REFUSED:
        with pytest.raises(UserError) as error:
            go_on(run)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
        return
    weights = go_on(run)
    said = capfd.readouterr().out
    assert np.array_equal(weights, undisturbed[0])
    logged = (run / "metrics.jsonl").read_text().splitlines()
    # Lines that were damaged are left out, with a word: no other is missing.
    assert logged == undisturbed[1]
    assert ("cannot be read" in said) == (name in OLDER - {"newest/gone", "newest/a file"}), said
    if name in OLDER - {"stray/number"}:
        assert "from step 3" in said
    assert ("damaged lines, which are left out" in said) == name.startswith(("log/", "failed/")), said
    left = [p.name for p in run.rglob("*") if p.name.endswith(".part") or "orbax-checkpoint-tmp" in p.name]
    assert not left


def test_two_runs_do_not_share_a_workdir(tmp_path):
    with Workdir(tmp_path / "run", CONFIG):
        with pytest.raises(
            UserError, match=rf"used by another run \(process {os.getpid()} on .*\): wait for"
        ):
            Workdir(tmp_path / "run", CONFIG)
    with Workdir(tmp_path / "run", CONFIG):
        pass


@pytest.mark.parametrize("path", ["", " "])
def test_a_workdir_without_a_name_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--workdir is empty"):
        Workdir(path, CONFIG)
    assert not list(tmp_path.iterdir())


def test_a_workdir_in_a_store(undisturbed, tmp_path, monkeypatch):
    """Its files are there at the end and whenever a checkpoint is; nothing of it stays on the disk.

    The checkpoints, which another library writes there, are on the disk here.
    """
    bucket, manager = empty_bucket(monkeypatch), workdirs.ocp.CheckpointManager

    def on_disk(directory, **options):
        assert str(directory) == f"{bucket}/run/checkpoints"
        return manager(tmp_path / "checkpoints", **options)

    monkeypatch.setattr(workdirs.ocp, "CheckpointManager", on_disk)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = epath.Path(bucket) / "run"
    with pytest.raises(SystemExit):
        go_on(run, interrupt_at=5)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 5
    assert json.loads((run / "config.json").read_text())["max_steps"] == 6
    assert np.array_equal(go_on(run), undisturbed[0])
    assert (run / "metrics.jsonl").read_text().splitlines() == undisturbed[1]
    assert any((run / "tensorboard").iterdir())
    assert not list((tmp_path / "here").iterdir()) and not list((tmp_path / "scratch").iterdir())


def test_ctrl_c_saves_and_the_run_goes_on(undisturbed, tmp_path, capfd):
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    with pytest.raises(SystemExit) as end:
        go_on(tmp_path / "run", interrupt_at=2)
    assert not end.value.code and "stopped by SIGINT at step 2; saved" in capfd.readouterr().out
    assert np.array_equal(go_on(tmp_path / "run"), undisturbed[0])
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("kib", [4, 24, 48, 80, 112])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(undisturbed, capfd, kib):
    with full_disk(kib) as disk:
        with pytest.raises(UserError, match=r"\(No space left on device\): make room there"):
            go_on(disk / "run")
        assert "Traceback" not in capfd.readouterr().err
        assert not list(disk.rglob("*orbax-checkpoint-tmp*"))
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert np.array_equal(go_on(disk / "run"), undisturbed[0])
        assert (disk / "run" / "metrics.jsonl").read_text().splitlines() == undisturbed[1]


def test_a_read_only_disk_is_one_sentence():
    with full_disk() as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(UserError, match="Read-only file system"):
            go_on(disk / "run")


def test_a_checkpoint_that_could_not_be_read_is_kept_beside(stopped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    DAMAGES["newest/cut"](run)
    go_on(run)
    assert (run / "damaged" / "5" / "state").is_dir()
    with Workdir(run, CONFIG) as workdir:
        assert sorted(workdir.manager.all_steps()) == [3, 6]
        assert int(workdir.restore(start(), Position())[0].step) == 6
    assert json.loads((run / "config.json").read_text())["max_steps"] == 6
