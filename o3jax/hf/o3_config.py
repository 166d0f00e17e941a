"""What we add to a Hugging Face folder: o3_config.json, and the evidence modules' tensors beside it.

{"prompt_style": ..., "fps": ...,      how the model wants to be asked: `Settings`
 "evidence": {...}}                    `EvidenceConfig`, where there are evidence modules
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from o3jax.errors import UserError
from o3jax.fields import LARGEST, Section, folder_file, folder_json, shown
from o3jax.models.config import BOX_FRAMES, EvidenceConfig
from o3jax.models.temporal_attention import STRATEGIES
from o3jax.prompts.clock import CLOCKS
from o3jax.prompts.feedback import FEEDBACK
from o3jax.prompts.templates import STYLES
from o3jax.video import PRESENTED_FPS

O3_CONFIG = "o3_config.json"
EVIDENCE_WEIGHTS = "o3_evidence.safetensors"
_MAY_BE_0 = ("temporal_layers", "intermediate_size")  # no temporal attention; the usual size
# What is not compared with the tensors has limits of its own, far beyond what makes sense.
_MOST = {"fps": 1000, "dense_fps": 1000, "max_rate": 500, "dense_pixels": 2**20, "box_step": 1000}
_MOST |= {"clip_s": 86400}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model wants to be asked; o3_config.json in its folder, defaults where there is none."""

    prompt_style: str = "open_o3"
    fps: float = PRESENTED_FPS  # frames per second that frame numbers count
    box_step: int = 1  # coordinates that it reads are multiples of this in 0-1000
    clip_s: float = 60.0  # seconds of a long video that it is asked about at a time
    whole_s: float = 120.0  # seconds: longer videos are searched, if there are evidence modules
    clock: str = "video"  # whose seconds it reads of what a search found, see `o3jax.prompts.clock`
    exact_names: bool = False  # it has one name for each thing: another one is another thing (`search_on`)


def read_settings(folder: Path) -> Settings:
    """Returns how the model of a folder wants to be asked.

    Raises:
        UserError: if o3_config.json is no JSON object, or a field is unknown or malformed.
    """
    section = _open(folder)
    settings = _read(Settings, section, ("evidence",))
    if settings.prompt_style not in STYLES:
        raise section.bad(
            "prompt_style", f"is {shown(settings.prompt_style)}; choose one of {', '.join(STYLES)}"
        )
    if settings.clock not in CLOCKS:
        raise section.bad("clock", f"is {shown(settings.clock)}; choose one of {', '.join(CLOCKS)}")
    return settings


def read_evidence(folder: Path) -> EvidenceConfig | None:
    """Returns the configuration of the folder's evidence modules, None where it has none.

    Raises:
        UserError: if o3_config.json is no JSON object, a field of it is malformed, or it names no modules
            although their tensors are there.
    """
    top = _open(folder)
    if not top.has("evidence"):
        if folder_file(folder, EVIDENCE_WEIGHTS, None):
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
        raise section.bad("strategy", f"is {shown(config.strategy)}; choose one of {', '.join(STRATEGIES)}")
    if config.feedback not in FEEDBACK:
        raise section.bad("feedback", f"is {shown(config.feedback)}; choose one of {', '.join(FEEDBACK)}")
    if config.box_frames not in BOX_FRAMES:
        raise section.bad(
            "box_frames", f"is {shown(config.box_frames)}; choose one of {', '.join(BOX_FRAMES)}"
        )
    return config


def o3_config(settings: Settings, evidence: EvidenceConfig | None) -> dict[str, Any]:
    """Returns the content of o3_config.json, with every field of what there is."""
    values = dataclasses.asdict(settings)
    if evidence:
        window = "inf" if math.isinf(evidence.window_s) else evidence.window_s  # JSON has no infinity
        values["evidence"] = dataclasses.asdict(evidence) | {"window_s": window}
    return values


def _open(folder: Path) -> Section:
    return Section(folder_json(folder, O3_CONFIG) or {}, str(folder / O3_CONFIG))


def _read(kind: type, section: Section, others: Collection[str] = ()) -> Any:
    """Returns a dataclass from the fields that are there, each read as its type says."""
    readers = {
        "int": lambda key: section.integer(key, 0 if key in _MAY_BE_0 else 1, _MOST.get(key, LARGEST)),
        "float": lambda key: section.number(key, most=_MOST.get(key, LARGEST), infinite=key == "window_s"),
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
