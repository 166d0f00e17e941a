"""The published shapes have as many parameters as the published checkpoints."""

import jax
import pytest

from o3jax.models.presets import PRESETS
from o3jax.models.qwen3_vl import abstract_model

# Counted of transformers' models of the published configurations; 2B and 30B-A3B as their pages say, too.
PARAMETERS = {
    "2B": 2_127_532_032,
    "4B": 4_437_815_808,
    "8B": 8_767_123_696,
    "32B": 33_357_390_064,
    "30B-A3B": 31_070_754_032,
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_number_of_parameters(name):
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_model(PRESETS[name]))) == PARAMETERS[name]
