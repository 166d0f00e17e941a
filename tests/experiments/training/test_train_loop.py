"""A run of text and evidence that is killed, stopped and continued ends bit for bit as one left alone."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.settings import RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from experiments.training.loop import Feed, RunLength
from experiments.training.loop import train as run_steps
from experiments.training.metrics_log import MetricsLog
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.hf import config_from_hf, load_weights
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import stack, take
from o3jax.sft.text import text_loss, token_counts
from o3jax.train.optimizer import learning_rate, make_optimizer
from o3jax.train.state import TrainState, init_state, make_train_step
from tests.support.commands import command, run_command
from tests.support.configs import CONFIG
from tests.support.paths import ROOT
from tests.support.streams import Named

STEPS = 10

# `python -m experiments.sft`, which kills itself when a step has been logged but not yet saved, and the
# checkpoint before it is complete; it has not loaded torch, which takes a second and serves nothing there ...
AFTER_STEP = """
import os, signal, sys, time
from experiments import sft
from experiments.cli import shell
from experiments.training import metrics_log

assert "torch" not in sys.modules

def write(self, step, window, original=metrics_log.MetricsLog.write):
    values = original(self, step, window)
    if step == {step}:
        while [p for p in self.path.parent.glob("checkpoints/*") if not p.name.isdigit()]:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return values

metrics_log.MetricsLog.write = write
shell.run(sft.main)
"""
# ... or when a checkpoint is written, but does not have its final name yet.
INSIDE_CHECKPOINT = """
import os, signal, sys
from experiments import sft
from experiments.cli import shell

def audit(event, args):
    if event == "os.rename" and str(args[1]).endswith("checkpoints/{step}"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(audit)
shell.run(sft.main)
"""


@pytest.fixture(scope="module")
def config_file(video_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "sft.py"
    path.write_text(CONFIG.format(model=str(video_model), steps=STEPS))
    return path


@pytest.fixture(scope="module")
def train(config_file):
    """A function that trains in a process of its own, and returns how that ended."""

    def run(
        workdir: Path, code: str | None = None, flags: tuple[str, ...] = (), devices: int = 8, **where
    ) -> subprocess.CompletedProcess:
        program = ["-c", code.format(**where)] if code else ["-m", "experiments.sft"]
        command = [sys.executable, *program, f"--config={config_file}", f"--workdir={workdir}", *flags]
        # Each program that is compiled is named; the precision is this process' own.
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_LOG_COMPILES": "1"}
        environment |= {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def uninterrupted(config_file, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with command("sft", f"--config={config_file}", f"--workdir={workdir}") as sft:
        with pytest.raises(SystemExit) as ended:
            sft.shell.run(sft.main)
    assert not ended.value.code
    return workdir


def stop_after(step: int, monkeypatch) -> None:
    """Makes this process get SIGTERM when a step has been logged but not yet saved."""

    def write(self, at, window, original=MetricsLog.write):
        values = original(self, at, window)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(MetricsLog, "write", write)


def logged(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_mesh_trains_as_one_device_does(train, uninterrupted, tmp_path):
    axes = ("fsdp", "context")
    mesh = (*(f"--config.mesh.{axis}=2" for axis in axes), "--config.gradient_accumulation_steps=1")
    run = train(tmp_path, flags=(*mesh, "--config.stop_at_step=4"), devices=4)
    assert run.returncode == 0, run.stderr
    # The state that a step returns lives where the one that it was given did.
    assert run.stderr.count("Compiling jit(step) with") == 1
    np.testing.assert_allclose(losses(tmp_path), losses(uninterrupted)[:4], rtol=1e-4)


def test_killed_stopped_and_continued_is_the_same_run(
    train, config_file, uninterrupted, tmp_path, capfd, monkeypatch
):
    """What dies is another process; what ends is this one, and goes on to the same bytes."""
    flags = [f"--config={config_file}", f"--workdir={tmp_path}"]
    killed = train(tmp_path, AFTER_STEP, step=6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert logged(tmp_path) == [1, 2, 3, 4, 5, 6] and saved(tmp_path) == {"4"}

    with monkeypatch.context() as patch:
        stop_after(6, patch)
        stopped = run_command(capfd, "sft", *flags)
    assert stopped.code == 0, stopped.err
    assert "from step 4" in stopped.out and "stopped by SIGTERM at step 7" in stopped.out
    assert saved(tmp_path) == {"4", "7"} and not (tmp_path / "model").exists()

    torn = train(tmp_path, INSIDE_CHECKPOINT, step=8)
    assert torn.returncode == -signal.SIGKILL, torn.stderr
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert any(name.startswith("8.") for name in names), "the checkpoint was not being written"
    assert saved(tmp_path) == {"4", "7"}

    finished = run_command(capfd, "sft", *flags)
    assert finished.code == 0, finished.err
    assert "from step 7" in finished.out
    assert not any(path.name.startswith("8.") for path in (tmp_path / "checkpoints").iterdir())

    assert logged(tmp_path) == list(range(1, STEPS + 1))
    assert (tmp_path / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()
    for path in (uninterrupted / "model").iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_log_of_a_run(uninterrupted):
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    names = {"step", "loss", "text", "accuracy", "tokens", "grad_norm", "relevance", "time_error", "box_iou"}
    assert names <= set(lines[0])
    assert lines[-1]["loss"] < lines[0]["loss"] and all(line["grad_norm"] > 0 for line in lines)
    assert list((uninterrupted / "tensorboard").iterdir())


def test_another_config_in_the_same_workdir_is_refused(uninterrupted, config_file, capfd):
    before = (uninterrupted / "metrics.jsonl").read_text()
    flags = [f"--config={config_file}", f"--workdir={uninterrupted}"]
    done = run_command(capfd, "sft", *flags, "--config.learning_rate=0.5")
    assert done.code == 2 and not done.out
    assert done.err.startswith("error: ") and "config.learning_rate" in done.err
    assert done.err.count("\n") == 1 and "--workdir" in done.err
    assert (uninterrupted / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.remat=some", "remat"),
        ("--config.compute_dtype=float23", "compute_dtype"),
        ("--config.lr_scheduler_type=step", "lr_scheduler_type"),
        ("--config.data_path=nowhere", "nowhere"),
        ("--config.data_path=synthetic:x", "synthetic:x"),
        ("--config.prompt_style=loud", "loud"),
        ("--config.model_name_or_path=nowhere", "nowhere"),
        ("--config.max_steps=many", "max_steps"),
        ("--config.max_step=3", "max_step"),
        ("--config=nowhere.py", "nowhere.py"),
        ("--config=configs/sft_tiny.py:answers", "answers"),
    ],
)
def test_a_mistake_in_the_config_is_one_sentence(config_file, tmp_path, capfd, flag, said):
    done = run_command(capfd, "sft", f"--config={config_file}", f"--workdir={tmp_path / 'run'}", flag)
    assert done.code == 2, done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and said in done.err


def test_a_finished_run_can_be_asked_again(uninterrupted, config_file, capfd):
    """Nothing is trained, and how often to save may differ."""
    before = (uninterrupted / "metrics.jsonl").read_text()
    flags = [f"--config={config_file}", f"--workdir={uninterrupted}", "--config.save_every=3"]
    done = run_command(capfd, "sft", *flags)
    assert done.code == 0 and f"from step {STEPS}" in done.out and "0 steps in" in done.out, done.err
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def test_a_workdir_without_a_checkpoint_takes_a_corrected_config(tmp_path):
    for steps in (1, 2):
        Workdir(tmp_path, ConfigDict({"max_steps": steps}))
    assert json.loads((tmp_path / "config.json").read_text()) == {"max_steps": 2}


def test_steps_before_a_stop_by_a_mistake_are_in_the_log(tmp_path):
    """Saved at step 5, between two lines of the log, and continued: no step is missing."""
    c = ConfigDict({"max_steps": 8, "log_every": 3, "save_every": 100, "stop_at_step": 0})

    def steps(mistake_at: int | None) -> None:
        def step(state, batch):
            if state.step == mistake_at:
                raise UserError("stop")
            return dataclasses.replace(state, step=state.step + 1), {"loss": jnp.float32(0)}

        state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(2)}, {})
        pipeline = Pipeline([(0, 1, 2)] * 9, [Named()], batch_size=1, seed=0)
        run_steps(state, step, Feed(pipeline), Workdir(tmp_path, c), RunLength.of(c, c.max_steps))

    with pytest.raises(UserError, match="stop"):
        steps(mistake_at=5)
    assert logged(tmp_path) == [1, 2, 3, 4, 5] and saved(tmp_path) == {"5"}
    steps(mistake_at=None)
    assert logged(tmp_path) == list(range(1, 9))


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_workdir_that_is_a_file_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.* cannot be a folder \(.*\): name another one"):
        Workdir(tmp_path / name, ConfigDict({}))


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, 6)) + '{"step": 6, "lo')
    log = MetricsLog(tmp_path, 3)
    log.write(5, [{"loss": jnp.float32(4)}, {"loss": jnp.float32(5)}])
    log.close()
    assert logged(tmp_path) == [1, 2, 3, 4, 5]
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1, 1, 1, 4, 5]


def test_learning_works(video_model):
    """Thirty steps on one batch bring the loss to less than a third."""
    model = load_weights(video_model, config_from_hf(video_model))
    rows = MakeRow(load_processor(video_model), model.config, RowShape(192, 3, 16))
    rows = [rows.map(SyntheticClips("train", 1, questions=1)[index]) for index in range(2)]
    batch = take(stack(rows), None)
    optimizer = make_optimizer(learning_rate("constant", 1e-2, 30), weight_decay=0.0, max_grad_norm=1.0)
    state = jax.jit(lambda model: init_state(model, optimizer))(model)
    step = make_train_step(text_loss, optimizer, token_counts).lower(state, batch).compile()
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] / 3, losses
