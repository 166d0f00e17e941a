"""Tokens and chat texts: special tokens, the published prompts and templates word for word."""

import json
import re
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3jax.errors import UserError
from o3jax.inputs.processor import load_processor
from o3jax.prompts import templates
from o3jax.prompts.tiny_tokenizer import NUMBERS, SPECIAL_TOKENS, TAG_TOKENS, build_tokenizer
from o3jax.prompts.tokenizer import number_tokens
from tests.o3jax.inputs.conftest import CORPUS
from tests.support.paths import SHARED

REAL_TOKENIZER = SHARED / "data" / "qwen3_vl_tokenizer"
PROMPT_REFERENCE = SHARED / "reference" / "open_o3_video.md"


def _user(*kinds: str, text: str = "When does the red circle appear? 红色") -> list[dict]:
    return [{"role": "user", "content": [*({"type": k} for k in kinds), {"type": "text", "text": text}]}]


def test_every_usual_number_is_one_token(small):
    tokenizer = small.tokenizer
    assert len(set(NUMBERS)) == 401
    for number in NUMBERS:
        assert len(tokenizer(number)["input_ids"]) == 1
        assert tokenizer(f"<t>{number}</t> {number}")["input_ids"][1] == tokenizer(number)["input_ids"][0]
        assert len(tokenizer(f" {number}")["input_ids"]) == 2
    times, integers = number_tokens(tokenizer)
    assert sorted(times.values()) == [i / 10 for i in range(300)]
    assert {float(i) for i in range(0, 1001, 10)} <= set(integers.values())
    assert all(tokenizer.decode([i]) == f"{value:.1f}" for i, value in times.items())
    assert all(float(tokenizer.decode([i])) == value for i, value in integers.items())


def test_tags_and_special_tokens_are_one_token(small):
    for token in (*TAG_TOKENS, *SPECIAL_TOKENS):
        [ident] = small.tokenizer(token)["input_ids"]
        kept = "" if token in SPECIAL_TOKENS else token
        assert small.decode([ident]) == kept
    words = small.tokenizer(" red 红色")["input_ids"]
    assert len(words) == 4  # the word with its space, a space, two characters


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.sampled_from(CORPUS))
def test_decode_gives_back_the_text(tiny_text, text):
    assert tiny_text(text) == text


@pytest.fixture(scope="module")
def tiny_text(small):
    return lambda text: small.decode(small.tokenizer(text)["input_ids"], skip_special_tokens=False)


def test_the_same_tokens_inside_a_model_folder(small, tmp_path):
    from tokenizers import Tokenizer

    small.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    text = "".join(CORPUS) + " 12.3, 120 and 7777 or 1234567 <|im_start|> don't  stop\n\n é"
    want = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    assert load_processor(tmp_path).tokenizer(text)["input_ids"] == want == small.tokenizer(text)["input_ids"]


def test_tokenizer_is_reproducible_and_bounded(tiny_folder, tmp_path):
    again = build_tokenizer(iter(CORPUS), tmp_path / "again")
    assert (again / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()
    small = build_tokenizer(CORPUS, tmp_path / "small", vocab_size=700)
    assert len(load_processor(small).tokenizer) == 700
    with pytest.raises(UserError, match="too small"):
        build_tokenizer(CORPUS, tmp_path / "none", vocab_size=600)


# Templates


def test_published_prompts_are_verbatim():
    if not PROMPT_REFERENCE.exists():
        pytest.skip("the reference with the published prompts is not on this machine")
    text = PROMPT_REFERENCE.read_text(encoding="utf-8")
    for title, prompts in (("### 1.7", templates.RL_PROMPTS), ("### 1.8", templates.SFT_PROMPTS)):
        section = text[text.index(title) :].split("\n### ", 1)[0]
        published = dict(re.findall(r"\*\*(.+?)\*\*\n\n```text\n(.+?)\n```", section, re.DOTALL))
        assert prompts == published


def test_chat_text_by_hand(small):
    system = {"role": "system", "content": "Be brief."}
    assert small.apply_chat_template([system, *_user("video", text="When?")]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>When?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tiny_chat_template_prints_what_the_published_one_does(small, tiny_folder):
    if not REAL_TOKENIZER.is_dir():
        pytest.skip("the published chat template is not on this machine")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny_folder)
    published = (REAL_TOKENIZER / "chat_template.jinja").read_text()
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        *_user("image", "video", text="  <t>1</t>\n红色 "),
        {"role": "assistant", "content": "<think>\n</think>"},
        {"role": "user", "content": "plain"},
        {"role": "assistant", "content": [{"type": "text", "text": "\nend"}]},
    ]
    for messages in (chat, chat[1:], chat[:2]):
        for more in (False, True):
            want = theirs.apply_chat_template(
                messages, chat_template=published, tokenize=False, add_generation_prompt=more
            )
            assert small.apply_chat_template(messages, add_generation_prompt=more) == want


def test_messages():
    plain = templates.messages("When?", media="image")
    assert plain == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "When?"}]}]
    system, user = templates.messages("When?", "open_o3_sft", "temporal QA")
    assert system["content"][0]["text"] == templates.SFT_PROMPTS["temporal QA"]
    assert user["content"] == [{"type": "video"}, {"type": "text", "text": "Question: When?"}]
    choice = templates.messages("Q", "open_o3", "temporal QA (MCQ)")
    assert choice[0]["content"][0]["text"].endswith("[ONLY THE LETTER]'.")
    for arguments in (("",), ("Q", "nice"), ("Q", "open_o3", "cooking"), ("Q", "plain", None, "audio")):
        with pytest.raises(UserError):
            templates.messages(*arguments)
    with pytest.raises(UserError, match="has no task"):
        templates.messages("Q", "open_o3_sft", "temporal QA (MCQ)")


def test_response():
    sample = types.SimpleNamespace(
        reasoning="A <obj>cat</obj><box>[0.1234, 0.2, 1.0, 0.555]</box>at<t>1.2</t>s.", answer="It sits."
    )
    reasoning = "A <obj>cat</obj><box>[123,200,1000,555]</box>at<t>1.2</t>s."
    assert templates.response(sample) == f"<think>{reasoning}</think>\n<answer>It sits.</answer>"
    assert "<box>[120,200,1000,560]</box>" in templates.response(sample, box_step=10)
