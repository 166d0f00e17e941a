"""Two processes that train together do what one process does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipelines.synthetic.datasets import make_dataset
from experiments.cli.distributed import found_where, join_hosts
from experiments.hostility.hosts import start_hosts
from o3jax.errors import UserError
from tests.support.commands import run_command
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


def start(
    command: str, config: Path, workdir: Path, hosts: int, *flags: str, devices: int = 1, code: str = ""
) -> list[subprocess.Popen]:
    """Starts the processes of a run.

    Args:
        code: runs in each before the command, which knows its number as `host`.
    """
    program = f"""
import os
host = int(os.environ["JAX_PROCESS_ID"])
{code}
from experiments import {command}
from experiments.cli import shell
shell.run({command}.main)
"""
    arguments = ["-c", program, f"--config={config}", f"--workdir={workdir}", *flags]
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return start_hosts(arguments, hosts, devices, os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)


def ended(processes: list[subprocess.Popen]) -> list[subprocess.CompletedProcess]:
    """Returns how the processes of a run ended."""
    found = [(process, *process.communicate()) for process in processes]
    return [subprocess.CompletedProcess(p.args, p.returncode, out, err) for p, out, err in found]


def train(*run, **options) -> list[subprocess.CompletedProcess]:
    """Returns how the processes of a run of SFT ended."""
    return ended(start("sft", *run, **options))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_curve(one: Path, two: Path, rtol: float) -> None:
    """Compares the logs of two runs, but for what a clock measured."""
    expected, found = (lines(run / "metrics.jsonl") for run in (one, two))
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if not name.startswith(("seconds", "tokens_per")):
                np.testing.assert_allclose(b[name], a[name], rtol=rtol, atol=1e-6, err_msg=name)


def test_two_hosts_train_as_one(config_file, tmp_path, capfd):
    """One is this process, which needs no start."""
    flags = (f"--config={config_file}", "--config.per_device_train_batch_size=2")
    alone = run_command(capfd, "sft", f"--workdir={tmp_path / 'one'}", *flags)
    assert alone.code == 0, alone.err
    flags = ("--config.per_device_train_batch_size=1", "--config.mesh.data=2")
    both = train(config_file, tmp_path / "two", 2, *flags)
    assert [one.returncode for one in both] == [0, 0], both[0].stderr + both[1].stderr
    assert "step 2/2" in both[0].stdout and "step 2/2" not in both[1].stdout

    assert_same_curve(tmp_path / "one", tmp_path / "two", rtol=1e-4)
    failed = [lines(tmp_path / name / "failed.jsonl") for name in ("one", "two")]
    in_order = [sorted(ones, key=lambda line: (line["step"], line["id"])) for ones in failed]
    assert in_order[0] == in_order[1] != []
    for path in (tmp_path / "one" / "model").iterdir():
        if path.suffix == ".json":
            assert (tmp_path / "two" / "model" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()


# --- GSPO: two processes with four devices each ---

GSPO = """
from configs import common

def get_config():
    c = common.gspo()
    c.sft_model_path, c.rl_data_path = {model!r}, "synthetic:1"
    c.prompt_style, c.box_step = "plain", 10
    c.row_length, c.row_frame_pairs, c.row_patches = 96, 3, 16
    c.prompts_per_iteration, c.group_size, c.minibatches_per_rollout = 16, 2, 2
    c.max_completion_length, c.mask_truncated = 8, False
    c.reward = "tests.support.rewards:checksum"
    c.compute_dtype, c.remat = "float32", "none"
    c.learning_rate, c.lr_scheduler_type, c.max_steps = 3e-3, "constant", 2
    c.log_every = 1
    return c
"""

# A signal to one host when the first rollout is over, before its rewards.
IN_A_ROLLOUT = """
import signal
from experiments.training import iteration
def lap(self, name, original=iteration.Stopwatch.lap):
    original(self, name)
    if name == "rollout" and host == 1:
        os.kill(os.getpid(), signal.SIGTERM)
iteration.Stopwatch.lap = lap
"""


def test_gspo_on_two_hosts_is_that_of_one_wherever_it_is_stopped(video_model, tmp_path, capfd):
    """Kills are tried by `experiments.hostile`: a process needs a while to notice that another is gone."""
    config = tmp_path / "gspo.py"
    config.write_text(GSPO.format(model=str(video_model)))
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run_command(capfd, "gspo", f"--config={config}", f"--workdir={one}", "--config.mesh.fsdp=8")
    assert alone.code == 0, alone.err  # this process has eight devices too

    def go_on(code: str = "") -> list[subprocess.CompletedProcess]:
        return ended(start("gspo", config, two, 2, "--config.mesh.fsdp=8", devices=4, code=code))

    stopped = go_on(IN_A_ROLLOUT)
    assert [run.returncode for run in stopped] == [0, 0], stopped[0].stderr + stopped[1].stderr
    assert "stopped by another host at step 0; the same --workdir continues" in stopped[0].stdout
    finished = go_on()
    assert [run.returncode for run in finished] == [0, 0], finished[0].stderr + finished[1].stderr
    assert_same_curve(one, two, rtol=1e-4)
    said = [(run / "samples" / "000000.jsonl").read_text() for run in (one, two)]
    assert said[0] == said[1]
    kept = sorted(path.name for path in two.glob("rollout_*"))
    assert kept == [f"rollout_000000.{host}-of-2.npz" for host in (0, 1)]
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    for name, weight in weights[0].items():
        np.testing.assert_allclose(weights[1][name], weight, rtol=0, atol=1e-4, err_msg=name)


# --- how processes find each other ---


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({}, ""),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_COORDINATOR_ADDRESS"),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16"}, "a SLURM job"),
        ({"SLURM_NTASKS": "8"}, ""),  # in a batch script, before srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "t1v-0,t1v-1"}, "a TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "t1v-0", "MEGASCALE_NUM_SLICES": "2"}, "a TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "t1v-0,t1v-1", "JAX_PLATFORMS": "cpu"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun"),
    ],
)
def test_where_processes_find_each_other(monkeypatch, environment, where):
    for name in ("JAX_PLATFORMS", "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert found_where() == where


@pytest.mark.parametrize(
    ("mode", "environment", "says"),
    [
        ("on", {}, "--distributed=on, but nothing here says which processes"),
        ("auto", {"JAX_COORDINATOR_ADDRESS": "a:1"}, "set JAX_NUM_PROCESSES and JAX_PROCESS_ID too"),
        ("auto", {"SLURM_STEP_NUM_TASKS": "2"}, "the processes of a SLURM job do not find each other"),
    ],
)
def test_processes_that_do_not_find_each_other(monkeypatch, mode, environment, says):
    def initialize(*_: object) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says) as error:
        join_hosts(mode)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    join_hosts("off")
