"""Chat templates as transformers renders them; and what a process does that renders them with limits.

A template is somebody else's code. The sandbox keeps it from the machine, but not from looping for ever or
from doubling a string until the memory is full. So it is rendered in a process of its own
(`o3jax.prompts.chat` speaks with it), which starts fast, because it imports nothing but jinja.
"""

from __future__ import annotations

import functools
import json
import resource
import signal
from collections.abc import Callable
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from o3jax.child import limit_memory

CPU_SECONDS = 2.0
MEMORY_BYTES = 2**30
OUTPUT_CHARACTERS = 2**22


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant said; its content is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` without its attributes."""

    def __call__(self, *args: Any, **values: Any) -> dict:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` whose attributes may not begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args  # so that a template may name an attribute `self`
        values = dict(*rest, **values)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace has no attribute {name!r}")


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own escapes what HTML needs
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(template)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a message without what is None, its reasoning under each of the names that templates read."""
    message = {key: value for key, value in message.items() if value is not None}
    named = [message[key] for key in ("reasoning_content", "thinking", "reasoning") if key in message]
    return {"thinking": named[0], **message, "reasoning_content": named[0]} if named else message


def render(template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    """Returns the text that a template makes of messages.

    Raises:
        ValueError: with what is wrong in one line.
    """
    messages = [_with_reasoning(one) for one in messages]
    try:
        return _compiled(template).render(
            **{"tools": None, "documents": None, "messages": messages} | variables
        )
    except Exception as error:  # a template raises whatever Python can raise
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None


def serve(pipe: Connection, hello: None) -> None:
    """Answers requests, JSON each, with ("text", it) or ("error", sentence); more than the limits ends it."""
    limit_memory(resource.RLIMIT_AS, MEMORY_BYTES)
    pipe.send("ready")
    while True:
        request = pipe.recv_bytes()
        most = OUTPUT_CHARACTERS + 16 * len(request)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        try:
            text = render(**json.loads(request))
            answer = ("text", text) if len(text) <= most else ("error", f"it makes {len(text)} characters")
        except ValueError as error:
            answer = ("error", str(error))
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send(answer)
