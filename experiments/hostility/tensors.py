"""Hostile tensors, tokenizers and adapters of a model folder."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from experiments.hostility.changes import Case, Change, edit, write

WEIGHTS = "model.safetensors"
EVIDENCE = "o3_evidence.safetensors"


def _header(change: Callable[[dict], None], file: str) -> Change:
    """Returns what rewrites the header of a safetensors file, whatever that does to it."""

    def apply(folder: Path) -> None:
        content = (folder / file).read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        write(folder / file, struct.pack("<Q", len(text)) + text + content[8 + size :])

    return apply


def _tensors(change: Callable[[dict[str, np.ndarray]], None], file: str) -> Change:
    """Returns what rewrites tensors, the file being sound."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        (folder / file).unlink()
        save_file(tensors, folder / file)

    return apply


def _spoilt(value: float, at: int) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        name = sorted(tensors)[at % len(tensors)]
        spoilt = tensors[name].copy()
        spoilt.flat[spoilt.size // 2] = value
        tensors[name] = spoilt

    return change


def weights(file: str, name: str) -> Iterator[Case]:
    headers: dict[str, Callable[[dict], None]] = {
        "offset-beyond": lambda h: h[name]["data_offsets"].__setitem__(1, 10**12),
        "offset-negative": lambda h: h[name]["data_offsets"].__setitem__(0, -4),
        "offset-text": lambda h: h[name].__setitem__("data_offsets", "x"),
        "shape-huge": lambda h: h[name].__setitem__("shape", [10**18]),
        "shape-overflow": lambda h: h[name].__setitem__("shape", [2**32, 2**32]),
        "shape-empty": lambda h: h[name].__setitem__("shape", []),
        "dtype": lambda h: h[name].__setitem__("dtype", "F99"),
        "no-dtype": lambda h: h[name].pop("dtype"),
        "long-name": lambda h: h.__setitem__("x" * 10**6, h.pop(name)),
        "metadata": lambda h: h.__setitem__("__metadata__", {"a": 3}),
        "overlap": lambda h: h.__setitem__("more", copy.deepcopy(h[name])),
    }
    for what, change in headers.items():
        yield Case(f"{file}/header-{what}", _header(change, file))
    tensors: dict[str, Callable[[dict[str, np.ndarray]], None]] = {
        **{f"nan-{at}": _spoilt(float("nan"), 7 * at) for at in range(5)},
        **{f"infinity-{at}": _spoilt(float("-inf"), 5 * at) for at in range(3)},
        "missing": lambda t: t.pop(name),
        "unknown": lambda t: t.__setitem__("surprise", np.zeros(3, np.float32)),
        "many": lambda t: t.update({f"x{i}": np.zeros(1, np.float32) for i in range(20_000)}),
        "float64": lambda t: t.__setitem__(name, t[name].astype(np.float64)),
        "int8": lambda t: t.__setitem__(name, t[name].astype(np.int8)),
        "bool": lambda t: t.__setitem__(name, t[name] > 0),
        "shape": lambda t: t.__setitem__(name, t[name][:-1].copy()),
        "none": lambda t: t.clear(),
        "empty-tensor": lambda t: t.__setitem__(name, np.zeros((0,), np.float32)),
    }
    for what, change in tensors.items():
        yield Case(f"{file}/tensors-{what}", _tensors(change, file))
    contents: dict[str, Callable[[bytes], bytes]] = {
        "cut-header": lambda c: c[:100],
        "cut-tensors": lambda c: c[:-10],
        "longer": lambda c: c + b"\0" * 64,
        "header-size": lambda c: struct.pack("<Q", 2**62) + c[8:],
        "header-size-100-MB": lambda c: struct.pack("<Q", 10**8) + c[8:],
        "header-nested": lambda c: struct.pack("<Q", 10**5) + b"[" * 10**5,
        "pickle": lambda c: b"\x80\x04.",
    }
    for what, change in contents.items():
        yield Case(
            f"{file}/{what}", lambda f, change=change: write(f / file, change((f / file).read_bytes()))
        )
    yield Case(f"{file}/absent", lambda f: (f / file).unlink())
    yield Case(f"{file}/pickled", lambda f: (f / file).rename(f / "pytorch_model.bin"))


def tokenizers() -> Iterator[Case]:
    def vocabulary(v: Any) -> dict:
        return v["model"]["vocab"]

    split = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    edits: dict[str, Callable[[Any], None]] = {
        "id-beyond": lambda v: vocabulary(v).update({"beyond": 10**6}),
        "id-negative": lambda v: vocabulary(v).update({"a": -1}),
        "id-text": lambda v: vocabulary(v).update({"a": "x"}),
        "no-vocabulary": lambda v: v["model"].pop("vocab"),
        "no-model": lambda v: v.pop("model"),
        "no-special": lambda v: v["added_tokens"].clear(),
        "special-beyond": lambda v: v["added_tokens"][-1].update(id=10**8),
        "merges": lambda v: v["model"].update(merges=[["a", "nothing"]]),
        "type": lambda v: v["model"].update(type="Unheard"),
        "pattern": lambda v: v.update(pre_tokenizer=split),
    }
    for name, change in edits.items():
        yield Case(f"tokenizer.json/{name}", lambda f, c=change: edit(f / "tokenizer.json", c))
    yield Case("tokenizer.json/absent", lambda f: (f / "tokenizer.json").unlink())
    for name in ("../other.safetensors", "/etc/passwd", "a\0b.safetensors", 3, [], "x" * 10**5):
        yield Case(f"index/{ascii(name)[:16]}", lambda f, name=name: _index(f, name))


def _index(folder: Path, name: Any) -> None:
    (folder / WEIGHTS).unlink()
    content = json.dumps({"weight_map": {"lm_head.weight": name}}).encode()
    write(folder / "model.safetensors.index.json", content)


@dataclasses.dataclass(frozen=True)
class _Lora:
    """An adapter of one projection, to be spoilt."""

    module: str = "model.language_model.layers.0.self_attn.q_proj"
    a: tuple[int, ...] = (4, 32)
    b: tuple[int, ...] = (32, 4)
    fill: float = 0.1
    config: tuple[tuple[str, Any], ...] = ()

    def __call__(self, folder: Path) -> None:
        values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
        write(folder / "adapter_config.json", json.dumps(values | dict(self.config)).encode())
        shapes = {"A": self.a, "B": self.b}
        tensors = {
            f"base_model.model.{self.module}.lora_{key}.weight": np.full(shape, self.fill, np.float32)
            for key, shape in shapes.items()
        }
        save_file(tensors, folder / "adapter_model.safetensors")


def adapters() -> Iterator[Case]:
    settings = {"use_dora": True, "bias": "all", "modules_to_save": ["lm_head"], "peft_type": "IA3"}
    settings |= {"r": 10**9, "lora_alpha": "x", "alpha_pattern": {"q_proj": 3}, "fan_in_fan_out": True}
    settings |= {"init_lora_weights": "pissa", "layer_replication": [[0, 1]]}
    changes: dict[str, Change] = {
        "good": _Lora(),
        "module": _Lora(module="model.layers.0.nothing"),
        "shape": _Lora(a=(4, 31)),
        "ranks": _Lora(b=(32, 5)),
        "rank-0": _Lora(a=(0, 32), b=(32, 0)),
        "nan": _Lora(fill=float("nan")),
        "alone": lambda f: (_Lora()(f), (f / "config.json").unlink()),
        "no-tensors": lambda f: (_Lora()(f), (f / "adapter_model.safetensors").unlink()),
        "no-config": lambda f: (_Lora()(f), (f / "adapter_config.json").unlink()),
        "cut": lambda f: (_Lora()(f), os.truncate(f / "adapter_model.safetensors", 100)),
        **{key: _Lora(config=((key, value),)) for key, value in settings.items()},
    }
    for name, change in changes.items():
        yield Case(f"adapter/{name}", change)
