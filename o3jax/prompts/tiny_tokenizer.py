"""The tiny model's own tokenizer: a byte-level BPE in which every usual time and coordinate is one token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from o3jax.errors import UserError

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Not special: they are part of the text and stay when special tokens are skipped in decoding.
TAG_TOKENS = tuple(
    f"<{slash}{name}>" for name in ("think", "answer", "obj", "box", "t") for slash in ("", "/")
)
# Every time below 30 s in tenths, and 0..1000 in tens: the numbers of the 10-step coordinate grid.
NUMBERS = (*(f"{i // 10}.{i % 10}" for i in range(300)), *(str(i) for i in range(0, 1001, 10)))

# As Qwen's, but numbers are one piece (with one decimal, or up to four digits) and so is the space
# before them: otherwise every number would need a second token with a leading space. Chinese
# characters are one piece each: words have no spaces, and merges over whole sentences would tie a
# colour to the shape that follows it.
_NUMBER_PIECE = r"[0-9]+\.[0-9]|[0-9]{1,4}"
_WORD_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{Han}|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The visible format of Qwen3-VL's template, without tools and picture numbering.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- else -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def build_tokenizer(corpus: Iterable[str], folder: str | Path, vocab_size: int = 1280) -> Path:
    """Returns the folder, with tokenizer.json, tokenizer_config.json and chat_template.jinja in it.

    Ids: bytes first, then merges learned on the corpus without its numbers and tags, then `NUMBERS`,
    then tags, then special tokens. The vocabulary is smaller than `vocab_size` where the corpus
    offers no more merges.

    Raises:
        UserError: if `vocab_size` has no room for the fixed tokens.
    """
    # A single digit is a byte, and so there already.
    fixed = sum(len(number) > 1 for number in NUMBERS) + len(TAG_TOKENS) + len(SPECIAL_TOKENS)
    if vocab_size < 256 + fixed:
        raise UserError(f"vocab_size {vocab_size} is too small: bytes, numbers and tags need {256 + fixed}")
    vocabulary, merges = _learn_merges(corpus, vocab_size - fixed)
    for number in NUMBERS:
        vocabulary.setdefault(number, len(vocabulary))

    # ignore_merges: a piece that is in the vocabulary is that token, so numbers need no merges.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"{_NUMBER_PIECE}|{_WORD_PIECES}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in TAG_TOKENS])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        # The class that takes tokenizer.json as it is; Qwen2Tokenizer would put its own pieces in.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 262144,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def _learn_merges(corpus: Iterable[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns (vocabulary, merges) of a byte-level BPE of at most `size` tokens on the corpus's words."""
    learner = Tokenizer(models.BPE())
    left_out = "|".join([*map(re.escape, TAG_TOKENS + SPECIAL_TOKENS), "[0-9]+"])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(left_out), behavior="removed"),
            pre_tokenizers.Split(Regex(_WORD_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
