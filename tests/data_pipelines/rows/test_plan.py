"""What a run's order of rows depends on: kept where it is costly, compared where it must not change."""

from __future__ import annotations

import copy
import dataclasses

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.rows.supervised import MakeRow
from experiments.data.clips import fit_clips, plan
from experiments.training.loop import Feed, RunLength, train
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.hf import config_from_hf
from o3jax.inputs.processor import load_processor
from o3jax.train.state import TrainState
from tests.support.streams import Named
from tests.support.tiny import EVIDENCE, film

ROW = RowShape(640, 6, 16, clips=2)
SHAPE = EvidenceShape(
    frame_pairs=160, patches=16, questions=3, question_length=64, mentions=4, boxes=2, intervals=2
)


@pytest.fixture(scope="module")
def rows(video_model):
    config = dataclasses.replace(config_from_hf(video_model), evidence=EVIDENCE)
    return MakeRow(load_processor(video_model), config, ROW, evidence=SHAPE)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return film(tmp_path_factory.mktemp("films"), 3)


def trained(folder, data_fingerprint: dict, stop: int) -> None:
    """Runs steps that do nothing, on rows of which only the facts count."""
    c = ConfigDict({"max_steps": 8, "log_every": 1, "save_every": 8, "stop_at_step": stop})

    def step(state, batch):
        return dataclasses.replace(state, step=state.step + 1), {"loss": jnp.float32(0)}

    state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(2)}, {})
    pipeline = Pipeline([(0, 1, 2)] * 9, [Named()], batch_size=1, seed=0, data_fingerprint=data_fingerprint)
    train(state, step, Feed(pipeline), Workdir(folder, c), RunLength.of(c, c.max_steps))


@pytest.mark.parametrize(
    ("changed", "fields", "shape"),
    [("seed", {"seed": 1}, {}), ("rows", {}, {"length": 600}), ("rows", {"mixture": {"*": 2.0}}, {})],
)
def test_another_seed_row_shape_or_mixture_is_refused(rows, films, tmp_path, changed, fields, shape):
    """The facts are those of the plan, so resuming with another plan says why it cannot."""

    def run(stop, fields, shape):
        c = ConfigDict(
            {"seed": 0, "data_path": "films", "mixture": {}, "num_train_epochs": 2.0, "max_steps": 0}
            | {"max_rejected_share": 0.0}
        )
        c.update(fields)
        changed = dataclasses.replace(rows, shape=dataclasses.replace(ROW, **shape))
        trained(tmp_path, plan(c, films, changed, 1)[1], stop)

    run(2, {}, {})
    run(3, {}, {})
    with pytest.raises(UserError, match=f"was trained with {changed} .*, which now is .*--workdir"):
        run(4, fields, shape)


def test_what_clips_need_is_kept_until_anything_changes(rows, films, tmp_path, monkeypatch):
    file, asked = tmp_path / "costs.json", []
    whole, cost = fit_clips(films.clips, rows), MakeRow.cost
    monkeypatch.setattr(MakeRow, "cost", lambda self, clip: asked.append(clip) or cost(self, clip))

    def ask(clips=films.clips, rows=rows):
        asked.clear()
        found = fit_clips(clips, rows, file)
        assert found.clips == list(clips) and not found.lost
        assert found.costs == [cost(rows, clip) for clip in clips]
        return len(asked)

    assert (ask(), ask()) == (3, 0) and fit_clips(films.clips, rows, file) == whole
    other = dataclasses.replace(films.clips[0].samples[0], question="And now for something longer?")
    changed = [dataclasses.replace(films.clips[0], samples=(other,)), *films.clips[1:]]
    assert (ask(changed), ask(changed)) == (3, 0)
    assert ask(changed[:2]) == 2
    for again in ({"style": "open_o3"}, {"box_step": 10}, {"shape": dataclasses.replace(ROW, length=600)}):
        assert (ask(), ask(rows=dataclasses.replace(rows, **again))) == (3, 3), again
    template = copy.copy(rows.processor)
    template.chat_template += " "
    assert (ask(), ask(rows=dataclasses.replace(rows, processor=template))) == (3, 3)
    assert ask() == 3
    file.write_bytes(file.read_bytes()[:100])
    assert (ask(), ask()) == (3, 0)
