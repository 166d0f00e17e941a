"""A model's folder as a whole: found by path or name, its files compared with each other, written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from o3jax.errors import UserError
from o3jax.fields import folder_json, shown
from o3jax.hf.export import export_weights
from o3jax.hf.generation import GENERATION_CONFIG, read_generation
from o3jax.hf.o3_config import Settings
from o3jax.inputs.processor import Processor
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Qwen3VL

ASSETS = Path(__file__).parents[1] / "assets"


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a model: the path itself, or an embedded model's by name.

    Raises:
        UserError: if it is neither.
    """
    for folder in (Path(path), ASSETS / path):
        if folder.is_dir():
            return folder
    names = ", ".join(sorted(p.name for p in ASSETS.iterdir() if p.is_dir()))
    raise UserError(f"model '{path}' is not a folder, nor an embedded model ({names}): check the path")


def check_processor(processor: Processor, config: Config) -> None:
    """Refuses a folder whose tokenizer and processor files belong to another model than its config.json.

    Raises:
        UserError: if a token has no row in the embedding, or the two disagree on media tokens or patches.
    """
    tokenizer, rows, folder = processor.tokenizer, config.text.vocab_size, processor.folder
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= rows:
        raise UserError(
            f"{folder}: the tokenizer has {shown(token)} with id {highest}, but the embedding has "
            f"{rows} rows: restore tokenizer.json or config.json"
        )
    ids = {"image_token_id": processor.image_token_id, "video_token_id": processor.video_token_id}
    vision = config.vision
    sizes = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    for what, theirs, ours in (
        *((key, found, getattr(config, key)) for key, found in ids.items()),
        *((key, getattr(processor.image_config, key), size) for key, size in sizes.items()),
        *((f"{key} of videos", getattr(processor.video_config, key), size) for key, size in sizes.items()),
    ):
        if theirs != ours:
            raise UserError(
                f"{folder}: {what} is {theirs} in the tokenizer or processor files, {ours} in config.json: "
                "restore the wrong file"
            )


def export_model(
    backbone: Qwen3VL,
    source: Path,
    folder: Path,
    processor: Processor | None,
    settings: Settings,
    **options: Any,
) -> None:
    """Writes parameters with everything that `load` reads beside them.

    Args:
        options: of `export_weights`.
        source: the folder that the model came from; its generation_config.json is carried over, and
            the tokens that end a text also where only config.json names them.
    """

    asked = read_generation(source)
    named = {"eos_token_id": list(asked.eos_ids), "pad_token_id": asked.pad_id} if asked.eos_ids else {}
    generation = folder_json(source, GENERATION_CONFIG) or {}
    if generation.get("eos_token_id") is None:
        generation = {"do_sample": False} | generation | named
    export_weights(
        backbone,
        folder,
        generation=generation,
        settings=settings,
        add_files=processor.save if processor else None,
        **options,
    )
