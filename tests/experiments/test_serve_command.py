"""What is wrong with the flags of `o3jax serve` is one sentence, before the model is loaded."""

from __future__ import annotations

import socket
import sys

import pytest

from tests.support.commands import run_command


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--host=0.0.0.0"], "open to other machines: set O3JAX_API_KEY"),
        (["--host=nowhere.invalid", "--api_key=x"], "cannot be listened at"),
        (["--media_root={}/none"], "is no folder"),
        (["--workdir={}/file/x"], "cannot be written"),
        (["--model_path={}/none"], "none"),
        (["clip.mp4"], "unexpected argument 'clip.mp4'"),
        (["--port=70000"], "port"),
    ],
)
def test_a_wrong_flag(capfd, tmp_path, monkeypatch, flags, said):
    monkeypatch.delenv("O3JAX_API_KEY", raising=False)
    (tmp_path / "file").write_text("x")
    flags = [flag.format(tmp_path) for flag in ("--port=0", f"--workdir={tmp_path}/work", *flags)]
    done = run_command(capfd, "serve", *flags)
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert said in done.err


def test_a_busy_port(capfd, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command(capfd, "serve", f"--port={port}", f"--workdir={tmp_path}")
    assert done.code == 2 and f"port {port} of 127.0.0.1" in done.err and "--port" in done.err


def test_a_missing_package(capfd, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run_command(capfd, "serve", "--port=0", f"--workdir={tmp_path}")
    assert done.code == 2 and "pip install 'o3jax[serve]'" in done.err
