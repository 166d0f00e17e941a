"""Folders of a tiny model, to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from o3jax.hf import export_weights


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A copy of the dense reference's folder."""
    return Path(shutil.copytree(tiny("dense").folder, tmp_path / "model"))


@pytest.fixture
def sharded(tiny, tmp_path) -> Path:
    """The dense reference exported in several shards."""
    export_weights(tiny("dense").ours, tmp_path / "model", max_shard_bytes=300_000)
    return tmp_path / "model"
