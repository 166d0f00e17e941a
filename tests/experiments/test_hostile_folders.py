"""Hostile model folders: there are many, each is another, and a sample of them is refused in one sentence."""

from __future__ import annotations

import pytest

from experiments.hostility.folders import cases, make, make_good, try_folder

CASES = {case.name: case for case in cases()}
SAMPLE = (
    *("config.json/pipe", "config.json/nested-lists", "config.json/text_config.hidden_size=True#2"),
    *("generation_config.json/large", "o3_config.json/zeros", "preprocessor_config.json/+size"),
    *("tokenizer.json/id-beyond", "model.safetensors/header-long-name", "adapter/use_dora"),
    *("o3_evidence.safetensors/tensors-nan-0", "index/'/etc/passwd'", "template/12"),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_good(tmp_path_factory.mktemp("hostile") / "good")


def test_there_are_many_and_always_the_same():
    assert len(CASES) == len(list(cases())) >= 350
    assert [case.name for case in cases()] == list(CASES)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_hostile_folder_is_refused_in_one_sentence(good, tmp_path, name):
    before = {file.name: file.read_bytes() for file in good.iterdir()}
    outcome = try_folder(make(CASES[name], good, tmp_path / "case"))
    assert outcome.status == "refused", outcome
    assert {file.name: file.read_bytes() for file in good.iterdir()} == before
