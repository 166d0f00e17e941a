"""Tiny random Qwen3-VLs in torch, the prompts to compare on, and the comparison's other side.

Weights are spread wide on purpose: scales and biases are random too, and the residual streams start
small, so that a wrong activation or epsilon moves the logits well beyond float32 noise.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from data_pipelines.formats.index import Index
from data_pipelines.rows.clips import FolderClips
from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import make_scene
from o3jax.hf import config_from_hf, load_weights
from o3jax.hf.export import export_weights
from o3jax.hf.names import model_leaves
from o3jax.inputs.image import ImageConfig, VideoConfig
from o3jax.inputs.processor import Processor, load_processor
from o3jax.models.batch import Batch
from o3jax.models.config import Config, EvidenceConfig, TextConfig, VisionConfig
from o3jax.models.qwen3_vl import Qwen3VL, abstract_model
from o3jax.prompts import templates
from o3jax.prompts.tiny_tokenizer import build_tokenizer
from o3jax.video import probe
from tests.support.batches import assert_equal

IMAGE, VIDEO, VISION_START, VISION_END = 300, 301, 302, 303
KINDS = ("dense", "tied", "moe")
FUSED = {"xla_cpu_use_fusion_emitters": True}  # compiler options, for what is compared to a rounding

TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5_000_000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
VISION = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0, 2, 3],
    "num_position_embeddings": 64,
    "patch_size": 16,
}

# Evidence modules for `make_video_model`, every part of them at work.
EVIDENCE = EvidenceConfig(
    hidden_size=16,
    num_heads=2,
    dense_pixels=64 * 64,
    temporal_layers=1,
    decoder_layers=1,
    question_layers=1,
    window_s=0.5,
    proposals=2,
)


def torch_model(kind: str, seed: int = 0) -> torch.nn.Module:
    """Returns a transformers model with random weights, float32, in eval mode."""
    moe = kind == "moe"
    config = (Qwen3VLMoeConfig if moe else Qwen3VLConfig)(
        text_config=TEXT | (EXPERTS if moe else {}),
        vision_config=VISION,
        tie_word_embeddings=kind == "tied",
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    model = (Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("bias"):
                p.copy_(0.3 * noise if "patch_embed" not in name else 0.02 * noise)
            elif "norm" in name:
                p.copy_(1 + 0.3 * noise)
            elif "pos_embed" in name:
                p.copy_(0.05 * noise)
            elif "embed_tokens" in name:
                p.copy_((0.35 if kind == "tied" else 0.05) * noise)
            elif "patch_embed" in name:
                p.copy_(0.05 * noise / p[0].numel() ** 0.5)
            elif "lm_head" in name:
                p.copy_(3 * noise / p.shape[-1] ** 0.5)
            else:
                p.copy_(noise / p.shape[-1] ** 0.5)
    return model.eval()


@dataclasses.dataclass
class Reference:
    """A transformers model, the folder that it was saved to, and our model of the same weights."""

    folder: Path
    torch: torch.nn.Module
    config: Config
    ours: Qwen3VL

    @classmethod
    def make(cls, kind: str, folder: Path) -> Reference:
        model = torch_model(kind)
        model.save_pretrained(folder)
        config = config_from_hf(folder)
        return cls(folder, model, config, load_weights(folder, config))

    def run_torch(self, inputs: dict[str, np.ndarray]) -> Any:
        """Returns what transformers returns; the model forgets the last prompt's position offset."""
        self.torch.model.rope_deltas = None
        return self.torch(**{key: torch.from_numpy(value) for key, value in inputs.items()})

    def logits(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Returns transformers' logits."""
        with torch.no_grad():
            return self.run_torch(inputs).logits.numpy()


def our_logits(model: Qwen3VL, batch: Batch) -> np.ndarray:
    """Returns our logits, from a program traced now (so that a patched function is seen)."""
    return np.asarray(jax.jit(lambda model, batch: model(batch))(model, batch))


Row = Sequence[int | tuple[int, int] | tuple[int, int, int]]


def make_inputs(rows: Sequence[Row], *, left: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns what a Qwen3-VL processor would: each row a list of text (how many tokens), images (h, w)
    and videos (t, h, w), grids in patches. Frames of a video are preceded by their timestamp's text."""
    rng = np.random.default_rng(seed)

    def text(count: int) -> list[int]:
        return rng.integers(0, 299, count).tolist()

    def frame(token: int, h: int, w: int) -> list[int]:
        return [VISION_START, *[token] * (h * w // 4), VISION_END]

    ids, images, videos = [], [], []
    for row in rows:
        tokens: list[int] = []
        for part in row:
            if isinstance(part, int):
                tokens += text(part)
            elif len(part) == 2:
                images.append((1, *part))
                tokens += frame(IMAGE, *part)
            else:
                videos.append(part)
                for _ in range(part[0]):
                    tokens += [*text(3), *frame(VIDEO, *part[1:])]
        ids.append(tokens)
    length = max(map(len, ids))
    inputs: dict[str, Any] = {"input_ids": np.zeros((len(ids), length), np.int64)}
    inputs["attention_mask"] = np.zeros_like(inputs["input_ids"])
    for row, tokens in enumerate(ids):
        where = slice(length - len(tokens), None) if left else slice(len(tokens))
        inputs["input_ids"][row, where] = tokens
        inputs["attention_mask"][row, where] = 1
    kinds = (inputs["input_ids"] == IMAGE) + 2 * (inputs["input_ids"] == VIDEO)
    inputs["mm_token_type_ids"] = kinds * inputs["attention_mask"]
    for grids, values, name in (
        (images, "pixel_values", "image_grid_thw"),
        (videos, "pixel_values_videos", "video_grid_thw"),
    ):
        if grids:
            inputs[name] = np.asarray(grids)
            count = int(np.prod(inputs[name], axis=1).sum())
            inputs[values] = rng.uniform(-1, 1, (count, 1536)).astype(np.float32)
    return inputs


def loaded_without_warnings(
    model_class: type, folder: Path, caplog: pytest.LogCaptureFixture
) -> torch.nn.Module:
    """Returns the model that transformers loads of a folder, which it must do without a word."""
    logger = logging.getLogger("transformers")
    propagates, level = logger.propagate, logger.level
    logger.propagate = True
    transformers.logging.set_verbosity_warning()
    try:
        with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, info = model_class.from_pretrained(folder, output_loading_info=True)
    finally:
        logger.propagate = propagates
        logger.setLevel(level)
    assert not caplog.records and not [w for w in caught if "transformers" in str(w.filename)]
    assert not any(info.values()), info
    return model


def assert_same_leaves(one: Qwen3VL, other: Qwen3VL) -> None:
    """Asserts that two models have the same parameters, bit for bit."""
    a, b = model_leaves(one), model_leaves(other)
    assert a.keys() == b.keys()
    for path, leaf in a.items():
        assert leaf.dtype == b[path].dtype, path
        assert np.asarray(leaf).tobytes() == np.asarray(b[path]).tobytes(), path


def to_release_dialect(source: Path, target: Path) -> None:
    """Rewrites a folder that transformers 5 saved as the published checkpoints are written."""
    config = json.loads((source / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    vision.pop("rope_parameters")
    vision["model_type"] = config["model_type"]
    if "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if ".experts." in name:
            tensors[name] = np.ascontiguousarray(tensor.swapaxes(1, 2))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def make_video_model(folder: Path) -> Path:
    """Returns the folder of a random model that reads videos as 3 pairs of 64 x 64 pixels, written by our
    export with a tokenizer of its own; a step of it takes milliseconds."""
    scenes = [make_scene(3 * index, questions=4) for index in range(150)]
    texts = [f"{s.question} {templates.response(s)}\n" for scene in scenes for s in make_samples(scene)]
    loaded = load_processor(build_tokenizer(texts, folder / "tokenizer", 900))
    image = ImageConfig(min_pixels=32 * 32, max_pixels=64 * 64)
    video = VideoConfig(max_pixels=6 * 64 * 64, fps=1.0, min_frames=2, max_frames=6)
    processor = Processor(loaded.tokenizer, image, video, loaded.chat_template, folder / "tokenizer")
    token = processor.tokenizer.convert_tokens_to_ids
    config = Config(
        text=TextConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            rope_theta=10_000.0,
            mrope_section=(4, 2, 2),
        ),
        vision=VisionConfig(
            depth=2,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            out_hidden_size=32,
            deepstack_visual_indexes=(0,),
            num_position_embeddings=16,
        ),
        tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        scale = "norm" in name and "bias" not in name
        return (scale + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)

    model = jax.tree_util.tree_map_with_path(fill, abstract_model(config))
    end, pad = token("<|im_end|>"), token("<|endoftext|>")
    generation = {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad}

    def add_files(target: Path) -> None:
        processor.save(target)
        (target / "o3_config.json").write_text('{"prompt_style": "plain"}')

    export_weights(model, folder / "model", generation=generation, add_files=add_files)
    return folder / "model"


def film(folder: Path, count: int, questions: int = 1) -> FolderClips:
    """Returns clips of the first scenes of the synthetic world, written to `folder`."""
    samples = []
    for number in range(count):
        scene = make_scene(number, questions=questions)
        write_video(scene, folder / f"{number}.mp4")
        asked = [dataclasses.replace(s, video_path=f"{number}.mp4") for s in make_samples(scene)]
        samples += [dataclasses.replace(s, id=f"s{number}-{at}") for at, s in enumerate(asked)]
    media = {s.video_path: probe(folder / s.video_path) for s in samples}
    return FolderClips(Index(folder, samples, [], media), questions)


def same(ones, others):
    """Asserts that batches are the same, bit for bit."""
    for one, other in zip(ones, others, strict=True):
        assert_equal(one, other)
