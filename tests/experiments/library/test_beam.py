"""Work as a pipeline of Apache Beam, where that is installed: several workers, one that dies, a bad file."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest

from experiments.library.beam import spread
from experiments.library.records import RunFolder
from o3jax.errors import UserError

WORKERS = ("direct_num_workers=2", "direct_running_mode=multi_processing")


@dataclasses.dataclass(frozen=True)
class Noting:
    """Work that writes a record of each item; one kills its process the first time, another is bad."""

    folder: str

    def open(self, name):
        run = RunFolder(Path(self.folder), name)

        def do(item):
            if item == "deadly" and not (died := Path(self.folder) / "died").exists():
                died.touch()
                os._exit(1)
            run.add([{"id": item, "worker": name} | ({"error": "bad"} if item == "bad" else {})])

        return do


@pytest.fixture
def beam():
    return pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install o3jax[beam]")


def test_workers_share_the_work_and_one_that_dies_costs_nothing(beam, tmp_path):
    items = [*map(str, range(20)), "bad", "deadly"]
    spread(Noting(str(tmp_path)), items, RunFolder(tmp_path).records, "DirectRunner", WORKERS)
    found = RunFolder(tmp_path).records()
    assert set(found) == set(items) and found["bad"]["error"] == "bad" and (tmp_path / "died").exists()
    assert len({record["worker"] for record in found.values()}) >= 2


def test_wrong_options_and_a_missing_beam_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install .o3jax\[beam\]"):
        spread(Noting(str(tmp_path)), ["a"], dict, "DirectRunner", ())
