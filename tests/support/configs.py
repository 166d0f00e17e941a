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
