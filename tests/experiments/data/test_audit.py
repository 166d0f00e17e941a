"""`experiments.data audit`: rewards against the annotators' order, counted by hand on small sets."""

from __future__ import annotations

import json

import pytest

from data_pipelines.formats import article as article_format
from data_pipelines.formats import stgr
from data_pipelines.formats import tfds as tfds_builders
from data_pipelines.formats.sample import Candidate, KeyFrame, Sample
from experiments.data import audit as data_audit
from o3jax.errors import UserError
from o3jax.grounding import Grounding
from o3jax.prompts import grammar
from o3jax.rewards import article, registry
from o3jax.tasks import SPATIO_TEMPORAL, TEMPORAL

CLAIM = "<obj>lid</obj><box>[0.1,0.2,0.5,0.8]</box>at<t>5.0</t>s"


def sample(*candidates: Candidate, **fields) -> Sample:
    return Sample(
        **{"id": "a", "source": "s", "task": SPATIO_TEMPORAL, "question": "What?", "answer": "The lid."}
        | fields,
        mentions=(
            Grounding("lid", 5.0, boxes=((0.1, 0.2, 0.5, 0.8), (0.0, 0.0, 1.0, 1.0))),
            Grounding("man", 2.0),
        ),
        key_frames=(KeyFrame(125, 5.0, None),),
        duration=6.0,
        candidates=candidates,
    )


def test_a_candidate_is_printed_as_a_model_would():
    text = data_audit.completion(Candidate("The lid.", 1.0, f"The {CLAIM} moves."), "en")
    assert text == (
        "<think>The <obj>lid</obj><box>[100,200,500,800]</box>at<t>5.0</t>s moves.</think>\n"
        "<answer>The lid.</answer>"
    )
    bare = Candidate(
        "x", 1.0, "", (Grounding("lid", 5.0, boxes=((0.1, 0.2, 0.5, 0.8),)), Grounding("man")), ((1.0, 2.0),)
    )
    said = grammar.parse(data_audit.completion(bare, "zh"))
    assert [(claim.object, claim.boxes, claim.time_s) for claim in said.claims] == [
        ("lid", ((0.1, 0.2, 0.5, 0.8),), 5.0),
        ("man", (), None),
    ]
    assert said.intervals == ((1.0, 2.0),) and said.well_formed


def test_a_reward_reads_the_record_and_its_evidence():
    record = data_audit.as_record(sample())
    assert {name: record[name] for name in ("task", "answer", "duration")} == {
        "task": SPATIO_TEMPORAL,
        "answer": "The lid.",
        "duration": 6.0,
    }
    assert record["evidence"] == [
        {"object": "lid", "time": 5.0, "interval": None, "box": [0.1, 0.2, 0.5, 0.8]},
        {"object": "lid", "time": 5.0, "interval": None, "box": [0.0, 0.0, 1.0, 1.0]},
        {"object": "man", "time": 2.0, "interval": None, "box": None},
    ]
    assert record["key_items"]["125"] == {"lid": [[0.1, 0.2, 0.5, 0.8], [0.0, 0.0, 1.0, 1.0]]}


@pytest.mark.parametrize("stretch", [[200, 260], "00:03:20-00:04:20"])
def test_a_claim_anywhere_in_a_stretch_is_in_time(stretch):
    record = {"video_path": "a.mp4", "question": "Where?", "answer": "There.", "bboxes": [None]}
    told = article_format.from_article(record | {"timestamps": [stretch]}, "1")
    own = stgr.from_stgr(json.loads(json.dumps(stgr.to_stgr(told))))
    features = {name: text.encode() for name, text in tfds_builders.encode(told).items()}
    for sample in (told, own, tfds_builders.decode(features)):
        tiers = [
            article.score(f"<think><obj>x</obj>at<t>{time}</t>s</think>", data_audit.as_record(sample))[
                "time"
            ]
            for time in (196.5, 198.0, 200.0, 205.0, 230.0, 260.0, 264.0)
        ]
        assert tiers == [-1.0, 0.5, 1.5, 1.5, 1.5, 1.5, -1.0]


SAMPLES = [
    # Three candidates, one pair of which is not ordered: 2 pairs.
    sample(Candidate("bad", 0.0), Candidate("good", 1.0, CLAIM), Candidate("worse", 0.0, f"<t>{CLAIM}")),
    # The other way round, level, and one alone.
    sample(Candidate("seen", -1.0, CLAIM), Candidate("told", 5.0), id="b"),
    sample(Candidate("one", 1.0, CLAIM), Candidate("two", 2.0, CLAIM), id="c"),
    sample(Candidate("alone", 1.0), id="d"),
]


def test_pairs_are_those_with_different_preferences():
    found = [
        (p.id, p.better, p.worse, p.better_score, p.worse_score) for p in data_audit.pairs(SAMPLES, "format")
    ]
    assert found == [
        ("a", "good", "bad", 1.0, 0.5),
        ("a", "good", "worse", 1.0, 0.0),
        ("b", "told", "seen", 0.5, 1.0),
        ("c", "two", "one", 1.0, 1.0),
    ]


def test_the_table_counts_and_the_disagreements_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(data_audit, "index_folder", lambda path: (SAMPLES, []))
    data_audit.audit("somewhere", "format")
    out = capsys.readouterr().out
    rows = {tuple(part.strip() for part in line.split("│")[1:4]) for line in out.splitlines() if "│" in line}
    assert {("higher", "2", "50.0%"), ("level", "1", "25.0%"), ("lower", "1", "25.0%")} <= rows
    assert "3 records with candidates" in out
    assert out.splitlines()[-1] == "b: the preferred 'told' scores 0.5, 'seen' scores 1"


def test_a_reward_of_terms_and_the_task_are_used(monkeypatch):
    monkeypatch.setitem(registry.REWARDS, "length", lambda text, record: {"total": len(text), "other": 9})
    temporal = sample(Candidate("a longer answer", 1.0), Candidate("short", 0.0), task=TEMPORAL)
    (pair,) = data_audit.pairs([temporal], "length")
    assert pair.better_score - pair.worse_score == len("a longer answer") - len("short")


def test_mistakes_are_named(monkeypatch):
    monkeypatch.setattr(data_audit, "index_folder", lambda path: (SAMPLES, []))
    with pytest.raises(UserError, match="'nice' is unknown; use one of format"):
        data_audit.audit("somewhere", "nice")
    monkeypatch.setattr(data_audit, "index_folder", lambda path: (SAMPLES[3:], []))
    with pytest.raises(
        UserError, match="somewhere has no usable record with candidates of different preference"
    ):
        data_audit.audit("somewhere", "format")
