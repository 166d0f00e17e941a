"""The wheel works alone: installed into an environment of its own, far from the repository."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import o3jax
from tests.support.paths import ROOT

SOURCES = ("o3jax", "data_pipelines", "configs", "experiments", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `o3jax` of an environment that has the wheel, and what it requires from this one."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"  # a build leaves its own files
    source.mkdir()
    for name in (*SOURCES, *(path.name for path in ROOT.glob("requirements*.txt"))):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", place, source, cwd=place)
    (wheel,) = place.glob("*.whl")
    assert wheel.name.startswith(f"o3jax-{o3jax.__version__}-")
    venv.create(place / "env", with_pip=False, symlinks=True)
    python = place / "env" / "bin" / "python"
    run(*pip, "--python", python, "install", "-q", "--no-deps", wheel, cwd=place)
    (packages,) = (place / "env" / "lib").glob("python*/site-packages")
    (packages / "required.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    shutil.rmtree(source)
    return place / "env" / "bin" / "o3jax"


def test_asks_a_video(command: Path, clip: Path, tmp_path: Path):
    question = "Which object appears first?"
    done = run(command, "ask", clip, question, "--json=answer.json", "--report=answer.html", cwd=tmp_path)
    assert done.stdout.startswith("Answer: ")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["question"] == question and answer["evidence"]
    assert (tmp_path / "answer.html").stat().st_size > 10_000


def test_runs_an_iteration_of_gspo(command: Path, tmp_path: Path):
    small = {"prompts_per_iteration": 2, "group_size": 2, "minibatches_per_rollout": 1, "max_steps": 1}
    small |= {"eval_every": 0, "max_completion_length": 8, "reward": "format", "log_every": 1}
    done = run(
        command,
        "gspo",
        "--config=gspo_tiny",
        "--workdir=run",
        *(f"--config.{name}={value}" for name, value in small.items()),
        cwd=tmp_path,
    )
    assert "step 1/1" in done.stdout
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert list((tmp_path / "run" / "samples").glob("*.html"))
