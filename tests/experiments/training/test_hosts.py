"""Two processes that train together do what one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.synthetic.datasets import make_dataset
from tests.support.paths import ROOT

CONFIG = """
from configs import sft_tiny

def get_config():
    c = sft_tiny.get_config("questions")
    c.model_name_or_path, c.data_path = {model!r}, {data!r}
    c.questions_per_row, c.row_length, c.row_frame_pairs, c.row_patches = 1, 192, 3, 16
    c.optimizer, c.warmup_steps, c.learning_rate = "adamw", 0, 1e-2
    c.gradient_accumulation_steps, c.max_steps, c.log_every = 2, 2, 1
    c.max_failed_share = 1.0
    return c
"""


@pytest.fixture(scope="module")
def config_file(video_model, tmp_path_factory) -> Path:
    """A run of two steps of four rows each; one video of its data set breaks off while it is read."""
    folder = tmp_path_factory.mktemp("hosts")
    make_dataset(folder / "data", "train", 4)
    torn = sorted((folder / "data").rglob("*.mp4"))[1]
    data = torn.read_bytes()
    torn.write_bytes(data[: len(data) // 8] + bytes(len(data) // 2) + data[len(data) // 8 + len(data) // 2 :])
    path = folder / "sft.py"
    path.write_text(CONFIG.format(model=str(video_model), data=str(folder / "data")))
    return path


def train(config_file: Path, workdir: Path, hosts: int, *flags: str) -> list[subprocess.CompletedProcess]:
    """Returns how the processes of a run ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "experiments.sft",
        f"--config={config_file}",
        f"--workdir={workdir}",
        *flags,
    ]
    xla_flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = os.environ | {"XLA_FLAGS": xla_flags}
    if hosts > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts)}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(hosts)
    ]
    ended = [(process, *process.communicate()) for process in processes]
    return [subprocess.CompletedProcess(command, p.returncode, out, err) for p, out, err in ended]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_hosts_train_as_one(config_file, tmp_path):
    (alone,) = train(config_file, tmp_path / "one", 1, "--config.per_device_train_batch_size=2")
    assert alone.returncode == 0, alone.stderr
    flags = ("--config.per_device_train_batch_size=1", "--config.mesh.data=2")
    both = train(config_file, tmp_path / "two", 2, *flags)
    assert [one.returncode for one in both] == [0, 0], both[0].stderr + both[1].stderr
    assert "step 2/2" in both[0].stdout and "step 2/2" not in both[1].stdout

    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in two] == [1, 2]
    for expected, found in zip(one, two, strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)
    failed = [lines(tmp_path / name / "failed.jsonl") for name in ("one", "two")]
    in_order = [sorted(ones, key=lambda line: (line["step"], line["id"])) for ones in failed]
    assert in_order[0] == in_order[1] != []
    for path in (tmp_path / "one" / "model").iterdir():
        if path.suffix == ".json":
            assert (tmp_path / "two" / "model" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()
