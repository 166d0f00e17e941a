"""A processor with a small tokenizer, made once."""

from pathlib import Path

import pytest

from o3jax.inputs.processor import load_processor
from o3jax.prompts.tiny_tokenizer import build_tokenizer

CORPUS = [
    "<think>The <obj>red circle</obj><box>[100,200,300,410]</box>at<t>1.2</t>s appears.</think>\n",
    "<answer>From <t>1.2</t>s to <t>4.5</t>s</answer> When does the red or blue square appear? <0.3 seconds>",
    "红色的圆形在什么时候出现?从<t>1.2</t>s到<t>4.5</t>s。蓝色的正方形呢?",
] * 5


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    return build_tokenizer(CORPUS, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def small(tiny_folder):
    return load_processor(tiny_folder)
