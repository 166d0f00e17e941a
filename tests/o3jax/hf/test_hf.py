"""Hugging Face both ways: bitwise round trips, transformers reads our export, nothing is half written."""

from __future__ import annotations

import dataclasses
import json
import os
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from o3jax.errors import UserError
from o3jax.hf import config_from_hf, config_to_hf, export_weights, load_weights
from o3jax.hf.names import model_leaves, tensor_table
from o3jax.models.presets import PRESETS
from o3jax.models.qwen3_vl import Qwen3VL, abstract_model
from o3jax.sharding import make_mesh
from tests.support.tiny import (
    KINDS,
    assert_same_leaves,
    loaded_without_warnings,
    make_inputs,
    to_release_dialect,
)

INDEX = "model.safetensors.index.json"


def random_model(config) -> Qwen3VL:
    rng = np.random.default_rng(0)
    shapes = abstract_model(config)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


# --- round trips ---


@pytest.mark.parametrize("kind", KINDS)
def test_import_export_import_is_bitwise(tiny, kind, tmp_path):
    model, config = tiny(kind).ours, tiny(kind).config
    export_weights(model, tmp_path / "f32", max_shard_bytes=200_000)
    assert config_from_hf(tmp_path / "f32") == config
    assert_same_leaves(load_weights(tmp_path / "f32", config), model)

    export_weights(model, tmp_path / "bf16", dtype=jnp.bfloat16)
    half = load_weights(tmp_path / "bf16", config)
    assert half.text.embed.dtype == jnp.bfloat16
    export_weights(half, tmp_path / "again")
    assert_same_leaves(load_weights(tmp_path / "again", config), half)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("bf16", "again"))
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_export_stores_exactly_the_tensors_that_transformers_had(tiny, kind, tmp_path):
    reference = tiny(kind)
    to_release_dialect(reference.folder, tmp_path)
    export_weights(reference.ours, tmp_path / "out")
    published, ours = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert published.keys() == ours.keys()
    assert all(np.array_equal(published[name], ours[name]) for name in ours)


def test_shards_hold_the_index_and_respect_the_limit(sharded):
    index = json.loads((sharded / INDEX).read_text())
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 3 and not (sharded / "model.safetensors").exists()
    total = 0
    for file in files:
        tensors = load_file(file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 300_000 or len(tensors) == 1
        assert {name for name, where in index["weight_map"].items() if where == file.name} == set(tensors)
        total += size
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_export_without_warnings(tiny, kind, tmp_path, caplog):
    reference, inputs = tiny(kind), make_inputs([[3, (4, 6), 5, (2, 6, 4), 2]])
    export_weights(reference.ours, tmp_path / "out", max_shard_bytes=400_000)
    model = loaded_without_warnings(type(reference.torch), tmp_path / "out", caplog)
    assert model.dtype == torch.float32
    with torch.no_grad():
        again = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()
    np.testing.assert_array_equal(again, reference.logits(inputs))


def test_float16_and_casts(tiny, tmp_path):
    model, config = tiny("dense").ours, tiny("dense").config
    export_weights(model, tmp_path / "f16", dtype=jnp.float16)
    half = load_weights(tmp_path / "f16", config)
    np.testing.assert_array_equal(half.text.embed[...], model.text.embed[...].astype(jnp.float16))
    wide = load_weights(tmp_path / "f16", config, dtype=jnp.bfloat16)
    expected = np.asarray(half.text.layers.q[...]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(wide.text.layers.q[...], expected)


def test_sharded_load_places_every_leaf_by_its_axes(tiny):
    reference = tiny("moe")
    mesh = make_mesh(data=1, fsdp=2, tensor=2, expert=2)
    model = load_weights(reference.folder, reference.config, mesh=mesh)
    assert_same_leaves(model, reference.ours)
    spec = model.text.layers.gate_up[...].sharding.spec
    assert spec == PartitionSpec(None, "expert", ("fsdp", "context"), "tensor")
    shard = model.text.layers.gate_up[...].addressable_shards[0].data
    assert shard.shape == (4, 4, 32, 40)


# --- host memory ---


def test_the_host_holds_about_one_tensor(tiny, tmp_path):
    """numpy's peak is one tensor's copy for the device: not a stacked leaf (four), not the model (twelve)."""
    wide = tiny("dense").config
    config = dataclasses.replace(wide, text=dataclasses.replace(wide.text, intermediate_size=16384))
    export_weights(random_model(config), tmp_path / "wide")
    largest = 16384 * config.text.hidden_size * 4  # one of the 12 feed-forward matrices
    load_weights(tmp_path / "wide", config)  # compiled here, outside of the measurement
    tracemalloc.start()
    load_weights(tmp_path / "wide", config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # JAX may free what it was given one call late, so for a moment there can be two.
    assert largest <= peak < 2.5 * largest
    assert (tmp_path / "wide/model.safetensors").stat().st_size > 10 * largest


# --- atomic export ---


def test_failed_export_leaves_nothing(tiny, tmp_path, monkeypatch):
    model = tiny("dense").ours

    def fail(folder: Path) -> None:
        assert (folder / "config.json").exists() and not (tmp_path / "out").exists()
        raise OSError("disk full")

    with pytest.raises(UserError, match="cannot write .* \\(disk full\\): name another place"):
        export_weights(model, tmp_path / "out", add_files=fail)
    assert os.listdir(tmp_path) == []


def test_export_adds_files_and_generation_config(tiny, tmp_path):
    export_weights(
        tiny("dense").ours,
        tmp_path / "deep/out",
        generation={"eos_token_id": 7},
        add_files=lambda folder: (folder / "tokenizer.json").write_text("{}"),
    )
    assert (tmp_path / "deep/out/tokenizer.json").read_text() == "{}"
    assert json.loads((tmp_path / "deep/out/generation_config.json").read_text()) == {"eos_token_id": 7}
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_export_refuses_to_overwrite(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("file", "full"):
        with pytest.raises(UserError, match="choose another"):
            export_weights(tiny("dense").ours, tmp_path / name)
    export_weights(tiny("dense").ours, tmp_path / "empty")
    assert (tmp_path / "empty/model.safetensors").exists()


def test_square_experts_are_read_by_the_other_matrix_and_not_exported(tiny, tmp_path):
    """2 x moe_intermediate_size = hidden_size: gate_up is square, so only down tells the layout."""
    config = tiny("moe").config
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, moe_intermediate_size=32))
    model = random_model(config)
    with pytest.raises(UserError, match="square experts"):
        export_weights(model, tmp_path / "out")
    tensors = {}
    for entry in tensor_table(config):
        leaf = np.asarray(model_leaves(model)[entry.leaf])
        for layer, name in zip([leaf] if entry.count is None else leaf, entry.names, strict=True):
            tensors[name] = np.ascontiguousarray(entry.to_tensor(layer))
    for transposed in (False, True):
        folder = tmp_path / str(transposed)
        folder.mkdir()
        stored = {
            name: np.ascontiguousarray(t.swapaxes(1, 2)) if transposed and ".experts." in name else t
            for name, t in tensors.items()
        }
        save_file(stored, folder / "model.safetensors")
        assert_same_leaves(load_weights(folder, config), model)


def test_config_of_published_8b():
    """The published 8B file's values survive both ways; class defaults would give other ones."""
    published = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "dtype": "bfloat16",
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 12288,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "use_cache": True,
            "vocab_size": 151936,
        },
        "tie_word_embeddings": False,
        "video_token_id": 151656,
        "vision_config": {
            "deepstack_visual_indexes": [8, 16, 24],
            "depth": 27,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 4304,
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 4096,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }
    config = config_from_hf(published)
    assert config == PRESETS["8B"]
    leaves = jax.tree.leaves(abstract_model(config))
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == 8_767_123_696
    written = config_to_hf(config, jnp.bfloat16)
    for section in ("text_config", "vision_config"):
        left_out = {"bos_token_id", "eos_token_id"}
        want = {key: value for key, value in published[section].items() if key not in left_out}
        assert {key: written[section][key] for key in want} == want
    assert written["tie_word_embeddings"] is False and written["dtype"] == "bfloat16"
