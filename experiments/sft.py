"""`python -m experiments.sft`: supervised fine-tuning, from a Hugging Face folder to a Hugging Face folder.

Reads like a list: model, data, step, loop, export. `WORKDIR/model` is the result.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence

import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from data_pipelines.grounding import FramePairs
from data_pipelines.sft import Clip, FolderClips, MakeRow, RowShape, SyntheticClips, make_dataset
from experiments import cli
from experiments.train_loop import Workdir, micro_batches, open_mesh, train
from o3jax.api import Settings, export_model, model_folder
from o3jax.errors import UserError
from o3jax.hf.config import config_from_hf
from o3jax.hf.weights import load_weights
from o3jax.models.layers import REMAT
from o3jax.prompts.processor import Processor, load_processor
from o3jax.prompts.tokenizer import number_tokens
from o3jax.sft.loss import number_targets, text_loss
from o3jax.sft.state import init_state, learning_rate, make_optimizer, make_train_step
from o3jax.sharding import replicate_scalars, use_mesh

_CONFIG = cli.define_config("configs/sft_tiny.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder resumes.", required=True)


def open_clips(config: ConfigDict, processor: Processor) -> Sequence[Clip]:
    """Returns the clips that `config.data_path` names.

    `synthetic:LEVEL` renders clips with questions, `captions:LEVEL` frame pairs with captions (as
    many pairs as a row has groups); anything else is a dataset folder.
    """
    kind, _, level = config.data_path.partition(":")
    if kind in ("synthetic", "captions"):
        if not level.isdigit():
            raise UserError(f"config.data_path is '{config.data_path}'; write {kind}:1, :2 or :3")
        if kind == "captions":
            return FramePairs(processor, int(level), config.row_groups, config.seed)
        return SyntheticClips(config.split, int(level), config.questions_per_row, config.seed)
    return FolderClips(config.data_path, config.questions_per_row)


def main(argv: Sequence[str]) -> None:
    del argv
    cli.use_compilation_cache()
    config = _CONFIG.value
    for field, choices in (("remat", REMAT), ("compute_dtype", ("float32", "bfloat16"))):
        if config[field] not in choices:
            raise UserError(f"config.{field} is '{config[field]}'; choose one of {', '.join(choices)}")
    workdir = Workdir(_WORKDIR.value, config)

    source = model_folder(config.model_name_or_path)
    processor = load_processor(source)
    mesh = open_mesh(config)
    model = load_weights(source, config_from_hf(source), dtype=jnp.float32, mesh=mesh)

    shape = RowShape(config.row_length, config.row_groups, config.row_patches)
    rows = MakeRow(processor, model.config, shape, config.prompt_style, config.box_step)
    clips = open_clips(config, processor)
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = config.per_device_train_batch_size * config.gradient_accumulation_steps * replicas
    # The synthetic world is endless and already in random order.
    shuffle = isinstance(clips, FolderClips)
    dataset = make_dataset(clips, rows, batch_size=batch_size, seed=config.seed, shuffle=shuffle)

    times, integers = number_tokens(processor.tokenizer)
    kinds = ((times, config.soften_times), (integers, config.soften_coordinates))
    soften = config.soften_times or config.soften_coordinates
    targets = number_targets(model.config.text.vocab_size, kinds) if soften else None
    loss = functools.partial(text_loss, soft_targets=targets, remat=config.remat)
    schedule = learning_rate(
        config.lr_scheduler_type, config.learning_rate, config.max_steps, config.warmup_steps
    )
    optimizer = make_optimizer(
        schedule,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        b2=config.adam_b2,
        kind=config.optimizer,
    )
    step = make_train_step(loss, optimizer, dtype=jnp.dtype(config.compute_dtype))
    prepare = functools.partial(micro_batches, steps=config.gradient_accumulation_steps, mesh=mesh)
    state = replicate_scalars(init_state(model, optimizer), mesh)
    with use_mesh(mesh):
        state = train(state, step, dataset, prepare, workdir, config)

    folder = workdir.path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    settings = Settings(prompt_style=config.prompt_style)
    export_model(state.model, source, folder, processor, settings)
    print(f"model at step {int(state.step)}: {folder}")


if __name__ == "__main__":
    cli.run(main)
