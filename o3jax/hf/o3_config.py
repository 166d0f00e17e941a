"""What we add to a Hugging Face folder: o3_config.json, and the evidence modules' tensors beside it.

{"prompt_style": ..., "fps": ...,      how the model wants to be asked: `Settings`
 "evidence": {...}}                    `EvidenceConfig`, where there are evidence modules
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from o3jax.errors import UserError
from o3jax.files import read_json
from o3jax.hf.fields import Section
from o3jax.models.config import BOX_FRAMES, EvidenceConfig
from o3jax.models.temporal_attention import STRATEGIES
from o3jax.prompts.feedback import FEEDBACK
from o3jax.video import PRESENTED_FPS

O3_CONFIG = "o3_config.json"
EVIDENCE_WEIGHTS = "o3_evidence.safetensors"
_MAY_BE_0 = ("temporal_layers", "intermediate_size")  # no temporal attention; the usual size


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model wants to be asked; o3_config.json in its folder, defaults where there is none."""

    prompt_style: str = "open_o3"
    fps: float = PRESENTED_FPS  # frames per second that frame numbers count
    box_step: int = 1  # coordinates that it reads are multiples of this in 0-1000


def read_settings(folder: Path) -> Settings:
    """Returns how the model of a folder wants to be asked.

    Raises:
        UserError: if o3_config.json is no JSON object, or a field is unknown or malformed.
    """
    return _read(Settings, _open(folder), ("evidence",))


def read_evidence(folder: Path) -> EvidenceConfig | None:
    """Returns the configuration of the folder's evidence modules, None where it has none.

    Raises:
        UserError: if o3_config.json is no JSON object, a field of it is malformed, or it names no modules
            although their tensors are there.
    """
    top = _open(folder)
    if not top.has("evidence"):
        if (folder / EVIDENCE_WEIGHTS).is_file():
            raise UserError(
                f"{folder} has {EVIDENCE_WEIGHTS}, but 'evidence' is missing in its {O3_CONFIG}: "
                f"restore it, or remove {EVIDENCE_WEIGHTS} to read the model without evidence modules"
            )
        return None
    return evidence_config(top.section("evidence"))


def evidence_config(section: Section) -> EvidenceConfig:
    """Returns the configuration of evidence modules, from a model's folder or a training config.

    Raises:
        UserError: if a field is unknown or malformed.
    """
    section.off("inject", False)  # earlier models could feed F into the visual tokens
    config = _read(EvidenceConfig, section, ("inject",))
    if config.hidden_size % (2 * config.num_heads):
        raise section.bad("hidden_size", "must be a positive multiple of 2 x num_heads")
    if config.dense_fps > 2 * config.max_rate:
        raise section.bad(
            "dense_fps",
            f"is {config.dense_fps:g}, more than the {2 * config.max_rate:g} frames per second that a window "
            "is sized for: lower it, or raise max_rate",
        )
    if config.strategy not in STRATEGIES:
        raise section.bad("strategy", f"is {config.strategy!r}; choose one of {', '.join(STRATEGIES)}")
    if config.feedback not in FEEDBACK:
        raise section.bad("feedback", f"is {config.feedback!r}; choose one of {', '.join(FEEDBACK)}")
    if config.box_frames not in BOX_FRAMES:
        raise section.bad("box_frames", f"is {config.box_frames!r}; choose one of {', '.join(BOX_FRAMES)}")
    return config


def o3_config(settings: Settings, evidence: EvidenceConfig | None) -> dict[str, Any]:
    """Returns the content of o3_config.json, with every field of what there is."""
    values = dataclasses.asdict(settings)
    if evidence:
        values["evidence"] = dataclasses.asdict(evidence)
    return values


def _open(folder: Path) -> Section:
    path = folder / O3_CONFIG
    return Section(read_json(path, absent={}), str(path))


def _read(kind: type, section: Section, others: Collection[str] = ()) -> Any:
    """Returns a dataclass from the fields that are there, each read as its type says."""
    readers = {
        "int": lambda key: section.integer(key, least=0 if key in _MAY_BE_0 else 1),
        "float": section.number,
        "str": section.text,
        "bool": section.boolean,
    }
    fields = dataclasses.fields(kind)
    section.nothing_but([*(field.name for field in fields), *others])
    return kind(
        **{
            field.name: readers[field.type](field.name)
            for field in fields
            if field.name in section.values or field.default is dataclasses.MISSING
        }
    )
