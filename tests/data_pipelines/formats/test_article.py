"""The article's records against values worked out by hand: timestamps, stretches, boxes, candidates."""

from __future__ import annotations

import json

import pytest

from data_pipelines.formats import article as article_format
from data_pipelines.formats import stgr
from data_pipelines.formats.fields import RecordError
from data_pipelines.formats.sample import Candidate
from o3jax.grounding import Grounding
from o3jax.tasks import TEMPORAL

# --- the article's ----------------------------------------------------------------------------------

ARTICLE = {"video_path": "a.mp4", "question": "Where?", "answer": "There."}
ARTICLE |= {"timestamps": [1], "bboxes": [[0, 0, 0.5, 1]]}


@pytest.mark.parametrize(
    ("spelled", "time", "interval"),
    [
        (12.3, 12.3, None),
        ("00:03:21", 201.0, None),  # 3 * 60 + 21
        ("3:21.5", 201.5, None),
        ("1:00:00.25", 3600.25, None),
        ("00:03:21-00:03:25", 203.0, (201.0, 205.0)),
        ([1.5, 4.5], 3.0, (1.5, 4.5)),
    ],
)
def test_spellings_of_a_timestamp(spelled, time, interval):
    sample = article_format.from_article(ARTICLE | {"timestamps": [spelled]}, "1")
    assert sample.mentions == (Grounding("object", time, boxes=((0.0, 0.0, 0.5, 1.0),), interval=interval),)
    assert sample.intervals == (() if interval is None else (interval,))


@pytest.mark.parametrize(
    "spelled", ["12:61", "61:00", "soon", "1:2:3", "0:01-0:02-0:03", "", [4, 3], [1], None, True]
)
def test_other_timestamps_are_refused(spelled):
    with pytest.raises(RecordError, match="'timestamps'") as error:
        article_format.from_article(ARTICLE | {"timestamps": [spelled]}, "1")
    assert error.value.field == "timestamps"


@pytest.mark.parametrize("answer", ["[201, 205]", "00:03:21-00:03:25", "From <t>201.0</t>s to <t>205.0</t>s"])
def test_an_answer_that_is_an_interval_makes_a_temporal_question(answer):
    sample = article_format.from_article(ARTICLE | {"answer": answer}, "1")
    assert (sample.task, sample.intervals) == (TEMPORAL, ((201.0, 205.0),))
    assert sample.answer == "From <t>201.0</t>s to <t>205.0</t>s"


@pytest.mark.parametrize("listed", [{}, {"intervals": []}, {"intervals": [[1, 9]]}])
@pytest.mark.parametrize("answer", ["There.", "[2, 4]", "[0.5, 9]"])
def test_stretches_come_back(answer, listed):
    record = ARTICLE | listed | {"answer": answer, "timestamps": [[2, 4], 7.0], "bboxes": [None, None]}
    claimed = {name: record[name] for name in ("answer", "timestamps", "bboxes", *listed)}
    sample = article_format.from_article(record | {"candidates": [claimed | {"preference": 1}]}, "1")
    assert [(m.time_s, m.interval) for m in sample.mentions] == [(3.0, (2.0, 4.0)), (7.0, None)]
    assert sample.candidates[0].mentions == sample.mentions
    assert (
        article_format.from_article(json.loads(json.dumps(article_format.to_article(sample))), "1") == sample
    )
    assert stgr.from_stgr(json.loads(json.dumps(stgr.to_stgr(sample)))) == sample


@pytest.mark.parametrize("wrong", [[4, 2], [2], "2-4", [True, 4]])
def test_a_mention_s_interval_is_checked(wrong):
    record = stgr.to_stgr(article_format.from_article(ARTICLE | {"timestamps": [[2, 4]]}, "1"))
    record["mentions"][0]["interval"] = wrong
    with pytest.raises(RecordError) as error:
        stgr.from_stgr(record)
    assert error.value.field == "mentions"


def test_boxes_are_pixels_where_the_record_has_their_picture_size():
    record = ARTICLE | {"image_size": [200, 100], "bboxes": [[20, 30, 100, 100]]}
    assert article_format.from_article(record, "1").mentions[0].boxes == ((0.1, 0.3, 0.5, 1.0),)
    for box, said in (([0.1, 0.3, 0.5, 1], "multiply by 200 and 100"), ([20, 30, 100, 101], "outside")):
        with pytest.raises(RecordError, match=said):
            article_format.from_article(record | {"bboxes": [box]}, "1")


def candidate(answer: str, preference: float, **more) -> dict:
    return {"answer": answer, "timestamps": [2.0], "bboxes": [None], "preference": preference} | more


def test_candidates_and_their_preference():
    record = {"video_path": "a.mp4", "question": "Where?"}
    record["candidates"] = [candidate("left", 0), candidate("right", 1, timestamps=["0:03"], reasoning="so")]
    sample = article_format.from_article(record, "1")
    right = Candidate("right", 1.0, "so", (Grounding("object", 3.0),))
    assert sample.candidates == (Candidate("left", 0.0, "", (Grounding("object", 2.0),)), right)
    assert (sample.answer, sample.mentions, sample.reasoning) == ("right", right.mentions, "so")
    assert (
        article_format.from_article(json.loads(json.dumps(article_format.to_article(sample))), "1") == sample
    )
    for change in ({"preference": None}, {"preference": "best"}, {"preference": float("nan")}, {"time": 3}):
        with pytest.raises(RecordError, match="field 'candidates'") as error:
            article_format.from_article(record | {"candidates": [candidate("left", 0) | change]}, "1")
        assert error.value.field == "candidates"
