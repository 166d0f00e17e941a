"""Hostile model folders, always the same ones, and a function that tries one.

Each must be refused in one sentence, or answer; none may take the memory, the time or a traceback.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.hostility.changes import Case, Change, edit, link, sparse, write
from experiments.hostility.outcome import Outcome, outcome_of
from experiments.hostility.tensors import EVIDENCE, WEIGHTS, adapters, tokenizers, weights

TEMPLATE = "chat_template.jinja"
_PRESENT = (
    *("config.json", "generation_config.json", "o3_config.json", "preprocessor_config.json"),
    *("video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
)
_ABSENT = ("special_tokens_map.json", "processor_config.json", "adapter_config.json")
_VALUES = (0, -1, 10**9, 10**20, 1e308, float("nan"), "x", "x" * 100_000, None, [], {}, True, 0.5, [[]])
_BOMBS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{{ 'x' * 10**10 }}",
    "{{ 9 ** (10**9) }}",
    "{{ '%010000000000d' % 1 }}",
    "{{ 'x'.center(99999999999) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ lipsum(n=1000000) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "{{ x.y.z }}",
    "{{ messages[7].content }}",
    "{% if",
    "{{ raise_exception('no') }}",
    "{{ ().__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ 1 / 0 }}",
    "{% include '/etc/passwd' %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% for i in range(99999)|list %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "{{ messages|map('upper')|sum }}",
    "",
)


def make_good(folder: Path) -> Path:
    """Returns a folder with a very small random model, evidence modules and all; it answers."""
    import jax

    from o3jax.hf.export import export_weights
    from o3jax.hf.folder import ASSETS
    from o3jax.inputs.processor import load_processor
    from o3jax.models.config import Config, EvidenceConfig, TextConfig, VisionConfig
    from o3jax.models.layers import Initializer
    from o3jax.models.qwen3_vl import Qwen3VL

    processor = load_processor(ASSETS / "o3-tiny")
    token = processor.tokenizer.convert_tokens_to_ids
    text = TextConfig(len(processor.tokenizer), 32, 64, 2, 2, 1, 16, 10_000.0, (4, 2, 2))
    vision = VisionConfig(2, 32, 64, 2, 32, (0,), num_position_embeddings=16)
    ids = (token(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start", "vision_end"))
    config = Config(text, vision, True, *ids, EvidenceConfig(16, 2, dense_pixels=64 * 64))
    end, pad = token("<|im_end|>"), token("<|endoftext|>")
    generation = {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad}
    model = Qwen3VL(config, Initializer(jax.random.key(0)))
    export_weights(model, folder, generation=generation, add_files=processor.save)
    return folder


def make(case: Case, good: Path, folder: Path) -> Path:
    """Returns the folder of a case: links to the good folder's files, and what the case changes."""
    folder.mkdir(parents=True)
    for file in good.iterdir():
        os.link(file, folder / file.name)
    case.change(folder)
    return folder


def try_folder(folder: Path) -> Outcome:
    """Returns what becomes of a model folder that is asked about a black video."""
    return outcome_of(lambda: _use(folder))


def _use(folder: Path) -> str:
    import o3jax

    model = o3jax.load(folder)
    processor = model.processor
    content = [{"type": "video"}, {"type": "text", "text": "When?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}])
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    inputs = processor(text=[prompt], videos=[frames], video_metadata=[{"fps": 2.0}])
    processor.decode(model.generate(**inputs, max_new_tokens=2)[0])
    return ""


def cases() -> Iterator[Case]:
    """Yields the hostile folders; each name is there once."""
    for file in (*_PRESENT, *_ABSENT, "chat_template.json", "model.safetensors.index.json"):
        yield from _whole_files(file)
    for file in (TEMPLATE, WEIGHTS, EVIDENCE):
        yield from _no_files(file)
    for file in _PRESENT:
        if file != "tokenizer.json":
            yield from _fields(file)
    yield from _added_fields()
    yield from weights(WEIGHTS, "model.language_model.norm.weight")
    yield from weights(EVIDENCE, "evidence.temporal.norm")
    yield from tokenizers()
    yield from adapters()
    for number, bomb in enumerate(_BOMBS):
        yield Case(f"template/{number}", lambda f, bomb=bomb: write(f / TEMPLATE, bomb.encode()))
    yield Case("template/bytes", lambda f: write(f / TEMPLATE, b"\xff\xfe\x00"))


def _no_files(file: str) -> Iterator[Case]:
    """Yields what is no file although its name is there."""
    made: Mapping[str, Change] = {
        "dangling": lambda f: link(f / file, "nowhere"),
        "circle": lambda f: link(f / file, file),
        "device": lambda f: link(f / file, "/dev/zero"),
        "folder": lambda f: ((f / file).unlink(missing_ok=True), (f / file).mkdir()),
        "pipe": lambda f: ((f / file).unlink(missing_ok=True), os.mkfifo(f / file)),
        "empty": lambda f: write(f / file, b""),
    }
    for name, change in made.items():
        yield Case(f"{file}/{name}", change)


def _whole_files(file: str) -> Iterator[Case]:
    yield from _no_files(file)
    yield Case(f"{file}/large", lambda f: sparse(f / file, 10 * 2**30))
    contents = {
        "no-json": b"{",
        "list": b"[]",
        "number": b"3",
        "null": b"null",
        "bytes": b"\xff\xfe\x00\x01",
        "zeros": b"\0" * 64,
        "nested-lists": b"[" * 100_000,
        "nested-objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "digits": b'{"vocab_size": ' + b"9" * 5000 + b"}",
        "utf-16": '{"a": 1}'.encode("utf-16"),
        "surrogate": b'{"model_type": "\\ud800", "weight_map": {"a": "\\ud800"}}',
    }
    for name, content in contents.items():
        yield Case(f"{file}/{name}", lambda f, content=content: write(f / file, content))
    if file in _PRESENT:
        yield Case(f"{file}/cut", lambda f: write(f / file, (f / file).read_bytes()[:-20]))


def _paths(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from _paths(value, (*prefix, key))


def _set(values: Any, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = copy.deepcopy(value)


def _known_fields(file: str) -> Iterator[tuple[str, ...]]:
    """Yields the fields of a file; those of a published folder, so that the cases need no folder."""
    from o3jax.hf.config import config_to_hf
    from o3jax.hf.o3_config import Settings, o3_config
    from o3jax.inputs.image import ImageConfig, VideoConfig
    from o3jax.models.config import EvidenceConfig
    from o3jax.models.presets import PRESETS

    contents: dict[str, Mapping[str, Any]] = {
        "config.json": config_to_hf(PRESETS["2B"], "float32"),
        "generation_config.json": dict.fromkeys(("do_sample", "eos_token_id", "pad_token_id")),
        "o3_config.json": o3_config(Settings(), EvidenceConfig(16, 2)),
        "preprocessor_config.json": ImageConfig().to_json(),
        "video_preprocessor_config.json": VideoConfig().to_json(),
        "tokenizer_config.json": dict.fromkeys(("eos_token", "pad_token", "bos_token", "padding_side")),
    }
    yield from _paths(contents[file])


def _fields(file: str) -> Iterator[Case]:
    """Yields each field with three of the values, other ones from field to field."""
    for number, path in enumerate(_known_fields(file)):
        for step in range(3):
            value = _VALUES[(3 * number + step * 5) % len(_VALUES)]
            name = f"{file}/{'.'.join(path)}={ascii(value)[:12]}"
            yield Case(
                f"{name}#{step}",
                lambda f, path=path, value=value: edit(f / file, lambda v: _set(v, path, value)),
            )


def _added_fields() -> Iterator[Case]:
    """Yields fields that change what a model says, where they are obeyed."""
    asked = {"num_beams": 4, "no_repeat_ngram_size": 2, "bad_words_ids": [[1]], "suppress_tokens": [1]}
    asked |= {"repetition_penalty": 0, "min_new_tokens": 5, "stop_strings": "x", "temperature": "hot"}
    asked |= {"eos_token_id": 10**6, "pad_token_id": [[1]], "top_p": 7}
    image = {"size": {"height": 64, "width": 64}, "image_std": [0, 0, 0], "image_mean": [1, 2]}
    image |= {"patch_size": 14, "resample": 2, "min_pixels": 2**40}
    video = {"size": image["size"], "num_frames": 8, "do_rescale": False, "max_frames": 1, "fps": [2]}
    text = {
        "chat_template": [{"name": 3}],
        "eos_token": {"content": 5},
        "add_bos_token": True,
        "pad_token": "",
    }
    added = {
        "generation_config.json": asked,
        "preprocessor_config.json": image,
        "video_preprocessor_config.json": video,
        "tokenizer_config.json": text,
        "config.json": {"quantization_config": {"bits": 4}, "eos_token_id": "end"},
    }
    for file, fields in added.items():
        for key, value in fields.items():
            yield Case(
                f"{file}/+{key}",
                lambda f, file=file, key=key, value=value: edit(f / file, lambda v: v.update({key: value})),
            )
