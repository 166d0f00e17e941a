"""`python -m experiments.sft`: supervised fine-tuning, from a Hugging Face folder to a Hugging Face folder.

Reads like a list: model, data, step, loop, export. `WORKDIR/model` is the result.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from configs.common import given
from data_pipelines.evidence import EvidenceShape, OpenCandidates
from data_pipelines.frames import FramesConfig
from data_pipelines.grounding import FramePairs
from data_pipelines.packing import PlannedRows, check_fit, fingerprint, padding, plan_rows
from data_pipelines.pipeline import Pipeline
from data_pipelines.sft import Clip, FolderClips, MakeRow, RowShape, SyntheticClips
from experiments import cli
from experiments.indexing import usable_samples
from experiments.train_loop import Workdir, micro_batches, open_mesh, train
from o3jax.api import Settings, export_model, model_folder
from o3jax.errors import UserError
from o3jax.hf.config import config_from_hf
from o3jax.hf.fields import Section
from o3jax.hf.o3_config import evidence_config
from o3jax.hf.weights import load_weights
from o3jax.models.config import EvidenceConfig
from o3jax.models.layers import REMAT
from o3jax.models.qwen3_vl import with_evidence
from o3jax.prompts.feedback import FEEDBACK
from o3jax.prompts.processor import Processor, load_processor
from o3jax.prompts.tokenizer import number_tokens
from o3jax.sft.evidence import EvidenceWeights
from o3jax.sft.joint import joint_counts, joint_loss
from o3jax.sft.lora import LoRA, adapted_loss
from o3jax.sft.loss import number_targets, text_loss, token_counts
from o3jax.sft.state import init_state, learning_rate, make_optimizer, make_train_step
from o3jax.sharding import parameter_shardings, replicate_scalars, use_mesh

_CONFIG = cli.define_config("configs/sft_tiny.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder resumes.", required=True)


def open_clips(config: ConfigDict, processor: Processor, workdir: Workdir) -> tuple[Sequence[Clip], str]:
    """Returns the clips that `config.data_path` names, and what to note about them on the progress lines.

    `synthetic:LEVEL` renders clips with questions, `captions:LEVEL` frame pairs with captions (as
    many pairs as a row has groups); anything else is a dataset folder, of which the usable samples are
    taken and the others are listed in `WORKDIR/rejected.jsonl`.
    """
    kind, _, level = config.data_path.partition(":")
    if kind in ("synthetic", "captions"):
        if not level.isdigit():
            raise UserError(f"config.data_path is '{config.data_path}'; write {kind}:1, :2 or :3")
        if kind == "captions":
            return FramePairs(processor, int(level), config.row_groups, config.seed), ""
        return SyntheticClips(config.split, int(level), config.questions_per_row, config.seed), ""
    index, note = usable_samples(config.data_path, workdir, config.max_rejected_share)
    return FolderClips(index, config.questions_per_row), note


def check_length(config: ConfigDict, clips: Sequence[Clip]) -> None:
    """Raises a UserError unless the config says how long the run is, in the one way that its data allow."""
    steps, epochs = config.max_steps, config.num_train_epochs
    if (steps > 0) == (epochs > 0):
        raise UserError(
            f"config.max_steps is {steps} and config.num_train_epochs is {epochs:g}: "
            "set exactly one of them, and the other to 0"
        )
    if epochs > 0 and not isinstance(clips, FolderClips):
        raise UserError(
            f"config.num_train_epochs is {epochs:g}, but {config.data_path} has no end: set config.max_steps"
        )


def choose_rules(have: EvidenceConfig, asked: EvidenceConfig, feedback: str | None) -> EvidenceConfig:
    """Returns the model's modules with what may be chosen for each run: the sharding strategy, the feedback.

    Raises:
        UserError: if the config describes other modules than those that the model has.
    """
    chosen = dataclasses.replace(asked, feedback=feedback or have.feedback)
    for name, value in dataclasses.asdict(have).items():
        if name not in ("strategy", "feedback") and getattr(chosen, name) != value:
            raise UserError(
                f"config.evidence.{name} is {getattr(chosen, name)}, but the model has evidence modules with "
                f"{value}: write that, or start from a model without them"
            )
    return chosen


def plan(
    config: ConfigDict, clips: Sequence[Clip], rows: MakeRow, batch_size: int
) -> tuple[Sequence, dict, int]:
    """Returns the rows of the run, the facts that their order depends on, and the number of steps.

    The synthetic world is endless and already in random order: each of its clips is a row.
    """
    facts = {"seed": config.seed, "data": str(config.data_path)}
    if not isinstance(clips, FolderClips):
        return clips, facts, config.max_steps
    needs, room = [rows.needs(clip) for clip in clips.clips], rows.room()
    ids = [clip.samples[0].id for clip in clips.clips]
    check_fit(ids, needs, room)
    sources = [clip.samples[0].source for clip in clips.clips]
    planned = plan_rows(
        needs,
        sources,
        room,
        seed=config.seed,
        mixture=dict(config.mixture),
        epochs=config.num_train_epochs,
        least=config.max_steps * batch_size,
    )
    clips_each = sum(map(len, planned)) / len(planned)
    waste = ", ".join(f"{share:.1%} of the {name}" for name, share in padding(planned, needs, room).items())
    print(f"{len(planned)} rows of {clips_each:.1f} clips; padding is {waste}", flush=True)
    asked = [[sample.id for sample in clip.samples] for clip in clips.clips]
    facts["data"] = fingerprint(asked, [dataclasses.astuple(need) for need in needs])
    facts["rows"] = fingerprint(room.counts(), dict(config.mixture))
    return PlannedRows(clips.clips, planned), facts, config.max_steps or math.ceil(len(planned) / batch_size)


def main(argv: Sequence[str]) -> None:
    del argv
    cli.use_compilation_cache()
    config = _CONFIG.value
    known = {"remat": REMAT, "compute_dtype": ("float32", "bfloat16"), "feedback": (None, *FEEDBACK)}
    for field, choices in known.items():
        if config[field] not in choices:
            raise UserError(
                f"config.{field} is '{config[field]}'; choose one of {', '.join(filter(None, choices))}"
            )
    if config.num_workers < 0:
        raise UserError(
            f"config.num_workers is {config.num_workers}; write how many processes decode, 0 for none"
        )
    frames = FramesConfig(**config.frames)
    evidence = None
    if config.evidence is not None:
        evidence = evidence_config(Section(config.evidence.to_dict(), "config", "evidence."))
    workdir = Workdir(_WORKDIR.value, config)

    source = model_folder(config.model_name_or_path)
    processor = load_processor(source)
    processor.video_config = dataclasses.replace(processor.video_config, **given(config.video))
    clips, note = open_clips(config, processor, workdir)
    mesh = open_mesh(config)
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = config.per_device_train_batch_size * config.gradient_accumulation_steps * replicas
    check_length(config, clips)
    model = load_weights(source, config_from_hf(source), dtype=jnp.float32, mesh=mesh)

    joint = evidence is not None
    if joint and model.evidence is None:
        made = with_evidence(model, evidence, jax.random.key(config.seed))
        model = jax.device_put(made, parameter_shardings(made, mesh))
    if joint:
        chosen = choose_rules(model.config.evidence, evidence, config.feedback)
        model.config = dataclasses.replace(model.config, evidence=chosen)

    shape = RowShape(config.row_length, config.row_groups, config.row_patches, config.clips_per_row)
    targets = EvidenceShape(**config.evidence_shape) if joint else None
    rows = MakeRow(
        processor,
        model.config,
        shape,
        config.prompt_style,
        config.box_step,
        targets,
        full_text=config.full_text_loss,
        frames=frames,
    )
    planned, facts, config.max_steps = plan(config, clips, rows, batch_size)
    pipeline = Pipeline(
        planned,
        [rows, OpenCandidates()] if joint else [rows],
        batch_size=batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
        facts=facts,
    )

    times, integers = number_tokens(processor.tokenizer)
    kinds = ((times, config.soften_times), (integers, config.soften_coordinates))
    soften = config.soften_times or config.soften_coordinates
    table = number_targets(model.config.text.vocab_size, kinds) if soften else None
    loss = functools.partial(text_loss, soft_targets=table, remat=config.remat)
    count = token_counts
    if joint:
        weights = dict(config.loss)
        named = {name: weights.pop(name) for name in ("evidence_weight", "candidate_low")}
        loss = functools.partial(
            joint_loss, soft_targets=table, remat=config.remat, weights=EvidenceWeights(**weights), **named
        )
        count = joint_counts
    schedule = learning_rate(
        config.lr_scheduler_type, config.learning_rate, config.max_steps, config.warmup_steps
    )
    optimizer = make_optimizer(
        schedule,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        b2=config.adam_b2,
        kind=config.optimizer,
        rates=config.rates,
    )
    frozen = [part for part, rate in config.rates.items() if not rate or (part == "evidence" and not joint)]
    if config.lora.rank:
        made = LoRA(model, key=jax.random.key(config.seed), **config.lora)
        model = jax.device_put(made, parameter_shardings(made, mesh))
        loss, frozen = adapted_loss(loss), ["base", *frozen]
    step = make_train_step(loss, optimizer, count, frozen=frozen, dtype=jnp.dtype(config.compute_dtype))
    prepare = functools.partial(micro_batches, steps=config.gradient_accumulation_steps, mesh=mesh)
    state = replicate_scalars(init_state(model, optimizer, frozen), mesh)
    with use_mesh(mesh):
        state = train(state, step, pipeline, prepare, workdir, config, note, lambda n: clips[n].samples[0].id)

    folder = workdir.path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    settings = Settings(prompt_style=config.prompt_style, box_step=config.box_step)
    trained = state.model.merged() if config.lora.rank else state.model
    export_model(trained, source, folder, processor, settings)
    print(f"model at step {int(state.step)}: {folder}")


if __name__ == "__main__":
    cli.run(main)
