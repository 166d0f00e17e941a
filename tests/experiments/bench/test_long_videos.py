"""The benchmark of long videos leaves the search as it was."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT

# In a process of its own, since commands define flags.
CODE = """if True:
    from types import SimpleNamespace
    import numpy as np
    from experiments.bench import long_videos
    from o3jax.inference import search

    def stopped(*_):
        raise InterruptedError

    before = search.coarse_features, search.STEPS_S
    model = SimpleNamespace(respond=stopped, request=lambda *_, **__: (None, None), respond_searching=stopped)
    question = SimpleNamespace(sample=SimpleNamespace(question="When?"))
    long_videos.every_half_second = lambda *_: (None, np.zeros(2))
    try:
        long_videos.ask(model, "a.mp4", question, uniform=True)
    except InterruptedError:
        print("stopped", (search.coarse_features, search.STEPS_S) == before)
"""


def test_reading_uniformly_puts_the_search_back():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "stopped True\n", done.stderr
