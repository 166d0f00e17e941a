"""`python -m experiments.ground`: makes a tiny random Qwen3-VL with its tokenizer and grounds its tower.

Writes `WORKDIR/model`, a Hugging Face folder that `experiments.sft` starts from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs.checks import check_fields
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.settings import RowShape
from data_pipelines.synthetic.grounding import FramePairs, MakeGroundingRow
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import COLORS, SHAPES, make_scene, scene_seed
from experiments.cli import shell
from experiments.training.parts import train_part
from experiments.training.workdir import Workdir
from o3jax.files import whole_folder
from o3jax.hf.export import export_weights
from o3jax.inputs.image import ImageConfig, VideoConfig
from o3jax.inputs.processor import Processor, load_processor
from o3jax.models.batch import Patches
from o3jax.models.config import Config, TextConfig, VisionConfig
from o3jax.models.layers import Initializer
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.vision import VisionTower
from o3jax.prompts import templates
from o3jax.prompts.tiny_tokenizer import build_tokenizer
from o3jax.prompts.tokenizer import number_tokens
from o3jax.sft.grounding import GroundedTower, grounding_loss, known_counts

_CONFIG = shell.define_config("configs/ground_tiny.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder resumes.", required=True)

_FEATURE_RMS = 0.3


def make_processor(folder: Path, config: ConfigDict) -> Processor:
    """Returns the tiny model's processor: a tokenizer learned on the world's texts, small frames."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(_corpus(config), folder, config.vocab_size)
    side = round(config.row_patches**0.5) * config.vision.get("patch_size", 16)
    pixels = 2 * config.row_frame_pairs * side * side
    video = VideoConfig(
        max_pixels=pixels, fps=config.video_fps, min_frames=2, max_frames=2 * config.row_frame_pairs
    )
    image = ImageConfig(min_pixels=side * side // 4, max_pixels=side * side)
    loaded = load_processor(folder)
    return Processor(loaded.tokenizer, image, video, loaded.chat_template, folder)


def _corpus(config: ConfigDict) -> Iterator[str]:
    for index in range(1000):
        scene = make_scene(scene_seed("train", index, config.seed), config.level, questions=4)
        for sample in make_samples(scene):
            yield f"{sample.question} {templates.response(sample)} <1.2 seconds> system user assistant\n"


def make_model(processor: Processor, config: ConfigDict) -> Qwen3VL:
    """Returns the random model; the embeddings of numbers vary smoothly with their value."""
    token = processor.tokenizer.convert_tokens_to_ids
    text = TextConfig(vocab_size=len(processor.tokenizer), **config.text)
    c = Config(
        text=dataclasses.replace(text, mrope_section=tuple(text.mrope_section)),
        vision=VisionConfig(**config.vision),
        tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    model = Qwen3VL(c, Initializer(jax.random.key(config.seed)))
    embed = np.array(model.text.embed[...])
    for ids, span in zip(number_tokens(processor.tokenizer), (30.0, 1000.0), strict=True):
        rows, values = np.array(list(ids)), np.array(list(ids.values())) / span
        waves = np.geomspace(0.5, 20.0, embed.shape[1] // 4)
        angles = 2 * np.pi * np.outer(values, waves)
        smooth = np.concatenate([np.sin(angles), np.cos(angles)], 1)
        # Half of the width is smooth, with a random rotation per kind of number; half stays random.
        mix = np.random.default_rng(len(rows)).standard_normal((smooth.shape[1], embed.shape[1]))
        smooth = smooth @ mix
        embed[rows] = 0.5 * embed[rows] + 0.02 * smooth / smooth.std()
    model.text.embed[...] = jnp.asarray(embed)
    return model


def rescaled(tower: VisionTower, patches: Patches) -> VisionTower:
    """Returns the tower with its outputs scaled to `_FEATURE_RMS` on a batch.

    The head reads features of any size, and they grow while it is trained. But in the decoder's
    residual stream large features drown what the layers add, so a frame would not learn its time.
    """
    tokens, taps = tower(patches)
    for merger, features in ((tower.merger, tokens[None]), (tower.deepstack_mergers, taps)):
        factor = _FEATURE_RMS / jnp.sqrt(jnp.mean(jnp.square(features), axis=(1, 2, 3)))
        factor = factor if features is taps else factor[0]
        merger.fc2[...] = merger.fc2[...] * factor[..., None, None]
        merger.fc2_bias[...] = merger.fc2_bias[...] * factor[..., None]
    return tower


def main(argv: Sequence[str]) -> None:
    del argv
    shell.use_compilation_cache()
    config = _CONFIG.value
    check_fields(config)
    with Workdir(_WORKDIR.value, config) as workdir:
        _ground(config, workdir)


def _ground(config: ConfigDict, workdir: Workdir) -> None:
    processor = make_processor(workdir.path / "tokenizer", config)
    model = make_model(processor, config)
    init = Initializer(jax.random.key(config.seed + 1))
    grounded = GroundedTower(model.vision, len(COLORS), len(SHAPES), init)

    shape = RowShape(0, config.pairs_per_clip, config.row_patches)
    clips = FramePairs(processor, config.level, config.pairs_per_clip, config.seed + 1)
    rows = MakeGroundingRow(processor, model.config, shape)
    pipeline = Pipeline(clips, [rows], batch_size=config.train_batch_size, seed=config.seed)
    state = train_part(config, workdir, grounded, pipeline, grounding_loss, known_counts)
    if int(state.step) < config.max_steps:
        return
    model.vision = rescaled(state.model.tower, next(pipeline.open()).patches)
    token = processor.tokenizer.convert_tokens_to_ids
    folder = workdir.path / "model"
    end, pad = (token(t) for t in (processor.tokenizer.eos_token, processor.tokenizer.pad_token))
    generation = {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad}
    with whole_folder(folder, replace=True) as temporary:
        export_weights(model, temporary, generation=generation, add_files=processor.save)
    print(f"{sum(a.size for a in jax.tree.leaves(model)):,} parameters: {folder}")


if __name__ == "__main__":
    shell.run(main)
