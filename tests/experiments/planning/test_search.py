"""The search for what fits, over machines whose memory is a formula."""

from __future__ import annotations

import types

import pytest

from configs import gspo_article, sft_article
from experiments.planning.search import changes_to, largest
from o3jax.errors import UserError


@pytest.mark.parametrize(
    ("need", "silent"),
    [
        (lambda v: 12 + v / 1024, False),
        (lambda v: 20 + v / 600, False),
        (lambda v: 12 + (v / 4096) ** 1.3, False),
        (lambda v: 70 + v / 100, False),
        (lambda v: 12 + v / 100, True),
    ],
    ids=["line", "steeper", "curve", "little", "a compiler that does not tell"],
)
def test_the_longest_row_is_found_by_few_plans(need, silent):
    config, tried = sft_article.get_config(), []
    exact = max(v for v in range(0, 200_000, 1024) if need(v) <= 80 or v == 0)

    def plan_of(value):
        tried.append(value)
        memory = {"chip_gib": 80.0, "arguments_gib": 12.0, "peak_gib": need(value)}
        if silent and need(value) > 80:
            memory = {"chip_gib": 80.0, "peak_gib": None}
        return types.SimpleNamespace(fits=need(value) <= 80, memory=memory)

    found = largest("row_length", config, plan_of)
    assert len(tried) <= 5 and found in (*tried, 0) and found % 1024 == 0
    assert 0.85 * exact - 1024 <= found <= exact
    assert tried[0] == config.row_length


def test_longer_rows_have_more_frames():
    config = sft_article.get_config()
    assert changes_to(config, "row_length", 4 * config.row_length) == {
        "row_length": str(4 * config.row_length),
        "row_frame_pairs": str(4 * config.row_frame_pairs),
    }
    with pytest.raises(UserError, match="--search=remat is none of row_length"):
        largest("remat", config, None)
    with pytest.raises(UserError, match="none of this config"):
        largest("per_device_train_batch_size", gspo_article.get_config(), None)
