"""config.json of a Qwen3-VL folder <-> `o3jax.models.config.Config`.

Two dialects are read: the one of the published checkpoints (transformers 4.57) and the one that
transformers 5 writes. Both classes have defaults that are not the published values, so a number that
is missing here is an error, never a default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from o3jax.errors import UserError
from o3jax.fields import Section, folder_file, folder_json, shown
from o3jax.hf.o3_config import read_evidence
from o3jax.models.config import Config, TextConfig, VisionConfig

ADAPTER_CONFIG = "adapter_config.json"
_SPECIAL_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
# Whole numbers that are called the same on both sides.
_TEXT_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TEXT_SIZES += ("num_key_value_heads", "head_dim", "max_position_embeddings")
_EXPERT_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
_TAPS = "deepstack_visual_indexes"
MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")


def config_from_hf(source: str | Path | Mapping[str, Any]) -> Config:
    """Returns the configuration of a Qwen3-VL folder, or of the dictionary that its config.json holds.

    A folder's evidence modules are part of it: see o3jax.hf.o3_config.

    Raises:
        UserError: if the folder is not a Qwen3-VL, a field is missing or malformed, or a value asks
            for something that this port does not compute. The sentence names file and field.
    """
    if isinstance(source, Mapping):
        values, file, evidence = source, "config.json", None
    else:
        folder = Path(source)
        values, file = _read_config(folder), str(folder / "config.json")
        evidence = read_evidence(folder)
    top = Section(values, file)
    model_type = values.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"{file}: model_type is {shown(model_type)}, so this is not a Qwen3-VL model; "
            f"pass a folder whose model_type is {' or '.join(MODEL_TYPES)}"
        )
    top.off("quantization_config", {})
    vision = _vision_config(top.section("vision_config"))
    text = _text_config(top.section("text_config"), moe=model_type == "qwen3_vl_moe")
    if vision.out_hidden_size != text.hidden_size:
        raise top.bad(
            "vision_config.out_hidden_size",
            f"is {vision.out_hidden_size} but text_config.hidden_size is {text.hidden_size}; they must agree",
        )
    if len(vision.deepstack_visual_indexes) > text.num_hidden_layers:
        raise top.bad(
            "vision_config.deepstack_visual_indexes",
            f"names more taps than the {text.num_hidden_layers} text layers that receive them",
        )
    config = Config(
        text=text,
        vision=vision,
        # The copy inside text_config says true by default in transformers 5, whatever the model is.
        tie_word_embeddings=top.boolean("tie_word_embeddings"),
        **{name: top.integer(name, 0) for name in _SPECIAL_IDS},
        evidence=evidence,
    )
    for key in _SPECIAL_IDS:
        if getattr(config, key) >= text.vocab_size:
            raise top.bad(key, f"is {getattr(config, key)}, but the embedding has {text.vocab_size} rows")
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: pass a Qwen3-VL model folder")
    values = folder_json(folder, "config.json")
    if values is not None:
        return values
    if folder_file(folder, ADAPTER_CONFIG):
        raise UserError(f"{folder} holds an adapter alone: copy the base model's files beside it")
    raise UserError(f"{folder} has no config.json: pass a Qwen3-VL model folder")


def _vision_config(v: Section) -> VisionConfig:
    v.only("hidden_act", "gelu_pytorch_tanh")
    if v.has("rope_parameters"):
        rope = v.section("rope_parameters")
        rope.off("rope_theta", 10000)
        rope.off("partial_rotary_factor", 1)
    sizes = [field.name for field in dataclasses.fields(VisionConfig) if field.name != _TAPS]
    config = VisionConfig(**{name: v.integer(name) for name in sizes}, **{_TAPS: v.integers(_TAPS)})
    taps = config.deepstack_visual_indexes
    if list(taps) != sorted(set(taps)) or any(tap >= config.depth for tap in taps):
        raise v.bad(_TAPS, f"must be increasing layers below depth {config.depth}")
    if config.hidden_size % (4 * config.num_heads):
        raise v.bad("hidden_size", "must be a multiple of 4 x num_heads")
    if config.grid_side**2 != config.num_position_embeddings:
        raise v.bad("num_position_embeddings", "must be a square number")
    return config


def _text_config(t: Section, moe: bool) -> TextConfig:
    t.only("hidden_act", "silu")
    t.off("attention_bias", False)
    t.off("attention_dropout", 0)
    t.off("sliding_window", None)
    t.off("use_sliding_window", False)
    if not (t.has("rope_parameters") or t.has("rope_scaling")):
        raise t.bad("rope_parameters", "is missing, and so is rope_scaling: add one of them")
    rope = t.section("rope_parameters" if t.has("rope_parameters") else "rope_scaling")
    rope.off("rope_type", "default")
    rope.off("type", "default")
    rope.off("mrope_interleaved", True)
    rope.off("partial_rotary_factor", 1)
    experts = {}
    if moe:
        t.off("decoder_sparse_step", 1)
        t.off("mlp_only_layers", [])
        t.off("norm_topk_prob", True)
        t.off("shared_expert_intermediate_size", 0)
        experts = {name: t.integer(name) for name in _EXPERT_SIZES[1:]}
        experts["num_experts"] = t.integer(
            "num_local_experts" if t.has("num_local_experts") else "num_experts"
        )
        if experts["num_experts_per_tok"] > experts["num_experts"]:
            raise t.bad("num_experts_per_tok", f"exceeds the {experts['num_experts']} experts")
    config = TextConfig(
        **{name: t.integer(name) for name in _TEXT_SIZES},
        rope_theta=(rope if rope.has("rope_theta") else t).number("rope_theta"),
        mrope_section=rope.integers("mrope_section"),
        rms_norm_eps=t.number("rms_norm_eps"),
        **experts,
    )
    if config.num_attention_heads % config.num_key_value_heads:
        raise t.bad("num_attention_heads", "must be a multiple of num_key_value_heads")
    if len(config.mrope_section) != 3 or sum(config.mrope_section) != config.head_dim // 2:
        raise rope.bad(
            "mrope_section", f"must be three numbers that sum to head_dim / 2, {config.head_dim // 2}"
        )
    return config


def config_to_hf(config: Config, dtype: Any) -> dict[str, Any]:
    """Returns the config.json of this architecture with weights of `dtype`.

    It is written in the published dialect, which transformers 4.57 and 5 both read.
    """
    t, v = config.text, config.vision
    moe = t.num_experts > 0
    model_type, name = ("qwen3_vl_moe", "Qwen3VLMoe") if moe else ("qwen3_vl", "Qwen3VL")
    text = {name: getattr(t, name) for name in (*_TEXT_SIZES, "rms_norm_eps", "rope_theta")} | {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": jnp.dtype(dtype).name,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": f"{model_type}_text",
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": list(t.mrope_section),
            "rope_type": "default",
        },
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
    }
    if moe:
        text |= {name: getattr(t, name) for name in _EXPERT_SIZES}
        text |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
    vision = dataclasses.asdict(v) | {
        _TAPS: list(v.deepstack_visual_indexes),
        "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "model_type": model_type,
    }
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "dtype": jnp.dtype(dtype).name,
        "model_type": model_type,
        "text_config": text,
        "tie_word_embeddings": config.tie_word_embeddings,
        "vision_config": vision,
        **{name: getattr(config, name) for name in _SPECIAL_IDS},
    }
