"""Training runs of adapters by the command: they resume, and export the merged model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.commands import run_command

CONFIG = """
from configs import sft_tiny

def get_config():
    c = sft_tiny.get_config("questions")
    c.model_name_or_path = {model!r}
    c.questions_per_row, c.row_length, c.row_frame_pairs, c.row_patches = 1, 192, 3, 16
    c.evidence = None
    c.per_device_train_batch_size, c.max_steps, c.warmup_steps, c.learning_rate = 2, 4, 0, 1e-2
    c.lora.rank, c.lora.alpha, c.lora.targets = 3, 12.0, ("q", "o", "qkv", "fc2")
    c.log_every, c.save_every = 1, 2
    return c
"""


@pytest.fixture(scope="module")
def config_file(video_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "lora.py"
    path.write_text(CONFIG.format(model=str(video_model)))
    return path


def saved(workdir, step):
    """Returns the arrays of a checkpoint by their path."""
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        found = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    return {path.removeprefix(".model."): np.asarray(a) for path, a in found.items()}


def test_a_run_resumes_and_exports_the_merged_model(config_file, video_model, tmp_path, capfd):
    flags = [f"--config={config_file}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run_command(capfd, "sft", *flags, f"--workdir={whole}")
    assert done.code == 0, done.err
    assert run_command(capfd, "sft", *flags, f"--workdir={parts}", "--config.stop_at_step=2").code == 0
    done = run_command(capfd, "sft", *flags, f"--workdir={parts}")
    assert done.code == 0 and "from step 2" in done.out, done.err
    assert (parts / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    for path in (whole / "model").iterdir():
        assert (parts / "model" / path.name).read_bytes() == path.read_bytes(), path.name

    # What the checkpoints hold, merged by hand, is what was exported.
    early, late = saved(whole, 2), saved(whole, 4)
    assert {path.split(".")[0] for path in late if not path.startswith(".")} == {"text", "vision"}
    moved = {path.split(".")[0] for path in late if not np.array_equal(early[path], late[path])}
    assert {"text", "vision"} <= moved
    source = load_file(video_model / "model.safetensors")
    exported = load_file(whole / "model" / "model.safetensors")
    a, b = (np.float64(late[f"text.q.{matrix}.value"]) for matrix in "ab")
    layer = "model.language_model.layers.1.self_attn.q_proj.weight"
    expected = source[layer] + 4.0 * (a[1] @ b[1]).T
    np.testing.assert_allclose(exported[layer], expected, rtol=0, atol=1e-6)
    assert np.abs(expected - source[layer]).max() > 1e-3
    untouched = [name for name in source if "norm" in name or "mlp.up" in name or "embed" in name]
    for name in untouched:
        np.testing.assert_array_equal(exported[name], source[name], err_msg=name)
    assert len(json.loads((whole / "config.json").read_text())["lora"]["targets"]) == 4


def test_a_run_does_not_go_on_with_another_base(config_file, video_model, tmp_path, capfd):
    """The checkpoints do not hold it."""
    folder = tmp_path / "model"
    shutil.copytree(video_model, folder)
    flags = [
        f"--config={config_file}",
        f"--config.model_name_or_path={folder}",
        f"--workdir={tmp_path / 'run'}",
    ]
    assert run_command(capfd, "sft", *flags, "--config.stop_at_step=2").code == 0
    tensors = load_file(folder / "model.safetensors")
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    save_file(tensors | {name: tensors[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    done = run_command(capfd, "sft", *flags)
    assert done.code == 2 and "was trained with base" in done.err and done.err.count("\n") == 1
