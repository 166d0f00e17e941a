"""An export takes a layer at a time: beside the model there is about one tensor, on device and host."""

from __future__ import annotations

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from o3jax.hf import stored
from o3jax.hf.export import export_weights
from o3jax.models.layers import Initializer
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.text import for_decoding


@pytest.mark.parametrize("form", ["training", "decoding"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_holds_about_one_tensor_beside_the_model(tiny, tmp_path, monkeypatch, form, dtype):
    wide = tiny("dense").config
    config = dataclasses.replace(wide, text=dataclasses.replace(wide.text, intermediate_size=16384))
    model = Qwen3VL(config, Initializer(jax.random.key(0)))
    export_weights(model, tmp_path / "stacked", dtype=dtype)
    if form == "decoding":
        model.text.layers = for_decoding(model.text.layers)
    largest = 16384 * config.text.hidden_size * 4  # one of the 12 feed-forward matrices
    at_rest = sum(array.nbytes for array in jax.live_arrays())
    live = []

    def noted(tensor, original=np.atleast_1d):
        live.append(sum(array.nbytes for array in jax.live_arrays()))
        return original(tensor)

    monkeypatch.setattr(stored.np, "atleast_1d", noted)
    tracemalloc.start()
    export_weights(model, tmp_path / "out", dtype=dtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(live) > 100 and max(live) < at_rest + (7 if form == "decoding" else 2.5) * largest
    assert peak < 2.5 * largest
    # The library reads what ours wrote, and both forms say the same.
    written = [load_file(tmp_path / name / "model.safetensors") for name in ("stacked", "out")]
    assert written[0].keys() == written[1].keys()
    for name, tensor in written[0].items():
        np.testing.assert_array_equal(tensor, written[1][name], err_msg=name)
