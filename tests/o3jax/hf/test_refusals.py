"""Folders that are no model, or not one that we read: each is refused, with the field or the file."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from o3jax.errors import UserError
from o3jax.hf import config_from_hf, load_weights
from tests.support.tiny import assert_same_leaves

INDEX = "model.safetensors.index.json"
ABSENT = object()


def edit_config(folder: Path, path: str, value) -> None:
    """Sets (or, given ABSENT, removes) a dotted field of config.json."""
    config = json.loads((folder / "config.json").read_text())
    *parents, last = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model_type", "qwen2_5_vl", "not a Qwen3-VL"),
        ("model_type", ABSENT, "not a Qwen3-VL"),
        ("text_config", ABSENT, "text_config is missing"),
        ("text_config", [], "text_config must be an object"),
        ("text_config.head_dim", ABSENT, "text_config.head_dim is missing"),
        ("text_config.rope_parameters", ABSENT, "rope_parameters is missing"),
        ("text_config.rope_parameters.rope_theta", ABSENT, "rope_theta is missing"),
        ("text_config.rope_parameters.rope_type", "yarn", "rope_type is 'yarn'"),
        ("text_config.rope_parameters.mrope_interleaved", False, "mrope_interleaved"),
        ("text_config.rope_parameters.mrope_section", [8, 4], "mrope_section"),
        ("text_config.rms_norm_eps", "small", "rms_norm_eps must be a positive number"),
        ("text_config.hidden_size", True, "hidden_size must be a positive whole number"),
        ("text_config.hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("text_config.attention_bias", True, "attention_bias"),
        ("text_config.num_key_value_heads", 3, "num_attention_heads"),
        ("vision_config.hidden_act", "gelu", "vision_config.hidden_act"),
        ("vision_config.depth", ABSENT, "vision_config.depth is missing"),
        ("vision_config.out_hidden_size", 32, "out_hidden_size"),
        ("vision_config.deepstack_visual_indexes", [2, 0], "deepstack_visual_indexes"),
        ("vision_config.deepstack_visual_indexes", [0, 9], "deepstack_visual_indexes"),
        ("vision_config.num_position_embeddings", 65, "num_position_embeddings"),
        ("tie_word_embeddings", ABSENT, "tie_word_embeddings is missing"),
        ("tie_word_embeddings", 1, "tie_word_embeddings must be true or false"),
        ("image_token_id", ABSENT, "image_token_id is missing"),
        ("quantization_config", {"bits": 4}, "quantization_config"),
    ],
)
def test_config_refusals_name_the_field(folder, field, value, says):
    edit_config(folder, field, value)
    with pytest.raises(UserError, match="config.json.*" + says.replace(".", r"\.")):
        config_from_hf(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mlp_only_layers", [1]),
        ("decoder_sparse_step", 2),
        ("norm_topk_prob", False),
        ("shared_expert_intermediate_size", 64),
        ("num_local_experts", ABSENT),
        ("num_experts_per_tok", 9),
    ],
)
def test_moe_config_refusals(tiny, tmp_path, field, value):
    folder = Path(shutil.copytree(tiny("moe").folder, tmp_path / "model"))
    edit_config(folder, f"text_config.{field}", value)
    with pytest.raises(UserError, match=field.replace("local_", "")):
        config_from_hf(folder)


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        config_from_hf(tmp_path / "nothing")
    with pytest.raises(UserError, match="no config.json"):
        config_from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        config_from_hf(tmp_path)


def test_the_tie_flag_of_the_text_config_is_not_believed(folder):
    edit_config(folder, "text_config.tie_word_embeddings", True)
    assert not config_from_hf(folder).tie_word_embeddings


def refused(folder: Path, config, says: str) -> str:
    with pytest.raises(UserError, match=says) as error:
        load_weights(folder, config)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500
    return str(error.value)


def test_every_misfit_is_in_one_error(tiny, folder):
    tensors = load_file(folder / "model.safetensors")
    for i in range(4):
        del tensors[f"model.language_model.layers.{i}.self_attn.q_norm.weight"]
        del tensors[f"model.language_model.layers.{i}.self_attn.k_norm.weight"]
    tensors["surprise"] = np.zeros(3, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1].copy()
    tensors["model.visual.pos_embed.weight"] = tensors["model.visual.pos_embed.weight"].astype(np.float64)
    save_file(tensors, folder / "model.safetensors")
    message = refused(folder, tiny("dense").config, "do not fit")
    assert "8 missing" in message and "and 6 more" in message
    assert "1 unknown: surprise" in message
    assert "lm_head.weight is [320, 63], not [320, 64]" in message
    assert "model.visual.pos_embed.weight is F64" in message


def test_mixed_dtypes_need_a_choice(tiny, folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, tiny("dense").config, "mixes the dtypes BF16, F32")
    assert load_weights(folder, tiny("dense").config, dtype=jnp.float32).text.lm_head.dtype == jnp.float32


def test_tied_head_may_be_stored_if_it_is_the_embedding(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny("tied").folder, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    assert_same_leaves(load_weights(folder, tiny("tied").config), tiny("tied").ours)
    tensors["lm_head.weight"][5, 5] += 1
    save_file(tensors, folder / "model.safetensors")
    refused(folder, tiny("tied").config, "lm_head.weight differs")


def test_missing_shard_and_missing_weights(tiny, sharded):
    config = tiny("dense").config
    second = sorted(sharded.glob("*.safetensors"))[1]
    second.unlink()
    assert second.name in refused(sharded, config, "lacks the weight files")
    (sharded / INDEX).unlink()
    refused(sharded, config, "neither model.safetensors nor")
    (sharded / "pytorch_model.bin").write_bytes(b"pickle")
    refused(sharded, config, "only safetensors are read")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "..", 3])
def test_index_cannot_leave_the_folder(tiny, sharded, name):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, tiny("dense").config, "inside the folder")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_damaged_index(tiny, sharded, text):
    (sharded / INDEX).write_text(text)
    refused(sharded, tiny("dense").config, "restore the file|inside the folder")


def test_a_tensor_in_two_shards(tiny, sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor}, second)
    refused(sharded, tiny("dense").config, "is in both")


def test_damaged_safetensors(tiny, folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    header["lm_head.weight"]["data_offsets"][1] += 10**12
    lying = json.dumps(header).encode()
    for damaged in (
        b"",
        good[:5],
        good[:1000],
        good[:-4],
        b"\xff" * 64,
        b"\x10" + b"\0" * 7 + b"{not json at all}",
        struct.pack("<Q", len(lying)) + lying + good[8 + size :],
    ):
        path.write_bytes(damaged)
        refused(folder, tiny("dense").config, "damaged")


def test_nothing_is_unpickled(tiny, folder, monkeypatch):
    """A pickle that stands beside the weights is never opened."""
    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("unpickled"))
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    load_weights(folder, tiny("dense").config)
