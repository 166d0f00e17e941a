"""A LoRA adapter beside its base, as the library peft writes it, merged into weights that are read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from o3jax.errors import UserError
from o3jax.fields import Section, folder_file, folder_json
from o3jax.hf.config import ADAPTER_CONFIG
from o3jax.hf.stored import DTYPES, Stored, some, stored_tensors

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Fields without effect on what a finished adapter adds.
_WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core", "runtime_config"),
    *("qalora_group_size", "ensure_weight_tying", "peft_type", "r", "lora_alpha", "use_rslora", "bias"),
    *("init_lora_weights", "rank_pattern"),  # the tensors tell each rank
)
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")  # others have changed the base too


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is added to one weight [out, in]: scale x B [out, r] @ A [r, in]."""

    a: Stored
    b: Stored
    scale: float

    @property
    def tensors(self) -> tuple[Stored, Stored]:
        """Both of them."""
        return self.a, self.b

    def merged(self, weight: np.ndarray) -> np.ndarray:
        """Returns the sum in float32."""
        a, b = (np.asarray(one.view(), np.float32) for one in (self.a, self.b))
        change = b @ a
        change *= self.scale
        change += weight
        return change


def read_adapters(folder: Path, base: dict[str, Stored]) -> dict[str, Adapter]:
    """Returns what a folder's adapter adds to its tensors, by their names; nothing without an adapter.

    Raises:
        UserError: if the files are damaged, do not fit the base, or ask for something else than plain LoRA.
    """
    values = folder_json(folder, ADAPTER_CONFIG)
    if values is None:
        if folder_file(folder, WEIGHTS, None):
            raise UserError(f"{folder} has {WEIGHTS} but no {ADAPTER_CONFIG}: restore or remove one")
        return {}
    section = Section(values, str(folder / ADAPTER_CONFIG))
    section.only("peft_type", "LORA")
    section.off("bias", "none")
    if values.get("init_lora_weights") not in _PLAIN_INITS:
        raise section.bad("init_lora_weights", "is a kind that changes the base too: convert to plain LoRA")
    for key in values:
        if key not in _WITHOUT_EFFECT and values[key]:
            raise section.bad(key, "is set, but only plain LoRA is supported: merge the adapter with peft")
    rank, alpha = section.integer("r"), section.number("lora_alpha")
    path = folder_file(folder, WEIGHTS, None)
    if path is None:
        raise UserError(f"{folder} has {ADAPTER_CONFIG} but no {WEIGHTS}: restore or remove one")
    tensors = stored_tensors([path])
    ranks = bool(values.get("rank_pattern"))
    found = {}
    wrong = [name for name in tensors if not (name.startswith(_PREFIX) and name.endswith((_A, _B)))]
    for name, a in tensors.items():
        if name in wrong or name.endswith(_B):
            continue
        module = name.removeprefix(_PREFIX).removesuffix(_A)
        b, weight = tensors.get(f"{_PREFIX}{module}{_B}"), base.get(f"{module}.weight")
        fits = b is not None and weight is not None and {a.dtype, b.dtype} <= set(DTYPES)
        if (
            not fits
            or len(a.shape) != 2
            or (b.shape, a.shape) != ((weight.shape[0], a.shape[0]), (a.shape[0], *weight.shape[1:]))
        ):
            wrong.append(name)
        elif not ranks and a.shape[0] != rank:
            raise section.bad("r", f"is {rank}, but {name} has rank {a.shape[0]}")
        else:
            size = math.sqrt(a.shape[0]) if values.get("use_rslora") else a.shape[0]
            found[f"{module}.weight"] = Adapter(a, b, alpha / size)
    alone = {f"{name.removesuffix(_B)}{_A}" for name in tensors if name.endswith(_B)} - set(tensors)
    if wrong or alone or not found:
        names = some(sorted({*wrong, *alone}), 3) or "none"
        raise UserError(f"the tensors in {path} do not fit the base beside it: {names}; restore the adapter")
    return found
