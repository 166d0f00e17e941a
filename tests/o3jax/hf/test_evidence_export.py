"""Models with evidence modules as folders: bitwise both ways, plain to transformers, every refusal."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

import o3jax
from experiments.training import trainer
from o3jax.errors import UserError
from o3jax.hf import config_from_hf, export_weights, load_weights
from o3jax.hf.folder import export_model
from o3jax.hf.names import model_leaves
from o3jax.hf.o3_config import Settings, read_settings
from o3jax.models.config import EvidenceConfig
from o3jax.models.qwen3_vl import Qwen3VL, with_evidence
from o3jax.sharding import make_mesh
from o3jax.train.state import TrainState
from tests.support.commands import run_command
from tests.support.tiny import assert_same_leaves, loaded_without_warnings, make_inputs

EVIDENCE = EvidenceConfig(
    hidden_size=32, num_heads=4, temporal_layers=3, window_s=math.inf, strategy="ring", proposals=3
)


def with_random_evidence(model: Qwen3VL, c: EvidenceConfig) -> Qwen3VL:
    """Returns the model with evidence modules in which no leaf is constant."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.normal(size=leaf.shape) * 0.3
        return jnp.asarray(values + ("norm" in name), leaf.dtype)

    made = with_evidence(model, c, jax.random.key(0))
    made.evidence = jax.tree_util.tree_map_with_path(fill, made.evidence)
    return made


@pytest.fixture(scope="module")
def made(tiny) -> Qwen3VL:
    return with_random_evidence(tiny("dense").ours, EVIDENCE)


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_weights(made, folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy of the exported folder, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


def read(folder: Path) -> dict:
    return json.loads((folder / "o3_config.json").read_text())


def write(folder: Path, values: dict) -> None:
    (folder / "o3_config.json").write_text(json.dumps(values))


# --- round trips ---


def test_save_and_load_is_bitwise(made, exported, tmp_path):
    assert config_from_hf(exported) == made.config
    again = load_weights(exported, config_from_hf(exported))
    assert_same_leaves(again, made)
    assert jax.tree.structure(again) == jax.tree.structure(made)

    export_weights(made, tmp_path / "bf16", dtype=jnp.bfloat16)
    half = load_weights(tmp_path / "bf16", made.config)
    assert half.evidence.temporal.layers.qkv.dtype == half.text.embed.dtype == jnp.bfloat16
    assert_same_leaves(half, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), made))
    export_weights(half, tmp_path / "again")
    for file in ("o3_evidence.safetensors", "o3_config.json", "model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "bf16" / file).read_bytes()
    assert_same_leaves(load_weights(tmp_path / "again", made.config), half)
    wide = load_weights(tmp_path / "again", made.config, dtype=jnp.float32)
    assert wide.evidence.decoder.box_bias.dtype == jnp.float32


def test_the_standard_files_are_those_of_the_plain_model(tiny, exported, tmp_path):
    export_weights(tiny("dense").ours, tmp_path / "plain")
    plain = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert "o3_config.json" not in plain
    for name in plain:
        assert (tmp_path / "plain" / name).read_bytes() == (exported / name).read_bytes(), name
    assert {path.name for path in exported.iterdir()} - set(plain) == {
        "o3_evidence.safetensors",
        "o3_config.json",
    }


def test_the_files_say_what_the_model_is(made, exported):
    text = (exported / "o3_config.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    tensors = load_file(exported / "o3_evidence.safetensors")
    assert tensors.keys() == {name for name in model_leaves(made) if name.startswith("evidence.")}
    qkv = tensors["evidence.temporal.layers.qkv"]
    assert qkv.shape == (3, 32, 3, 4, 8)  # layers stay stacked
    np.testing.assert_array_equal(qkv, made.evidence.temporal.layers.qkv[...])
    np.testing.assert_array_equal(
        tensors["evidence.question.relevance_bias"], made.evidence.question.relevance_bias[...]
    )
    assert read(exported) == {
        "prompt_style": "open_o3",
        "fps": 25.0,
        "box_step": 1,
        "clip_s": 60.0,
        "whole_s": 120.0,
        "exact_names": False,
        "clock": "video",
        "evidence": dataclasses.asdict(EVIDENCE) | {"window_s": "inf"},
    }


def test_the_backbone_alone_can_be_read(tiny, exported):
    config = dataclasses.replace(config_from_hf(exported), evidence=None)
    assert_same_leaves(load_weights(exported, config), tiny("dense").ours)


def test_fields_with_defaults_may_be_left_out(folder):
    write(folder, {"fps": 30, "evidence": {"hidden_size": 32, "num_heads": 4, "temporal_layers": 3}})
    assert config_from_hf(folder).evidence == EvidenceConfig(32, 4, temporal_layers=3)
    assert read_settings(folder) == Settings(fps=30.0)
    write(folder, {"evidence": {"hidden_size": 32, "num_heads": 4, "temporal_layers": 0, "dense_fps": 30}})
    assert config_from_hf(folder).evidence == EvidenceConfig(32, 4, temporal_layers=0, dense_fps=30.0)


def test_sharded_load_places_every_leaf_by_its_axes(made, exported):
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    model = load_weights(exported, config_from_hf(exported), mesh=mesh)
    assert_same_leaves(model, made)
    qkv = model.evidence.temporal.layers.qkv[...]
    assert qkv.sharding.spec == PartitionSpec(None, ("fsdp", "context"), None, "tensor", None)
    assert qkv.addressable_shards[0].data.shape == (3, 16, 3, 1, 8)
    assert len(model.evidence.decoder.confidence_bias.sharding.device_set) == 8


def test_a_failed_export_leaves_nothing(made, tmp_path):
    def fail(folder: Path) -> None:
        assert (folder / "o3_evidence.safetensors").exists() and (folder / "o3_config.json").exists()
        raise OSError("disk full")

    with pytest.raises(UserError, match="cannot write .* \\(disk full\\): name another place"):
        export_weights(made, tmp_path / "out", add_files=fail)
    assert not list(tmp_path.iterdir())


# --- transformers ---


def test_transformers_loads_the_folder_without_warnings(tiny, exported, caplog):
    reference, inputs = tiny("dense"), make_inputs([[3, (4, 6), 5, (2, 6, 4), 2]])
    model = loaded_without_warnings(type(reference.torch), exported, caplog)
    with torch.no_grad():
        again = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()
    np.testing.assert_array_equal(again, reference.logits(inputs))


# --- the facade and the command ---


def test_convert_carries_the_modules_along(video_model, tmp_path, capfd):
    backbone = load_weights(video_model, config_from_hf(video_model))
    model = with_random_evidence(backbone, EVIDENCE)
    settings = Settings("plain", 12.5)
    export_model(model, video_model, tmp_path / "f32", o3jax.load_processor(video_model), settings)
    done = run_command(
        capfd, "convert", f"--source={tmp_path / 'f32'}", f"--target={tmp_path / 'bf16'}", "--dtype=bfloat16"
    )
    assert done.code == 0 and f"wrote {tmp_path / 'bf16'}" in done.out
    loaded = o3jax.load(tmp_path / "bf16")
    assert loaded.settings == settings and loaded.config == model.config
    # On a CPU evidence modules are float32 in memory, with the values of the file.
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), model.evidence)
    assert_same_leaves(loaded.backbone.evidence, expected)
    stored = load_file(tmp_path / "bf16/o3_evidence.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}

    o3jax.export_hf(loaded, tmp_path / "again")  # bitwise from there on
    assert (tmp_path / "again/o3_evidence.safetensors").read_bytes() == (
        tmp_path / "bf16/o3_evidence.safetensors"
    ).read_bytes()


def test_a_trained_model_is_presented_at_the_rate_of_its_source(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    write(tmp_path / "source", {"fps": 12.5, "prompt_style": "open_o3", "box_step": 1})
    exported = []
    monkeypatch.setattr(trainer, "export_model", lambda *arguments: exported.append(arguments[-1]))
    asked = {"prompt_style": "plain", "box_step": 10}
    trainer.export(TrainState(0, None, None), tmp_path / "source", tmp_path / "model", None, **asked)
    assert exported == [Settings("plain", 12.5, 10)]


# --- refusals ---


def refused(folder: Path, says: str) -> str:
    with pytest.raises(UserError, match=says) as error:
        load_weights(folder, config_from_hf(folder))
        read_settings(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("colour", 1, "unknown field 'evidence.colour': remove it"),
        ("hidden_size", None, "evidence.hidden_size is missing"),
        ("hidden_size", 32.0, "evidence.hidden_size must be a positive whole number"),
        ("hidden_size", 36, "evidence.hidden_size must be a positive multiple of 2 x num_heads"),
        ("num_heads", 0, "evidence.num_heads must be a positive whole number"),
        ("decoder_layers", 0, "evidence.decoder_layers must be a positive whole number"),
        ("question_layers", 0, "evidence.question_layers must be a positive whole number"),
        ("proposals", 0, "evidence.proposals must be a positive whole number"),
        ("dense_pixels", 0, "evidence.dense_pixels must be a positive whole number"),
        ("temporal_layers", -1, "evidence.temporal_layers must be a whole number"),
        ("proposals", True, "evidence.proposals must be a positive whole number"),
        ("dense_fps", 0, "evidence.dense_fps must be a positive number"),
        ("dense_fps", 31.0, "evidence.dense_fps is 31, more than the 30 frames per second that a window"),
        ("window_s", math.nan, "evidence.window_s must be a positive number"),
        ("window_s", None, "evidence.window_s is missing"),
        ("strategy", "wormhole", "evidence.strategy is 'wormhole'; choose one of halo"),
        ("strategy", 3, "evidence.strategy must be text"),
        ("box_frames", "best", "evidence.box_frames is 'best'; choose one of stream, pointed"),
        ("inject", "no", "evidence.inject is 'no', but only False is supported"),
        ("inject", True, "evidence.inject is True, but only False is supported"),
        # A field that the tensors do not fit.
        ("temporal_layers", 2, r"of another shape .*temporal.layers.\w+ is \[3, .*not \[2, "),
    ],
)
def test_wrong_fields_of_the_evidence(folder, field, value, says):
    values = read(folder)
    values["evidence"][field] = value
    write(folder, values)
    assert "o3_config.json" in refused(folder, says)


def test_earlier_folders_say_that_nothing_is_injected(folder, made):
    values = read(folder)
    values["evidence"]["inject"] = False
    write(folder, values)
    assert config_from_hf(folder) == made.config


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("evidence", [], "evidence must be an object"),
        ("evidence", None, "has o3_evidence.safetensors, but 'evidence' is missing in its o3_config.json"),
        ("colour", 1, "unknown field 'colour': remove it"),
        ("fps", "fast", "fps must be a positive number"),
        ("box_step", 0, "box_step must be a positive whole number"),
        ("whole_s", 0, "whole_s must be a positive number"),
        ("clock", "wall", "clock is "),
        ("prompt_style", 1, "prompt_style must be text"),
    ],
)
def test_wrong_fields_beside_it(folder, field, value, says):
    write(folder, read(folder) | {field: value})
    assert "o3_config.json" in refused(folder, says)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_damaged_o3_config(folder, text):
    (folder / "o3_config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "o3_config.json .*JSON.*restore the file")


def test_missing_files(folder):
    (folder / "o3_evidence.safetensors").rename(folder / "kept")
    refused(folder, "lacks o3_evidence.safetensors although its o3_config.json names evidence modules")
    (folder / "kept").rename(folder / "o3_evidence.safetensors")
    (folder / "o3_config.json").unlink()
    refused(folder, "has o3_evidence.safetensors, but")


def test_every_misfit_of_the_tensors_is_in_one_error(folder):
    path = folder / "o3_evidence.safetensors"
    tensors = load_file(path)
    del tensors["evidence.decoder.box_bias"]
    tensors["evidence.surprise"] = np.zeros(3, np.float32)
    tensors["evidence.question.norm"] = tensors["evidence.question.norm"][:-1].copy()
    tensors["evidence.question.relevance_bias"] = np.zeros(1, np.float32)
    tensors["evidence.temporal.norm"] = tensors["evidence.temporal.norm"].astype(np.float64)
    save_file(tensors, path)
    message = refused(folder, "o3_evidence.safetensors do not fit its o3_config.json")
    assert "1 missing: evidence.decoder.box_bias" in message and "1 unknown: evidence.surprise" in message
    assert "evidence.question.norm is [31], not [32]" in message
    assert "evidence.question.relevance_bias is [1], not []" in message
    assert "evidence.temporal.norm is F64" in message


def test_a_damaged_file_and_mixed_dtypes(folder):
    path = folder / "o3_evidence.safetensors"
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    refused(folder, "mixes the dtypes BF16, F32")
    assert load_weights(folder, config_from_hf(folder), dtype=jnp.float32).evidence is not None
    path.write_bytes(path.read_bytes()[:-4])
    refused(folder, "o3_evidence.safetensors is damaged")
