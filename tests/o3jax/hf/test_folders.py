"""Model folders: every key is done or refused, and what is damaged is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import GenerationConfig, Qwen3VLConfig

import o3jax
from o3jax.errors import MOST_CHARACTERS, UserError
from o3jax.fields import folder_file, folder_json
from o3jax.hf import config_from_hf, load_weights
from o3jax.hf.generation import DONE, OFF, WITHOUT_EFFECT, read_generation
from o3jax.models.config import VisionConfig
from tests.support.tiny import make_inputs


def edit(path: Path, **fields) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | fields))


# --- files ---


def test_an_error_is_a_sentence_of_bounded_length():
    sentence = str(UserError("field " + "x" * 10**6 + " is wrong: mend it"))
    assert len(sentence) <= MOST_CHARACTERS
    assert sentence.startswith("field x") and sentence.endswith("x is wrong: mend it")
    assert str(UserError("short")) == "short"


@pytest.mark.parametrize("name", ["generation_config.json", "o3_config.json", "config.json"])
@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "device", "large", "nested"])
def test_what_is_no_file_is_not_absent(folder, name, kind):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to("nowhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2**33)
    else:
        path.write_text('{"a":' * 10**5 + "1" + "}" * 10**5)
    with pytest.raises(UserError, match=name):
        o3jax.load(folder)


def test_a_file_is_absent_only_if_nothing_has_its_name(tmp_path):
    assert folder_file(tmp_path, "x") is None and folder_json(tmp_path, "x") is None


# --- config.json ---


@pytest.mark.parametrize(
    "field",
    [
        "text_config.num_hidden_layers",
        "vision_config.depth",
        "text_config.vocab_size",
        "text_config.hidden_size",
    ],
)
@pytest.mark.parametrize("value", [10**9, 10**20])
def test_sizes_are_compared_with_the_tensors_before_anything_is_made(folder, field, value):
    section, key = field.split(".")
    values = json.loads((folder / "config.json").read_text())
    values[section][key] = value
    if key == "hidden_size":
        values["vision_config"]["out_hidden_size"] = value
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json"):
        load_weights(folder, config_from_hf(folder))


def test_media_tokens_must_be_in_the_embedding(folder):
    edit(folder / "config.json", image_token_id=320)
    with pytest.raises(UserError, match="image_token_id is 320, but the embedding has 320 rows"):
        o3jax.load(folder)


# Fields of transformers' classes that config.json may hold, and that say nothing about what is computed at
# inference: names, what is returned, training, and what the published values of other fields imply.
_CONFIG_WITHOUT_EFFECT = {
    *("transformers_version", "architectures", "model_type", "dtype", "torch_dtype", "initializer_range"),
    *("output_hidden_states", "output_attentions", "return_dict", "use_cache", "id2label", "label2id"),
    *("problem_type", "chunk_size_feed_forward", "is_encoder_decoder", "attention_dropout"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "_name_or_path"),
    *("use_return_dict", "tie_word_embeddings", "rope_parameters"),
}


def test_every_key_of_config_json_is_read_or_says_nothing_about_the_numbers():
    """A key that transformers adds fails here: do it, refuse it, or say that it changes nothing."""
    from o3jax.hf import config

    source = Path(config.__file__).read_text()
    values = Qwen3VLConfig().to_dict()
    sizes = {field.name for field in dataclasses.fields(VisionConfig)}  # each is read by its name
    for part, read in ((values, set()), (values["text_config"], set()), (values["vision_config"], sizes)):
        unread = [key for key in part if f'"{key}"' not in source and key not in read]
        assert not set(unread) - _CONFIG_WITHOUT_EFFECT


# --- generation_config.json ---


def test_every_key_of_generation_config_is_in_one_table():
    keys = set(vars(GenerationConfig())) | set(GenerationConfig().to_dict())
    keys -= {"_original_object_hash", "_commit_hash"}
    tables = [set(DONE), set(OFF), set(WITHOUT_EFFECT)]
    assert keys <= set().union(*tables), sorted(keys - set().union(*tables))
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beams", 4),
        ("no_repeat_ngram_size", 2),
        ("bad_words_ids", [[1]]),
        ("suppress_tokens", [1]),
        ("min_new_tokens", 5),
        ("min_length", 5),
        ("stop_strings", "x"),
        ("forced_eos_token_id", 2),
        ("guidance_scale", 2.0),
        ("repetition_penalty", 0),
        ("repetition_penalty", "x"),
        ("top_p", 7),
        ("do_sample", "yes"),
        ("eos_token_id", 10**6),
        ("eos_token_id", "x"),
        ("eos_token_id", [1, -1]),
        ("pad_token_id", 1.5),
        ("pad_token_id", [1, 2]),
    ],
)
def test_what_generation_config_asks_and_is_not_done(folder, key, value):
    edit(folder / "generation_config.json", **{key: value})
    with pytest.raises(UserError, match=f"generation_config.json: {key}"):
        read_generation(folder)


def test_published_generation_config_is_read(folder):
    published = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0}
    edit(folder / "generation_config.json", **published, eos_token_id=[5, 3], pad_token_id=3)
    found = read_generation(folder)
    assert (found.eos_ids, found.pad_id, found.repetition_penalty) == ((5, 3), 3, 1.0)


@pytest.mark.parametrize("penalty", [1.3, 4.0, 0.5])
def test_repetition_penalty_is_that_of_transformers(tiny, folder, penalty):
    """Greedy decoding, left-padded rows, token by token the same as transformers' generate."""
    edit(folder / "generation_config.json", repetition_penalty=penalty, eos_token_id=None)
    inputs = make_inputs([[9, (4, 4), 3], [5]], left=True)
    reference = tiny("dense").torch
    reference.model.rope_deltas = None
    settings = GenerationConfig(
        repetition_penalty=penalty, do_sample=False, max_new_tokens=8, pad_token_id=0, eos_token_id=None
    )
    with torch.no_grad():
        tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
        want = reference.generate(**tensors, generation_config=settings).numpy()[:, -8:]
    got = o3jax.load(folder).generate(**inputs, max_new_tokens=8)
    np.testing.assert_array_equal(got, want)
    plain = o3jax.load(tiny("dense").folder).generate(**inputs, max_new_tokens=8)
    assert (plain[:, :8] != got).any()


# --- weights ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_no_numbers_are_refused_by_name(folder, value, dtype):
    import ml_dtypes

    tensors = {
        k: v.astype(getattr(ml_dtypes, dtype, None) or dtype)
        for k, v in load_file(folder / "model.safetensors").items()
    }
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    tensors[name].flat[-1] = value
    save_file(tensors, folder / "model.safetensors")
    config = config_from_hf(folder)
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
        load_weights(folder, config)
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
        o3jax.load(folder)
    loaded = load_weights(folder, config, check_finite=False)
    assert not np.isfinite(np.asarray(loaded.text.layers.up[...], np.float32)).all()


def test_the_largest_numbers_are_numbers(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][0, :2] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    save_file(tensors, folder / "model.safetensors")
    load_weights(folder, config_from_hf(folder))


@pytest.mark.parametrize("ids", [[[1, 320]], [[-1, 2]], [[0.5, 1.0]]])
def test_input_ids_must_be_in_the_embedding(tiny, ids):
    model = o3jax.load(tiny("dense").folder)
    for call in (model, model.generate):
        with pytest.raises(UserError, match="input_ids must be whole numbers from 0 to 319"):
            call(input_ids=np.array(ids))


# --- adapters ---


def write_adapter(folder: Path, modules: dict[str, tuple[int, ...]], **config) -> dict[str, np.ndarray]:
    """Writes an adapter as peft does; returns what it adds to each weight, by hand in float64."""
    rng, tensors, change = np.random.default_rng(3), {}, {}
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "lora_dropout": 0.1} | config
    for name, (size_out, size_in) in modules.items():
        a, b = rng.normal(size=(4, size_in)), rng.normal(size=(size_out, 4))
        for key, value in (("A", a), ("B", b)):
            tensors[f"base_model.model.{name}.lora_{key}.weight"] = (0.1 * value).astype(np.float32)
        change[f"{name}.weight"] = (1.5 if not config.get("use_rslora") else 3.0) * 0.01 * b @ a
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors")
    return change


MODULES = {
    "model.language_model.layers.1.self_attn.q_proj": (128, 64),
    "model.language_model.layers.3.mlp.down_proj": (64, 96),
    "model.visual.blocks.0.attn.qkv": (192, 64),
}


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_beside_its_base_is_merged(tiny, folder, tmp_path, rslora, capfd):
    """Against transformers with W + alpha / r * B @ A written into its own weights."""
    change = write_adapter(folder, MODULES, use_rslora=rslora)
    tensors = load_file(tiny("dense").folder / "model.safetensors")
    reference = type(tiny("dense").torch).from_pretrained(tiny("dense").folder).eval()
    reference.load_state_dict(
        {k: torch.from_numpy(np.float32(tensors[k] + d)) for k, d in change.items()}, strict=False
    )
    inputs = make_inputs([[3, (4, 6), 5]])
    with torch.no_grad():
        want = reference(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()
    got = np.asarray(o3jax.load(folder)(**inputs).logits)
    assert np.abs(got - want).max() <= 2e-4
    assert np.abs(tiny("dense").logits(inputs) - want).max() > 0.1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 8}, "has rank 4"),
        ({"lora_alpha": "x"}, "lora_alpha"),
    ],
)
def test_adapters_of_other_kinds_are_refused(folder, config, says):
    write_adapter(folder, MODULES, **config)
    with pytest.raises(UserError, match=says):
        load_weights(folder, config_from_hf(folder))


def test_adapters_that_do_not_fit_are_refused(folder):
    write_adapter(folder, {"model.language_model.layers.9.self_attn.q_proj": (128, 64)})
    with pytest.raises(UserError, match="do not fit the base"):
        load_weights(folder, config_from_hf(folder))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        load_weights(folder, config_from_hf(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="holds an adapter alone"):
        o3jax.load(folder)


# --- bfloat16 in memory, float32 in products ---


@pytest.mark.parametrize("kind", ["dense", "tied", "moe"])
def test_bfloat16_weights_stay_so_on_a_cpu_and_compute_as_float32(tiny, tmp_path, kind):
    """The numbers are those of float32 weights with the same values, for few rows and for many."""
    from o3jax.hf import export_weights

    export_weights(tiny(kind).ours, tmp_path / "bf16", dtype="bfloat16")
    narrow, wide = o3jax.load(tmp_path / "bf16"), o3jax.load(tmp_path / "bf16", dtype="float32")
    assert str(narrow.backbone.text.embed.dtype) == "bfloat16" == str(narrow.backbone.text.layers[0].o.dtype)
    assert str(wide.backbone.text.embed.dtype) == "float32"
    inputs = make_inputs([[3, (4, 6), 25, (2, 6, 4), 2]])
    a, b = (np.asarray(model(**inputs).logits) for model in (narrow, wide))
    assert a.dtype == np.float32 and np.abs(a - b).max() <= 1e-4
    few = {"input_ids": np.array([[5, 6, 7]])}
    a, b = (np.asarray(model(**few).logits) for model in (narrow, wide))
    assert np.abs(a - b).max() <= 1e-4
    a, b = (model.generate(**inputs, max_new_tokens=6) for model in (narrow, wide))
    np.testing.assert_array_equal(a, b)


def test_the_embedded_model_is_float32_on_a_cpu():
    assert str(o3jax.load("o3-tiny").backbone.text.embed.dtype) == "float32"
