"""`python -m experiments.match`: trains a model's question matching at the rates of coarse to fine.

Writes `WORKDIR/model`: the model with another question encoder, all else as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from absl import flags

from configs.checks import check_fields
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.synthetic.matching import MakeMatchingRow
from experiments.cli import shell
from experiments.training.parts import train_part
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.files import whole_folder
from o3jax.hf.config import config_from_hf
from o3jax.hf.folder import export_model, model_folder
from o3jax.hf.o3_config import read_settings
from o3jax.hf.weights import load_weights
from o3jax.inputs.processor import load_processor
from o3jax.sft.matching import FROZEN, Matching, matching_counts, matching_loss

_CONFIG = shell.define_config("configs/match_tiny.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder resumes.", required=True)


def main(argv: Sequence[str]) -> None:
    del argv
    shell.use_compilation_cache()
    config = _CONFIG.value
    check_fields(config)
    source = model_folder(config.model_name_or_path)
    architecture = config_from_hf(source)
    if architecture.evidence is None:
        raise UserError(f"{source} has no evidence modules: train them with experiments.sft first")
    with Workdir(_WORKDIR.value, config) as workdir:
        processor = load_processor(source)
        matching = Matching(load_weights(source, architecture, dtype=jnp.float32))
        rows = MakeMatchingRow(
            *(processor, architecture, config.row_frame_pairs, config.row_patches),
            *(config.questions_per_row, config.question_length, config.seed),
        )
        pipeline = Pipeline(range(1 << 31), [rows], batch_size=config.train_batch_size, seed=config.seed)
        loss = functools.partial(matching_loss, keep=config.keep)
        state = train_part(config, workdir, matching, pipeline, loss, matching_counts, FROZEN)
        with whole_folder(workdir.path / "model", replace=True) as temporary:
            export_model(state.model.trained(), source, temporary, processor, read_settings(source))
        print(f"model at step {int(state.step)}: {workdir.path / 'model'}")


if __name__ == "__main__":
    shell.run(main)
