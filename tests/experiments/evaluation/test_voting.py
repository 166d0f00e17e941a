"""The experiment on votes: its table, and a run that was stopped and goes on."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments.evaluation import voting
from o3jax import api
from o3jax.errors import UserError


def test_a_run_that_was_stopped_goes_on(monkeypatch, tmp_path):
    asked: list[str] = []
    model = SimpleNamespace(folder=Path(api.ASSETS / "o3-tiny"), calibration="fitted")

    def clips(folder, shift, split, share, level, seed):
        ids = [f"l{level}-{number}" for number in range(share)]
        return [(SimpleNamespace(sample=SimpleNamespace(id=one)), None) for one in ids]

    def voted(model, question, path, samples, seed):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(question.sample.id)
        right = float(question.sample.id.endswith("1"))
        return dict.fromkeys(voting.WAYS, right) | {"single": 0.25}

    monkeypatch.setattr(voting, "write_clips", clips)
    monkeypatch.setattr(voting, "_voted", voted)

    def run(samples: int = 8, count: int = 4) -> tuple[dict, str]:
        out = io.StringIO()
        found = voting.run_voting(
            lambda: model, tmp_path / "voting", count, samples, 0, Console(file=out, width=200)
        )
        return found, out.getvalue()

    with pytest.raises(KeyboardInterrupt):
        run()
    asked.pop()  # there is room for one more
    found, told = run()
    assert asked == ["l1-0", "l1-1", "l2-1"]  # the third was asked before the run was stopped
    assert found["N"] == 4 and found["majority"] == {"levels": [0.5, 0.5], "all": 0.5}
    assert found["single"]["all"] == 0.25 and "accuracy from 8 samples of 4 questions" in told
    assert run()[0] == found and len(asked) == 3
    with pytest.raises(UserError, match="another samples"):
        run(samples=4)
    model.calibration = None
    with pytest.raises(UserError, match="has no calibration to vote by"):
        run()
