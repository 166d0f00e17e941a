"""`python -m experiments.sft`: supervised fine-tuning, from a Hugging Face folder to a Hugging Face folder.

Reads like a list: model, data, step, loop, export. `WORKDIR/model` is the result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

from configs.common import given
from data_pipelines.rows.evidence import EvidenceShape, OpenCandidates
from data_pipelines.rows.frames import FramesConfig
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.supervised import MakeRow, RowShape
from experiments.cli import shell
from experiments.data.clips import check_length, open_clips, open_reader, plan
from experiments.training.features import open_features
from experiments.training.hosts import micro_batches, open_mesh
from experiments.training.loop import train
from experiments.training.trainer import check_choices, export, make_trainer
from experiments.training.workdir import Workdir
from o3jax.api import model_folder
from o3jax.errors import UserError
from o3jax.hf.config import config_from_hf
from o3jax.hf.fields import Section
from o3jax.hf.o3_config import evidence_config
from o3jax.hf.weights import load_weights
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import SupervisedBatch
from o3jax.models.config import BOX_FRAMES, EvidenceConfig
from o3jax.models.qwen3_vl import with_evidence
from o3jax.prompts.tokenizer import number_tokens
from o3jax.sft.evidence import EvidenceWeights
from o3jax.sft.joint import joint_counts, joint_loss
from o3jax.sft.text import number_targets, text_loss, token_counts
from o3jax.sharding import parameter_shardings, use_mesh

_CONFIG = shell.define_config("configs/sft_tiny.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder resumes.", required=True)


def choose_rules(have: EvidenceConfig, asked: EvidenceConfig, **rules: str | None) -> EvidenceConfig:
    """Returns the model's modules with what may be chosen for each run: the sharding strategy, and the rules.

    Args:
        rules: fields by name; None is as the model has it.

    Raises:
        UserError: if the config describes other modules than those that the model has.
    """
    chosen = dataclasses.replace(asked, **{name: rules[name] or getattr(have, name) for name in rules})
    for name, value in dataclasses.asdict(have).items():
        if name not in ("strategy", *rules) and getattr(chosen, name) != value:
            raise UserError(
                f"config.evidence.{name} is {getattr(chosen, name)}, but the model has evidence modules with "
                f"{value}: write that, or start from a model without them"
            )
    return chosen


def check_text_alone(have: EvidenceConfig | None, **rules: str | None) -> None:
    """Raises a UserError if a text that is trained alone is to be written with the help of evidence modules.

    Args:
        have: the model's modules, if it has any; they rest.
        rules: as in `choose_rules`.
    """
    for name, rule in rules.items():
        if rule not in (None, "none", "stream"):  # these are what a text does without modules
            raise UserError(
                f"config.{name} is '{rule}', but config.evidence is None, which trains the text alone: "
                f"describe the modules in config.evidence, or leave out config.{name}"
            )
    if have and have.feedback == "prompt":
        raise UserError(
            "the model's text reads its evidence modules' proposals, but config.evidence is None, which "
            "would train it without: take a config that describes the modules, such as configs/sft_tiny.py "
            "(to train the text alone, with config.loss.evidence_weight=0 and "
            "config.lr_multipliers.evidence=0)"
        )


def main(argv: Sequence[str]) -> None:
    del argv
    shell.join_hosts()
    shell.use_compilation_cache()
    config = _CONFIG.value
    check_choices(config, box_frames=(None, *BOX_FRAMES))
    frames = FramesConfig(**config.frames)
    evidence = None
    if config.evidence is not None:
        evidence = evidence_config(Section(config.evidence.to_dict(), "config", "evidence."))
    workdir = Workdir(_WORKDIR.value, config)

    source = model_folder(config.model_name_or_path)
    rules = {name: config[name] for name in ("feedback", "box_frames")}
    if evidence is None:
        check_text_alone(config_from_hf(source).evidence, **rules)
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
        chosen = choose_rules(model.config.evidence, evidence, **rules)
        model.config = dataclasses.replace(model.config, evidence=chosen)

    shape = RowShape(config.row_length, config.row_frame_pairs, config.row_patches, config.clips_per_row)
    targets = EvidenceShape(**config.evidence_shape) if joint else None
    features = open_features(config, model, clips)
    rows = MakeRow(
        processor,
        model.config,
        shape,
        config.prompt_style,
        config.box_step,
        targets,
        full_text=config.full_text_loss,
        frames=frames,
        reader=open_reader(config),
        features=features and features.cache,
    )
    cost = workdir.path / "costs.npz"
    planned, data_fingerprint, config.max_steps = plan(config, clips, rows, batch_size, kept=cost)
    pipeline = Pipeline(
        planned,
        [rows, OpenCandidates()] if joint else [rows],
        batch_size=batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        data_fingerprint=data_fingerprint,
    )

    times, integers = number_tokens(processor.tokenizer)
    kinds = ((times, config.soften_times), (integers, config.soften_coordinates))
    soften = config.soften_times or config.soften_coordinates
    table = number_targets(model.config.text.vocab_size, kinds) if soften else None
    loss = functools.partial(text_loss, soft_targets=table)
    count = token_counts
    if joint:
        weights = dict(config.loss)
        named = {name: weights.pop(name) for name in ("evidence_weight", "candidate_low")}
        loss = functools.partial(joint_loss, soft_targets=table, weights=EvidenceWeights(**weights), **named)
        count = joint_counts
    state, step = make_trainer(config, model, mesh, loss, count, evidence=joint)

    def prepare(batch: SupervisedBatch) -> SupervisedBatch:
        batch = features(batch) if features else batch
        batch = dataclasses.replace(batch, failures=None)
        return micro_batches(batch, steps=config.gradient_accumulation_steps, mesh=mesh)

    with use_mesh(mesh):
        state = train(state, step, pipeline, prepare, workdir, config, note, lambda n: clips[n].samples[0].id)

    export(state, config, source, processor, workdir)


if __name__ == "__main__":
    shell.run(main)
