"""The tokenizer and the chat template of a model folder, read as transformers reads them, but without it:
importing that takes seconds and brings in torch, in every data worker too."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tokenizers
from jaxtyping import Int

from o3jax.errors import UserError
from o3jax.files import read_json


class Tokenizer:
    """Text to token ids and back; callable like a tokenizer of transformers. Made by `load_tokenizer`.

    Attributes:
        backend_tokenizer: what does the work.
        special_tokens: "eos_token", "pad_token" and the like, as far as the folder names them.
        chat_template: Jinja; None where the folder has none.
        padding_side: where shorter rows are filled up.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: dict[str, str],
        chat_template: str | None,
        padding_side: str,
    ) -> None:
        self.backend_tokenizer = backend
        self.special_tokens = special_tokens
        self.chat_template = chat_template
        self.padding_side = padding_side

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Returns {"input_ids": the token ids of one text}."""
        return {"input_ids": self.backend_tokenizer.encode(text).ids}

    def rows(
        self, texts: Sequence[str], padding_side: str
    ) -> tuple[Int[np.ndarray, "B S"], Int[np.ndarray, "B S"]]:
        """Returns the ids of several texts as int64 rows of the same length, and which of them are real."""
        found = [encoded.ids for encoded in self.backend_tokenizer.encode_batch(list(texts))]
        ids = np.full((len(found), max(map(len, found))), self.pad_token_id or 0, np.int64)
        there = np.zeros_like(ids)
        for row, real, mine in zip(ids, there, found, strict=True):
            where = slice(len(mine)) if padding_side == "right" else slice(len(row) - len(mine), None)
            row[where], real[where] = mine, 1
        return ids, there

    def decode(self, ids: Int[np.ndarray, " S"] | Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Returns the text of token ids, spaces exactly as they are."""
        return self.backend_tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Returns the id of a token; None if there is no such token."""
        return self.backend_tokenizer.token_to_id(token)

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every token, added ones included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return self.special_tokens.get("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """The id of the token that fills up; None if the folder names none."""
        pad = self.special_tokens.get("pad_token")
        return None if pad is None else self.convert_tokens_to_ids(pad)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Returns the tokenizer of a local model folder: its tokenizer.json, tokenizer_config.json and template.

    Raises:
        UserError: if tokenizer.json is missing or a file is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has no tokenizer.json; copy the tokenizer files of the model there")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain exceptions
        raise UserError(f"{path} cannot be read ({error}); copy the tokenizer files again") from error
    backend.no_padding()
    backend.no_truncation()
    config = read_json(folder / "tokenizer_config.json", absent={})
    names = read_json(folder / "special_tokens_map.json", absent={}) | config
    special = {
        name: token["content"] if isinstance(token, dict) else token
        for name, token in names.items()
        if name.endswith("_token") and isinstance(token, dict | str)
    }
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens([token for token in special.values() if token not in known])
    side = config.get("padding_side", "right")
    return Tokenizer(backend, special, _chat_template(folder, config), side)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Returns the template; newer folders have it in a file of its own."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    beside = read_json(folder / "chat_template.json", absent={})
    template = config.get("chat_template") or beside.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {one["name"]: one["template"] for one in template}.get("default")
    return template


def render_chat(
    template: str, messages: list[dict[str, Any]], *, add_generation_prompt: bool, **variables: Any
) -> str:
    """Returns the text of chat messages (transformers' dictionaries), as transformers renders a template.

    Args:
        variables: further names that the template may use, such as the special tokens.
    """
    return _compiled(template)(messages=messages, add_generation_prompt=add_generation_prompt, **variables)


@functools.lru_cache
def _compiled(template: str) -> Callable[..., str]:
    # A template is somebody else's code, so it runs in the sandbox.
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template).render


class NumberTokens(NamedTuple):
    """The tokens that are one whole number each: token id -> value."""

    times: dict[int, float]  # with a decimal point
    integers: dict[int, float]


def number_tokens(tokenizer: Tokenizer) -> NumberTokens:
    """Returns the single-token numbers of any tokenizer, times and integers apart (both may be sparse).

    A training loss may soften its target over the neighbours of a number.
    """
    vocabulary = tokenizer.get_vocab()
    times = {i: float(t) for t, i in vocabulary.items() if re.fullmatch(r"[0-9]+\.[0-9]+", t)}
    integers = {i: float(t) for t, i in vocabulary.items() if re.fullmatch(r"[0-9]+", t)}
    return NumberTokens(times, integers)
