"""What keeps a run safe while it trains: a stop before a NaN is kept, checkpoints written beside the steps, a
profile, an evaluation that changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.settings import RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from experiments.training.loop import Feed, RunLength, train
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.hf import config_from_hf, load_weights
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import stack
from o3jax.sft.text import text_loss, token_counts
from o3jax.train.state import init_state, make_train_step
from tests.experiments.training.test_workdir import CONFIG, go_on, undisturbed  # noqa: F401
from tests.support.commands import run_command
from tests.support.paths import ROOT
from tests.support.streams import Named

RATE = 0.1


class Weights(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.zeros(2))


def run(folder: Path, numbers: list[float], config: ConfigDict) -> None:
    """Trains w towards one number after the other; the loss is their squared distance."""
    optimizer = optax.sgd(RATE)

    def loss(model, batch, counts, runtime):
        return jnp.square(model.w[...] - batch).sum(), {}

    step = make_train_step(loss, optimizer, lambda batch: {})
    state = init_state(Weights(), optimizer)
    pipeline = Pipeline([(i,) * 3 for i in range(len(numbers))], [Named()], batch_size=1, seed=0)
    with Workdir(folder, config) as workdir:
        length = RunLength.of(config, config.max_steps)
        train(
            *(state, step),
            Feed(pipeline, lambda batch: jnp.float32([[numbers[int(batch.failures.number[0, 0])]]])),
            *(workdir, length),
        )


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("log_every", [1, 3, 100])
@pytest.mark.parametrize(
    ("bad", "said"), [(np.nan, "loss nan"), (np.inf, "loss inf"), (1e19, "grad_norm inf")]
)
def test_a_step_that_is_not_finite_ends_the_run_saved_before_it(tmp_path, log_every, bad, said):
    numbers = [1.0, 2.0, -1.0, 3.0, bad, 1.0, 1.0, 1.0]
    config = ConfigDict({"max_steps": 8, "log_every": log_every, "save_every": 100, "stop_at_step": 0})
    with pytest.raises(
        UserError, match=f"step 5 has {said}; step 4 was the last good one and is saved: .*learn"
    ):
        run(tmp_path, numbers, config)
    w = 0.0
    for number in numbers[:4]:
        w -= RATE * 2 * (w - number)
    with Workdir(tmp_path, config) as workdir:
        assert sorted(workdir.manager.all_steps()) == [4]
        (found,) = (np.asarray(a) for a in workdir.manager.restore(4)["state"].values() if a.shape == (2,))
    np.testing.assert_allclose(found, w, rtol=1e-6)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4]


def test_a_first_step_that_is_not_finite_keeps_nothing(tmp_path):
    with pytest.raises(UserError, match="step 1 has loss nan; nothing was trained: "):
        run(tmp_path, [np.nan] * 4, CONFIG)
    assert not any((tmp_path / "checkpoints").iterdir()) and not logged(tmp_path)


def test_a_window_of_steps_is_profiled(tmp_path):
    config = ConfigDict(CONFIG.to_dict() | {"profile": {"start": 2, "steps": 2}})
    run(tmp_path, [1.0] * 8, config)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(logged(tmp_path)) == 6


def test_steps_are_taken_while_a_checkpoint_is_written(tmp_path, undisturbed, monkeypatch):  # noqa: F811
    """The checkpoint of step 3 gets its name only when step 5 is logged, and holds step 3 all the same."""
    run, rename, seen = tmp_path / "run", os.rename, []

    def late(source, target, **options):
        if str(target).endswith("checkpoints/3"):
            until = time.monotonic() + 20
            while len(logged(run)) < 5 and time.monotonic() < until:
                time.sleep(0.01)
            seen.append(len(logged(run)))
        rename(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", late)
        assert np.array_equal(go_on(run), undisturbed[0])
    assert seen[0] >= 5
    (run / "checkpoints" / "6").rename(tmp_path / "6")
    assert np.array_equal(go_on(run), undisturbed[0])
    assert (run / "metrics.jsonl").read_text().splitlines() == undisturbed[1]


KILLED = """
import os, pathlib, signal, sys, time
from tests.experiments.training.test_workdir import go_on
run = pathlib.Path({run!r})

def audit(event, args):
    if event == "os.rename" and str(args[1]).endswith("checkpoints/6"):
        os.kill(os.getpid(), signal.{signal})
        time.sleep(0.5)

sys.addaudithook(audit)
go_on(run)
"""


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_signals_while_a_checkpoint_is_written(tmp_path, undisturbed, number):  # noqa: F811
    """A kill loses that one alone; what can be waited for is waited for."""
    folder = tmp_path / "run"
    code = KILLED.format(run=str(folder), signal=number)
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    saved = {path.name for path in (folder / "checkpoints").iterdir() if path.name.isdigit()}
    if number == "SIGKILL":
        assert ended.returncode == -signal.SIGKILL and saved == {"3"}, ended.stderr
    else:
        assert ended.returncode == 0 and saved == {"3", "6"}, ended.stderr
    assert np.array_equal(go_on(folder), undisturbed[0])
    assert (folder / "metrics.jsonl").read_text().splitlines() == undisturbed[1]


# --- the evaluation of SFT ---

SFT = """
from configs import sft_tiny

def get_config():
    c = sft_tiny.get_config("questions")
    c.model_name_or_path = {model!r}
    c.questions_per_row, c.row_length, c.row_frame_pairs, c.row_patches = 1, 192, 3, 16
    c.per_device_train_batch_size, c.max_steps, c.warmup_steps, c.learning_rate = 2, 3, 0, 1e-2
    c.optimizer, c.log_every, c.soften_times, c.soften_coordinates = "adamw", 1, 0.0, 0.0
    return c
"""


def test_an_evaluation_changes_no_number_and_is_that_of_the_model(tmp_path, video_model, capfd):
    config = tmp_path / "sft.py"
    config.write_text(SFT.format(model=str(video_model)))
    for name, flags in {
        "plain": (),
        "evaluated": ("--config.eval_every=2", "--config.eval_batches=2"),
        "resumed": ("--config.eval_every=2", "--config.eval_batches=2", "--config.stop_at_step=1"),
    }.items():
        done = run_command(capfd, "sft", f"--config={config}", f"--workdir={tmp_path / name}", *flags)
        assert done.code == 0, done.err
    done = run_command(capfd, "sft", f"--config={config}", f"--workdir={tmp_path / 'resumed'}", *flags[:2])
    assert done.code == 0 and "from step 1" in done.out, done.err
    plain, evaluated = logged(tmp_path / "plain"), logged(tmp_path / "evaluated")
    assert [any(name.startswith("eval/") for name in line) for line in evaluated] == [False, True, True]
    assert logged(tmp_path / "resumed") == evaluated
    assert [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in evaluated] == plain
    weights = [
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("plain", "evaluated")
    ]
    assert weights[0] == weights[1]

    # What the exported model says of the first clips of the validation split.
    folder = tmp_path / "plain" / "model"
    model = load_weights(folder, config_from_hf(folder))
    rows = MakeRow(load_processor(folder), model.config, RowShape(192, 3, 16), "plain", 10)
    batches = [stack([rows.map(SyntheticClips("val", 1, 1)[i]) for i in pair]) for pair in ((0, 1), (2, 3))]
    found = []
    for batch in batches:
        counts = token_counts(batch)
        loss, sums = text_loss(model, batch, counts)
        found.append((float(loss), float(sums["accuracy"]), float(counts["text"])))
    losses, correct, tokens = np.array(found).T
    last = evaluated[-1]
    assert last["eval/loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert last["eval/accuracy"] == pytest.approx(correct.sum() / tokens.sum(), rel=1e-4)


def test_clips_that_nothing_holds_out_are_refused(tmp_path, video_model, capfd):
    config = tmp_path / "sft.py"
    config.write_text(SFT.format(model=str(video_model)))
    flags = (f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.eval_every=2")
    done = run_command(capfd, "sft", *flags, f"--config.data_path={tmp_path}")
    assert done.code == 2 and "config.eval_data_path" in done.err and done.err.count("\n") == 1
