"""Targets of the grounding warm-up against counting the points of a fine grid, and the tower's tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.rows.clips import Clip
from data_pipelines.rows.settings import RowShape
from data_pipelines.synthetic.clips import SceneSource
from data_pipelines.synthetic.grounding import FramePairs, MakeGroundingRow, token_targets
from data_pipelines.synthetic.scenes import COLORS, SHAPES, make_scene
from o3jax.hf import config_from_hf
from o3jax.inputs.processor import load_processor
from o3jax.prompts import coords, grammar
from tests.support.clips import sampled

FINE = 240  # points along each side of the frame


def shares(scene, pair, rows, columns):
    """Returns for each cell and object (or None) the share that is covered, by counting points."""
    centre = (np.arange(FINE) + 0.5) / FINE
    found = np.zeros((rows, columns, len(scene.objects)))
    for number, thing in enumerate(scene.objects):
        shown = [box for box in map(thing.box, pair) if box is not None]
        if not shown:
            continue
        x1, y1, x2, y2 = np.mean(shown, axis=0)
        inside = ((centre >= y1) & (centre < y2))[:, None] & ((centre >= x1) & (centre < x2))
        for row in range(rows):
            for column in range(columns):
                high, wide = FINE // rows, FINE // columns
                cell = inside[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                found[row, column, number] = cell.sum() / min(cell.size, inside.sum())
    return found


@pytest.mark.parametrize("seed", range(4))
def test_targets_equal_counting(seed):
    scene, rows, columns = make_scene(seed), 4, 6
    times = np.array([0.0, 0.52, 1.6, 1.64, 2.4, 2.9, 3.3, 4.0, 4.6, 5.96])
    targets = token_targets(scene, times, (rows, columns))
    got = {key: value.reshape(5, rows, columns, -1) for key, value in targets.items()}
    checked = 0
    for group in range(5):
        pair = times[2 * group : 2 * group + 2]
        found = shares(scene, pair, rows, columns)
        for row in range(rows):
            for column in range(columns):
                share, at = found[row, column], (group, row, column)
                best = share.max()
                if min(abs(best - 0.25), abs(best - 0.05)) < 0.03:  # too close for the grid to tell
                    continue
                assert got["object"][at] == (1 if best > 0.25 else 0 if best < 0.05 else -1), at
                if best < 0.25 or (len(share) > 1 and np.sort(share)[-2] > best - 0.03):
                    continue
                thing = scene.objects[int(share.argmax())]
                boxes = [thing.box(t) for t in pair]
                assert got["present"][at].tolist() == [float(box is not None) for box in boxes]
                shown = np.mean([box for box in boxes if box is not None], axis=0)
                np.testing.assert_allclose(got["box"][at], shown, rtol=1e-6)
                assert list(COLORS)[got["color"][at][0]] == thing.color
                assert SHAPES[got["shape"][at][0]] == thing.shape
                checked += 1
    assert checked > 4


def test_targets_belong_to_the_tokens_that_show_the_object(video_model):
    """The patches of covered tokens change when the objects are taken out of the scene, others do not."""
    processor, config = load_processor(video_model), config_from_hf(video_model)
    scene = make_scene(5)
    make_row = MakeGroundingRow(processor, config, RowShape(0, 2, 16))
    row, empty = (
        make_row.map(Clip((), SceneSource(world), (0, 2)))
        for world in (scene, dataclasses.replace(scene, objects=()))
    )
    unit = config.vision.merge_unit
    assert row.object.shape == (2 * 16 // unit,) and row.box.shape == (2 * 16 // unit, 4)
    tokens = [r.patches.values.astype(float).reshape(len(row.object), -1) for r in (row, empty)]
    change = np.abs(tokens[0] - tokens[1]).mean(-1)
    covered = row.object == 1
    assert covered.any() and change[covered].min() > 2 * change[row.object == 0].max()
    assert not (empty.object != 0).any()


@pytest.mark.parametrize(("index", "language"), [(4, "en"), (9, "zh")])
def test_a_caption_names_what_each_pair_shows(video_model, index, language):
    processor = load_processor(video_model)
    clip = FramePairs(processor, level=1, pairs=2, seed=0)[index]
    (sample,), scene = clip.samples, clip.source.scene
    _, metadata = sampled(clip, processor)
    claims = list(grammar.parse(sample.answer, coords.NORMALISED).claims)
    assert sample.language == language and len(claims) > 1
    for pair in (metadata["frames_indices"] / metadata["fps"]).reshape(2, 2):
        found = []
        for thing in scene.objects:
            boxes = [box for time in pair if (box := thing.box(time)) is not None]
            if boxes:
                found.append((boxes[0][0], thing.name(language), np.mean(boxes, axis=0)))
        for _, name, box in sorted(found, key=lambda item: item[0]):
            claim = claims.pop(0)
            assert claim.object == name and claim.time_s == pytest.approx(pair.mean(), abs=0.05)
            np.testing.assert_allclose(claim.boxes[0], box, atol=5e-4)
    assert not claims
