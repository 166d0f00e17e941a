"""Coordinate spaces and frame numbers against hand-worked values and properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3jax.errors import UserError
from o3jax.prompts import coords
from o3jax.prompts.coords import NORMALISED, PER_MILLE, convert, per_mille, pixels, rewrite_boxes

UNIT = st.floats(0, 1)
BOXES = st.tuples(UNIT, UNIT, UNIT, UNIT)


@pytest.mark.parametrize(
    ("time", "fps", "frame"),
    [
        (12.3, 25, 308),
        (14.5, 25, 363),
        (0.6, 25, 15),
        (0.0, 25, 0),
        (0.02, 25, 1),
        (0.019, 25, 0),
        (1.0, 29.97, 30),
    ],
)
def test_frame_index(time, fps, frame):
    assert coords.frame_index(time, fps) == frame


def test_convert_by_hand():
    box = (0.25, 0.2, 0.5, 0.8)
    assert convert(box, NORMALISED, pixels(420, 252)) == (105, 50, 210, 202)  # 50.4, 201.6
    assert convert(box, NORMALISED, PER_MILLE) == (250, 200, 500, 800)
    assert convert((0.123, 0.127, 0.125, 1), NORMALISED, per_mille(10)) == (120, 130, 120, 1000)  # 12.5 -> 12
    assert convert((120, 80, 200, 150), pixels(400, 200), NORMALISED) == (0.3, 0.4, 0.5, 0.75)
    assert convert((210, 112, 420, 224), pixels(420, 224), pixels(1280, 720)) == (640, 360, 1280, 720)
    assert convert((-5, 0, 1200, 1000), PER_MILLE, NORMALISED) == (0, 0, 1, 1)


@given(box=BOXES, step=st.sampled_from([1, 2, 5, 10, 100]))
def test_grid_and_distance(box, step):
    there = convert(box, NORMALISED, per_mille(step))
    assert all(isinstance(v, int) and v % step == 0 and 0 <= v <= 1000 for v in there)
    back = convert(there, per_mille(step), NORMALISED)
    assert max(abs(a - b) for a, b in zip(box, back, strict=True)) <= step / 2000 + 1e-9
    assert convert(back, NORMALISED, per_mille(step)) == there


def test_bad_spaces_are_refused():
    for step in (0, -1, 3, 2000):
        with pytest.raises(UserError, match="box_step"):
            per_mille(step)
    with pytest.raises(UserError, match="positive size"):
        pixels(0, 10)


def test_rewrite_published_text():
    text = "The <obj>man</obj><box>[0.46, 0.43, 0.77, 0.94]</box>at<t>5.0</t>s sits; <box>[0,0,1,1]</box>."
    assert rewrite_boxes(text, NORMALISED, pixels(420, 252)) == (
        "The <obj>man</obj><box>[193,108,323,237]</box>at<t>5.0</t>s sits; <box>[0,0,420,252]</box>."
    )
    back = rewrite_boxes("<box>[250,200,500,804]</box>", PER_MILLE, NORMALISED)
    assert back == "<box>[0.250,0.200,0.500,0.804]</box>"


MALFORMED = [
    "[1,2,3]",
    "[1,2,3,4,5]",
    "[1,2,3,nan]",
    "[1,2,3,inf]",
    "[1,2,3,1e3]",
    "[1,2,3,٣]",
    "1,2,3,4",
    "[1,2,3,--4]",
    "[1,2,3,]",
    "[,,,]",
    "",
    "[1,2,3," + "9" * 5000 + "]",
    "[[1,2,3,4]]",
]


@pytest.mark.parametrize("content", MALFORMED)
def test_malformed_boxes_stay(content):
    text = f"a<box>{content}</box>b<box>[1,2,3,4]</box>"
    assert rewrite_boxes(text, PER_MILLE, per_mille(10)) == f"a<box>{content}</box>b<box>[0,0,0,0]</box>"
    assert coords.parse_box(content) is None


def test_unpaired_tags():
    text = "</box><box><box>[100,200,300,400]</box></box><box>[1,2,3,4]"
    assert rewrite_boxes(text, PER_MILLE, NORMALISED) == (
        "</box><box><box>[0.100,0.200,0.300,0.400]</box></box><box>[1,2,3,4]"
    )


@given(
    st.lists(st.sampled_from(["<box>", "</box>", "[1,2,3,4]", "[1,2", "x", " "]), max_size=30).map("".join)
)
def test_rewriting_to_the_same_space_changes_only_blanks(text):
    assert rewrite_boxes(text, PER_MILLE, PER_MILLE).replace(" ", "") == text.replace(" ", "")


@given(st.text(alphabet="0123456789.-+eE naif٣", max_size=40))
def test_numbers_are_plain_or_none(text):
    value = coords.parse_number(text)
    assert value is None or (float(text) == value and abs(value) < 1e9 + 1)
    if text.isascii() and text.isdigit() and len(text) <= 9:
        assert value == int(text)
