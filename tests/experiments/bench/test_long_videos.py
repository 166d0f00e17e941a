"""The benchmark of long videos leaves the search as it was."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.bench import long_videos
from o3jax.inference import search


def test_reading_uniformly_puts_the_search_back(monkeypatch, tmp_path):
    def stopped(*_):
        raise InterruptedError

    before = search.coarse_features, search.STEPS_S
    model = SimpleNamespace(respond=stopped, request=lambda *_, **__: (None, None), respond_searching=stopped)
    question = SimpleNamespace(sample=SimpleNamespace(question="When?"))
    monkeypatch.setattr(long_videos, "every_half_second", lambda *_: (None, np.zeros(2)))
    with pytest.raises(InterruptedError):
        long_videos.ask(model, tmp_path / "a.mp4", question, uniform=True)
    assert (search.coarse_features, search.STEPS_S) == before
