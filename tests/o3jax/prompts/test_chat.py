"""Chat templates: as transformers renders them, within limits, and every error one sentence."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from o3jax.errors import UserError
from o3jax.hf.folder import ASSETS
from o3jax.inputs.processor import load_processor
from o3jax.prompts import chat, jinja
from tests.support.paths import SHARED

MESSAGES = [
    {"role": "system", "content": "Be short.", "name": None},
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": 'When? 红色 "quoted" <b>'}]},
    {"role": "assistant", "content": "Then.", "reasoning_content": "Hm."},
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def theirs():
    return PreTrainedTokenizerFast.from_pretrained(ASSETS / "o3-tiny")


def ours(template: str, **variables) -> str:
    return chat.render_chat(template, MESSAGES, "F", add_generation_prompt=True, **variables)


def published() -> str:
    path = SHARED / "data/qwen3_vl_tokenizer/chat_template.jinja"
    return path.read_text() if path.is_file() else chat.CHAT_TEMPLATE


@pytest.mark.parametrize(
    "template",
    [
        published(),
        published() + " ",  # not one that is known: rendered in the process
        chat.CHAT_TEMPLATE + " ",
        "{{ messages|tojson(indent=2) }}{{ messages[1]|tojson }}",
        "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{{ n.i }}{% endfor %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
        "{% generation %}a{{ eos_token }}{% endgeneration %}{{ tools is defined }}{{ documents is none }}",
        "{{ dict(a=1)['a'] }}{{ messages[0].name is defined }}",
        "  {% if true %}\n  x\n  {% endif %}\n",
    ],
)
def test_templates_are_rendered_as_transformers_does(theirs, template):
    want = theirs.apply_chat_template(
        MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert ours(template, **theirs.special_tokens_map) == want


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 9 ** (10**9) }}",
        "{{ '%010000000000d' % 1 }}",
        "{{ 'x'.center(99999999999) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
        "{{ range(99999)|map('string')|list|length * lipsum(n=99999)|length }}",
        "{{ messages[9].content }}",
        "{% if",
        "{{ raise_exception('no') }}",
        "{{ ().__class__.__mro__ }}",
        "{% set n = namespace(__init__=1) %}",
        "{{ 1 / 0 }}",
        "{% include '/etc/passwd' %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_templates_that_fail_or_never_end_are_one_sentence(monkeypatch, template):
    monkeypatch.setattr(chat, "_WAIT_SECONDS", 5)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^F: the chat template fails \(.+\): correct or replace it$"):
        ours(template)
    assert time.monotonic() - start < 30
    assert ours("{{ messages|length }}") == "4"  # the next one is rendered all the same


def test_a_models_template_has_the_limits(tmp_path):
    folder = Path(shutil.copytree(ASSETS / "o3-tiny", tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ 'x' * 10**10 }}")
    with pytest.raises(UserError, match=f"{folder}: the chat template fails"):
        load_processor(folder).apply_chat_template(MESSAGES)
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="chat_template.jinja is no UTF-8"):
        load_processor(folder)


def test_known_templates_need_no_process(monkeypatch):
    monkeypatch.setattr(chat, "Child", lambda *_: pytest.fail("a process was started"))
    assert "And now?" in ours(chat.CHAT_TEMPLATE)
    assert jinja.CPU_SECONDS < 10
