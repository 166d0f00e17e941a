"""The configs of the package, with their arguments."""

from __future__ import annotations

import importlib

from ml_collections import ConfigDict

from configs.ablation_tiny import CELLS
from tests.support.paths import ROOT

ARGUMENTS = {
    "sft_tiny": ("captions", "questions", "evidence", "feedback", "levels"),
    "ablation_tiny": CELLS,
    "gspo_tiny": ("gspo", "grpo", "one"),
}
CONFIGS = [
    (path.stem, argument)
    for path in sorted((ROOT / "configs").glob("*_*.py"))
    for argument in ARGUMENTS.get(path.stem, (None,))
    if path.stem != "__init__"
]


def load(name: str, argument: str | None = None) -> ConfigDict:
    """Returns the config of a file in `configs`."""
    module = importlib.import_module(f"configs.{name}")
    return module.get_config(*([argument] if argument else []))


# Text and evidence, very small; for a `model` and so many `steps`.
CONFIG = """
from configs import common, sft_tiny

def get_config():
    c = sft_tiny.get_config("evidence")
    c.model_name_or_path = {model!r}
    c.questions_per_row, c.row_length, c.row_frame_pairs, c.row_patches = 1, 192, 3, 16
    c.evidence = common.evidence(
        hidden_size=16, num_heads=2, dense_pixels=32 * 32, window_s=0.5,
        temporal_layers=1, decoder_layers=1, question_layers=1, proposals=1,
    )
    c.evidence_shape = common.evidence_shape(
        frame_pairs=75, patches=4, question_length=40, mentions=2, boxes=1, intervals=1
    )
    c.lr_multipliers.vision = c.lr_multipliers.text = 1.0
    c.per_device_train_batch_size, c.gradient_accumulation_steps = 1, 2
    c.optimizer, c.max_steps, c.warmup_steps, c.learning_rate = "adamw", {steps}, 2, 1e-2
    c.log_every, c.save_every = 1, 4
    return c
"""
