"""Chat messages to text by a model's template: in a process with limits, unless the template is known."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from typing import Any

from o3jax.child import Child, Died
from o3jax.errors import UserError
from o3jax.prompts import jinja
from o3jax.prompts.tiny_tokenizer import CHAT_TEMPLATE

# Read by people and found to end soon: Qwen3-VL's as published, and our own.
_KNOWN = {
    "3636d0f0bd6bef02654cdffdc447b79cb2cef8ab02cc75267345946291a489e4",
    hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
}
_WAIT_SECONDS = 60.0  # on a machine so busy that the process does not get its seconds


def render_chat(
    template: str,
    messages: list[dict[str, Any]],
    source: str,
    *,
    add_generation_prompt: bool,
    **variables: Any,
) -> str:
    """Returns the text of chat messages (transformers' dictionaries), as transformers renders a template.

    Args:
        source: whose template it is, for the error's sentence.
        variables: further names that the template may use, such as the special tokens.

    Raises:
        UserError: if the template fails, or needs more than the limits of `o3jax.prompts.jinja`.
    """
    variables["add_generation_prompt"] = add_generation_prompt
    known = hashlib.sha256(template.encode(errors="surrogatepass")).hexdigest() in _KNOWN
    try:
        return (jinja.render if known else _render_with_limits)(template, messages, variables)
    except ValueError as error:
        raise UserError(f"{source}: the chat template fails ({error}): correct or replace it") from None


_lock = threading.Lock()
_kept: list[Child] = []  # the process that renders; another one after a template has ended it, or a fork


def _render_with_limits(template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    """Returns what the process answers; ValueError with the template's error, or the limits that it met."""
    request = {"template": template, "messages": messages, "variables": variables}
    # What is no JSON, such as an image, becomes a word for it: templates never read media.
    line = json.dumps(request, default=lambda value: f"<{type(value).__name__}>").encode()
    with _lock:
        try:
            if not _kept or _kept[0].owner != os.getpid():
                _kept[:] = [Child("o3jax.prompts.jinja:serve", None)]
            _kept[0].send(line)
            kind, said = _kept[0].receive(_WAIT_SECONDS)
        except Died:
            while _kept:
                _kept.pop().end()
            limits = f"{jinja.CPU_SECONDS:g} s or {jinja.MEMORY_BYTES >> 20} MiB"
            raise ValueError(f"it takes more than {limits}") from None
    if kind == "error":
        raise ValueError(said)
    return said
