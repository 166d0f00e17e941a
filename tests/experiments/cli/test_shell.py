"""What every command makes of wrong flags, outputs that cannot be, full disks and Ctrl-C: one sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from experiments.cli.outputs import check_outputs
from o3jax.errors import UserError
from tests.support.commands import run_command
from tests.support.disks import full_disk
from tests.support.paths import ROOT


def run(code: str, **options) -> subprocess.CompletedProcess:
    """Returns how a command with this main ends."""
    code = f"from experiments.cli import shell\ndef main(argv):\n    {code}\nshell.run(main)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.run([sys.executable, "-c", code], env=environment, **options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("root:x:0:0:root:/root:/bin/bash\n", "cannot be used: SyntaxError"),
        ("\0", "cannot be used: "),
        ("def get_config():\n    raise RuntimeError('boom')\n", "cannot be used: RuntimeError: boom"),
        ("def get_config():\n    raise ValueError('no such stage')\n", "used: ValueError: no such stage"),
        ("import nowhere\n", "cannot be used: ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config():\n    return 5\n", "cannot be used: TypeError: get_config returns no ConfigDict"),
    ],
)
def test_a_file_that_is_no_config_is_one_sentence(tmp_path, capfd, text, says):
    path = tmp_path / "config.py"
    path.write_text(text)
    done = run_command(capfd, "sft", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert says in done.err and str(path) in done.err and len(done.err) < 600
    assert not (tmp_path / "run").exists()


def test_a_file_without_a_config_is_one_sentence(tmp_path):
    """In a process of its own: a module of an earlier config would have one."""
    (tmp_path / "config.py").write_text("x = 1\n")
    command = [
        sys.executable,
        "-m",
        "experiments.sft",
        f"--config={tmp_path}/config.py",
        f"--workdir={tmp_path}/w",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "has no attribute 'get_config'" in done.stderr
        and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("stage", ["sft", "gspo"])
@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (
            "seed=100000000000000000000",
            "config.seed is 100000000000000000000; write 0 or more, at most 4294967295",
        ),
        ("frame_cache_gib=nan", "config.frame_cache_gib is nan"),
        ("num_workers=100000", "config.num_workers is 100000; write 0 or more, at most "),
        ("warmup_steps=100000", "config.warmup_steps is 100000, but the run has "),
        ("max_steps=" + "9" * 5000, "max_steps"),
        (
            "frames.min_frames=99",
            "config.frames.min_frames is 99, more than config.frames.max_frames, which is 16",
        ),
    ],
)
def test_a_number_that_no_run_can_mean_is_one_sentence(tmp_path, capfd, stage, flag, says):
    flags = [f"--config=configs/{stage}_tiny.py", f"--workdir={tmp_path / 'run'}", f"--config.{flag}"]
    done = run_command(capfd, stage, *flags)
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert says in done.err and len(done.err) < 1000
    assert not (tmp_path / "run").exists()


def test_a_short_trial_may_end_within_the_warm_up(tmp_path, capfd):
    """The command line makes it one; what comes next is refused, and the note stands before it."""
    flags = ["--config=configs/sft_tiny.py", f"--workdir={tmp_path / 'run'}", "--config.max_steps=3"]
    done = run_command(capfd, "sft", *flags, "--config.model_name_or_path=nowhere")
    note, error = done.err.splitlines()
    assert note == "note: config.warmup_steps is 30, but the run has 3 steps" and "nowhere" in error
    done = run_command(capfd, "sft", *flags, "--config.warmup_steps=4")
    assert done.code == 2 and "warmup_steps is 4, but the run has 3 steps: write fewer" in done.err


def test_outputs_are_looked_at_before_the_work(tmp_path):
    video, other = tmp_path / "clip.mp4", tmp_path / "other"
    video.write_bytes(b"video")
    os.link(video, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(video)
    (tmp_path / "dangling").symlink_to("new")
    (tmp_path / "folder").mkdir()
    for name in ("clip.mp4", "hard", "soft", "folder/../clip.mp4"):
        with pytest.raises(UserError, match="--json=.* is the input too: name another file"):
            check_outputs({"--json": tmp_path / name}, [video])
    for one, two in ((other, other), (tmp_path / "dangling", tmp_path / "new"), (video, tmp_path / "hard")):
        with pytest.raises(UserError, match="--report=.* is --json too"):
            check_outputs({"--json": one, "--report": two})
    for path in (tmp_path / "folder", tmp_path / "no" / "a", "/proc/a", tmp_path / ("n" * 256)):
        with pytest.raises(UserError, match="cannot be written|cannot write"):
            check_outputs({"--json": path})
    with pytest.raises(UserError, match="--json is empty"):
        check_outputs({"--json": ""})
    # Devices may be named twice; names may be as long as the file system's.
    check_outputs({"--json": "/dev/null", "--report": "/dev/null", "--annotated": None}, [video])
    check_outputs({"--json": tmp_path / ("n" * 255), "--report": tmp_path / "dangling"}, [video])
    assert not other.exists()


def test_an_output_on_a_read_only_disk_is_refused_before_the_work():
    with full_disk() as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(UserError, match="cannot be written"):
            check_outputs({"--json": disk / "a"})


def test_what_the_system_refuses_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = run("print('answer')", stdout=full)
    assert (
        done.returncode == 2 and "(No space left on device)" in done.stderr and done.stderr.count("\n") == 1
    )
    done = run("open('/no/where')")
    assert done.returncode == 2 and done.stderr.startswith("error: /no/where cannot be used (No such file")
    done = run("raise KeyboardInterrupt")
    assert done.returncode == 130 and done.stderr == "error: stopped by Ctrl-C\n"
    done = run("raise ZeroDivisionError")  # a fault of ours is not hidden
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_compilation_cache_that_cannot_be_written_costs_one_line():
    code = "shell.use_compilation_cache(); import jax; print(jax.config.jax_enable_compilation_cache)"
    with full_disk(64) as disk:
        done = run(code, env={"JAX_COMPILATION_CACHE_DIR": f"{disk}/cache"})
    assert done.returncode == 0 and done.stdout == "False\n"
    assert done.stderr.count("\n") == 1 and "cannot be written (No space left on device)" in done.stderr


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("evaluate", "--out=gs://bucket/report.json"),
        ("evaluate", "--data_root=s3://bucket/data"),
        ("convert", "--target=gs://bucket/model"),
        ("bench_gpu", "--out=gs://bucket/bench"),
        ("sft", "--config.model_name_or_path=gs://bucket/model"),
        ("sft", "--config.data_path=gs://bucket/data"),
        ("sft", "--config.frame_cache=gs://bucket/cache"),
        ("gspo", "--config.rl_data_path=gs://bucket/data"),
    ],
)
def test_a_place_in_a_store_is_refused_where_a_disk_is_needed(tmp_path, monkeypatch, capfd, command, flag):
    needed = {"convert": ["--source=o3-tiny"], "evaluate": ["--benchmark=synthetic"]}.get(command, [])
    needed += [f"--workdir={tmp_path / 'run'}"] if command in ("sft", "gspo") else []
    done = run_command(capfd, command, *needed, flag)
    name = flag.partition("=")[0]
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert f"what {name} names must be on a disk" in done.err and "bucket" in done.err
    assert not (ROOT / "gs:").exists() and not (ROOT / "s3:").exists() and not (tmp_path / "run").exists()
