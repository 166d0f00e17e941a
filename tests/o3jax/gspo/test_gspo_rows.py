"""Update rows: what is where in `[P; R1..RG]`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from einops import rearrange

from o3jax.errors import UserError
from o3jax.gspo.rows import pack_groups
from o3jax.inputs.collate import collate
from o3jax.models.batch import Features, flatten
from tests.support.batches import assert_equal
from tests.support.groups import GROUP, PROMPTS, ROWS, SHAPE, make_setting
from tests.support.tiny import make_inputs


@pytest.fixture(scope="module")
def setting(tiny):
    return make_setting(tiny("dense"))


def test_a_row_holds_each_prompt_once(setting):
    rows = setting.rows
    of = [sorted({int(p) for p in row[row >= 0]}) for row in rows.sequence[..., 0]]
    assert of == [[0, 2], [1, 3], [4], [], [], [], [], []]
    used = (rows.inputs.text.segment_ids > 0).sum()
    prompts = make_inputs(PROMPTS)["attention_mask"].sum()
    assert used == prompts + sum(len(r) for group in setting.responses for r in group)
    assert (rows.inputs.patches.length > 0).sum() == 3 + 2 + 1 + 2
    for row, slot in np.argwhere(rows.sequence[..., 0] >= 0):
        prompt, sample = rows.sequence[row, slot]
        response = setting.responses[prompt][sample]
        mask, index = rows.response_mask[row, slot], rows.response_index[row, slot]
        assert rows.response_ids[row, slot][mask].tolist() == response and mask.sum() == len(response)
        # All but the first are predicted where the token before stands; all first ones from one position.
        assert rows.inputs.text.input_ids[row, index[mask][1:]].tolist() == response[:-1]
        first = rows.response_index[row][(rows.sequence[row, :, 0] == prompt)][:, 0]
        assert len(set(first)) == 1 and rows.inputs.text.continuation_ids[row, first[0]] == 0
    assert not rows.response_mask[rows.sequence[..., 0] < 0].any()


def test_positions_are_those_behind_a_prompt_of_its_own(setting):
    """Collated as one text, by the code that also makes prompts from a processor's output."""
    rows, plain = setting.rows, setting.plain
    for row, slot in np.argwhere(rows.sequence[..., 0] >= 0):
        prompt, sample = rows.sequence[row, slot]
        mine = (
            rows.inputs.text.segment_ids[row]
            == rows.inputs.text.segment_ids[row, rows.response_index[row, slot, 0]]
        )
        mine &= np.isin(rows.inputs.text.continuation_ids[row], [0, sample + 1])
        other = GROUP * prompt + sample
        valid = plain.text.segment_ids[other] > 0
        np.testing.assert_array_equal(
            rows.inputs.text.input_ids[row, mine], plain.text.input_ids[other, valid]
        )
        np.testing.assert_array_equal(
            rows.inputs.text.positions[row][:, mine], plain.text.positions[other][:, valid]
        )


@pytest.mark.parametrize("repeated", [False, True])
def test_prompts_may_be_padded_on_the_left(setting, repeated):
    right = setting.repeated if repeated else setting.rows
    assert_equal(setting.pack(left=True, repeated=repeated), right)


def test_rows_carry_the_features_of_their_prompts(setting):
    """Each of them tells its prompt, its frame pair and its place there."""
    prompts = collate(make_inputs(PROMPTS), setting.reference.config, length=64, patches=64)
    length = prompts.patches.length
    index = np.indices((*length.shape, 64 // 4), np.float32) + 1
    features = Features(rearrange(index, "k b t p -> b t p k 1"), length)
    carrying = dataclasses.replace(prompts, patches=None, features=features)
    rows = pack_groups(carrying, setting.responses, setting.reference.config, SHAPE, rows=ROWS)
    assert rows.inputs.patches is None
    np.testing.assert_array_equal(rows.inputs.features.length, setting.rows.inputs.patches.length)
    arrays, others = flatten(rows), flatten(setting.rows)
    assert {name.split(".")[1] for name in arrays.keys() ^ others.keys()} == {"features", "patches"}
    for name in arrays.keys() & others.keys():
        np.testing.assert_array_equal(arrays[name], others[name], err_msg=name)
    flat = rearrange(rows.inputs.features.values, "b t p k 1 -> b (t p) k") - 1
    for row, slot in np.argwhere(rows.response_index[..., 0] > 0):
        prompt, last = rows.sequence[row, slot, 0], rows.response_index[row, slot, 0]
        mine = rows.inputs.text.segment_ids[row] == rows.inputs.text.segment_ids[row, last]
        there, here = (
            i[i >= 0] for i in (prompts.text.visual_index[prompt], rows.inputs.text.visual_index[row, mine])
        )
        wanted = np.stack([np.full(len(there), prompt), *np.divmod(there, 64 // 4)], -1)
        np.testing.assert_array_equal(flat[row, here], wanted)


def test_values_go_where_their_sequences_are(setting):
    values = np.arange(1, 16).reshape(5, GROUP)
    placed = setting.rows.by_sequence(values)
    assert sorted(placed[placed > 0]) == list(range(1, 16))
    for row, slot in np.argwhere(placed > 0):
        assert placed[row, slot] == values[tuple(setting.rows.sequence[row, slot])]
    assert setting.rows.by_sequence(setting.mask).dtype == bool


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 50}, "prompt 0 with its responses has 52 tokens, more than the 50 .*raise `length`"),
        ({"frame_pairs": 2}, "prompt 0 with its responses has 3 frame pairs, more than the 2"),
        ({"patches": 40}, "prompt 1 with its responses has 48 patches in a frame pair, more than the 40"),
        ({"sequences": 2}, "prompt 0 with its responses has 3 responses, more than the 2"),
        ({"response": 7}, "prompt 0 with its responses has 8 tokens in a response, more than the 7"),
    ],
)
def test_what_does_not_fit_is_refused(setting, change, message):
    prompts = collate(make_inputs(PROMPTS), setting.reference.config)
    shape = dataclasses.replace(SHAPE, **change)
    with pytest.raises(UserError, match=message):
        pack_groups(prompts, setting.responses, setting.reference.config, shape)


def test_other_mistakes_are_named(setting):
    with pytest.raises(UserError, match="5 groups need 3 update rows, more than the 2 that were asked for"):
        setting.pack(rows=2)
    prompts, config = collate(make_inputs(PROMPTS), setting.reference.config), setting.reference.config
    with pytest.raises(UserError, match="there are 5 prompts but responses to 1"):
        pack_groups(prompts, setting.responses[:1], config, SHAPE)
