"""The answer grammar: hand-worked texts, any text at all, and work that grows linearly."""

import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3jax.prompts import coords
from o3jax.prompts.grammar import Claim, parse, render, render_claim, render_interval

PUBLISHED = (
    "<think>The <obj>red car</obj><box>[100,200,300,400]</box>at<t>12.3</t>s passes two "
    "<obj>dogs</obj><box>[0,0,500,500]</box><box>[500,500,1000,1000]</box>at<t>3.0</t>s.</think>\n"
    "<answer>From <t>12.3</t>s to <t>15.6</t>s</answer>"
)


def test_published_form():
    parsed = parse(PUBLISHED)
    assert parsed.well_formed
    assert parsed.think.startswith("The <obj>red car") and parsed.think.endswith("s.")
    assert parsed.answer == "From <t>12.3</t>s to <t>15.6</t>s"
    car, dogs = parsed.claims
    assert (car.object, car.boxes, car.time_s) == ("red car", ((0.1, 0.2, 0.3, 0.4),), 12.3)
    assert (dogs.object, dogs.boxes, dogs.time_s) == ("dogs", ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)), 3.0)
    assert PUBLISHED[slice(*car.span)] == "<obj>red car</obj><box>[100,200,300,400]</box>at<t>12.3</t>s"
    assert PUBLISHED[slice(*dogs.span)].endswith("at<t>3.0</t>s")
    assert parsed.times == (12.3, 3.0, 12.3, 15.6)
    assert parsed.intervals == ((12.3, 15.6),)


def test_boxes_in_pixels_of_the_resized_frame():
    text = "<answer><obj>dog</obj><box>[105, 0, 420, 126]</box></answer>"
    [dog] = parse(text, coords.pixels(420, 252)).claims
    assert dog == Claim("dog", boxes=((0.25, 0, 1, 0.5),), span=(8, len(text) - 9))


def test_chinese():
    parsed = parse(
        "<think>看<obj>红色汽车</obj><box>[1,2,3,4]</box>at<t>1.5</t>s</think><answer>从<t>1.5</t>s到<t>4</t>s</answer>"
    )
    assert parsed.well_formed and parsed.intervals == ((1.5, 4.0),)
    assert parsed.claims[0].object == "红色汽车" and parsed.claims[0].time_s == 1.5


@pytest.mark.parametrize(
    ("text", "intervals"),
    [
        ("<t>1</t>s to <t>2</t>s", ((1, 2),)),
        ("<t>1</t>s - <t>2</t>", ((1, 2),)),
        ("<t>1</t>秒到<t>2</t>秒", ((1, 2),)),
        ("<t>1</t>to<t>2</t>s to <t>3</t>", ((1, 2), (2, 3))),
        ("<t>2</t>s to <t>1</t>s", ()),
        ("<t>1</t>s and <t>2</t>s", ()),
        ("<t>1</t>s to <t>x</t>s", ()),
        ("<t>1</t>s to the end <t>2</t>s", ()),
        ("<t>1</t>" + " " * 99 + "to <t>2</t>", ()),
    ],
)
def test_intervals(text, intervals):
    assert parse(text).intervals == intervals


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("<obj>a</obj>", [("a", 0, None)]),
        ("<obj> </obj><box>[1,2,3,4]</box>", []),
        ("<obj>a<obj>b</obj><box>[1,2,3,4]</box>", [("b", 1, None)]),
        ("<obj>a</obj> <box>[1,2,3,4]</box> at <t>1</t>s", [("a", 1, 1)]),
        ("<obj>a</obj> is at <box>[1,2,3,4]</box>at<t>1</t>s", [("a", 0, None)]),
        ("<obj>a</obj><box>[1,2,3,4]</box>, then at<t>1</t>s", [("a", 1, None)]),
        ("<obj>a</obj><box>[4,2,3,4]</box><box>[1,2,1,4]</box>at<t>1</t>s", [("a", 1, 1)]),
        ("<obj>a</obj><box>[1,2,3,x]</box>at<t>nan</t>s", [("a", 0, None)]),
        ("<obj>a</obj><box>[1,2,3,4]</box>at<t>-1</t>s", [("a", 1, None)]),
        ("<obj>a</obj><box>[1,2,3,4]</box>at<t>" + "1" * 400 + "</t>s", [("a", 1, None)]),
        ("<obj>a</obj><box>[1,2,3,4]</box></think>at<t>1</t>s", [("a", 1, None)]),
        ("<box>[1,2,3,4]</box>at<t>1</t>s", []),
    ],
)
def test_claims(text, claims):
    assert [(c.object, len(c.boxes), c.time_s) for c in parse(text).claims] == claims


@pytest.mark.parametrize(
    ("text", "think", "answer", "well_formed"),
    [
        ("<think>a</think><answer>b</answer>", "a", "b", True),
        (" <think>\na\n</think>\n\n<answer> b </answer>\n", "a", "b", True),
        ("<think></think><answer></answer>", "", "", True),
        ("<think>a</think><answer>b</answer>c", "a", "b", False),
        ("x<think>a</think><answer>b</answer>", "a", "b", False),
        ("<think>a</think>x<answer>b</answer>", "a", "b", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "a", "b", False),
        ("<answer>b</answer><think>a</think>", "a", "b", False),
        ("<answer>b</answer><think>a</think><answer>c</answer>", "a", "c", False),
        ("a</think>b", "a", "b", False),
        ("<answer>a</think>b</answer>c", "<answer>a", "a</think>b", False),
        ("a</think><answer>b</answer>", "a", "b", False),
        ("<think>a<answer>b</answer>", "a", "b", False),
        ("<think>a</think>b", "a", "b", False),
        ("<think>a", "a", "", False),
        ("<answer>b", "", "b", False),
        ("just words", "", "just words", False),
        ("", "", "", False),
    ],
)
def test_sections(text, think, answer, well_formed):
    parsed = parse(text)
    assert (parsed.think, parsed.answer, parsed.well_formed) == (think, answer, well_formed)


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<obj>",
        "</obj>",
        "<box>",
        "</box>",
        "<t>",
        "</t>",
        "at",
    ]
    + [
        "s",
        " to ",
        "到",
        "cat",
        "[1,2,300,400]",
        "[1,2",
        "12.3",
        "nan",
        "-1",
        "1e9",
        " ",
        "\n",
        "<",
        "9" * 50,
    ]
)
TEXTS = st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=200)


@settings(max_examples=300)
@given(TEXTS)
def test_any_text_is_parsed_and_what_it_says_is_sane(text):
    parsed = parse(text)
    for claim in parsed.claims:
        start, end = claim.span
        assert text[start : start + 5] == "<obj>" and claim.object in text[start:end]
        assert claim.time_s is None or claim.time_s in parsed.times
        assert all(0 <= b[0] <= b[2] <= 1 and 0 <= b[1] <= b[3] <= 1 for b in claim.boxes)
    assert all(0 <= t < 1e9 for t in parsed.times)
    assert all(a <= b and a in parsed.times and b in parsed.times for a, b in parsed.intervals)
    # A tag left inside a section by a text that is not well-formed may end it early.
    if parsed.well_formed:
        again = parse(render(parsed.think, parsed.answer))
        assert _without_spans(again) == _without_spans(parsed)


def _without_spans(parsed):
    return replace(parsed, claims=tuple(replace(c, span=(0, 0)) for c in parsed.claims))


NAMES = st.text(alphabet="abc 红色", min_size=1, max_size=8).map(str.strip).filter(bool)
SORTED = st.tuples(*[st.integers(0, 100)] * 4).map(
    lambda v: (min(v[0], v[2]) / 100, min(v[1], v[3]) / 100, max(v[0], v[2]) / 100, max(v[1], v[3]) / 100)
)
TENTHS = st.integers(0, 9999).map(lambda n: n / 10)


@given(
    st.lists(st.tuples(NAMES, st.lists(SORTED, max_size=3), st.none() | TENTHS), max_size=5), TENTHS, TENTHS
)
def test_what_is_rendered_is_read_back(claims, start, length):
    end = round(start + length, 1)
    for language in ("en", "zh"):
        think = ". ".join(
            render_claim(name, boxes, time, coords.per_mille(10)) for name, boxes, time in claims
        )
        parsed = parse(render(think, render_interval(start, end, language)))
        assert parsed.well_formed and parsed.intervals == ((start, end),)
        assert [(c.object, list(c.boxes), c.time_s) for c in parsed.claims] == claims


HOSTILE = [
    "<obj>a</obj>",
    "<obj>",
    "<obj>a</obj><box>",
    "<box>[1,2,3,4]</box>",
    "<obj>a</obj><box>[1,2,3,4]</box>at<t>1</t>s",
    "<t>1</t>s to ",
    "<t>1</t>",
    "<think>",
    "</think><answer>",
    "<",
    " ",
    "<box>[" + " " * 20,
    "<obj>a</obj> ",
    "9",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_work_grows_linearly(piece):
    """Counts the executed lines, which no other load on the machine can change; the patterns themselves
    have no repeat that could backtrack over more than a few characters."""

    def lines(text):
        count = 0

        def trace(frame, event, _):
            nonlocal count
            count += event == "line"
            return trace

        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            parse(text)
            coords.rewrite_boxes(text, coords.PER_MILLE, coords.NORMALISED)
        finally:
            sys.settrace(previous)
        return count

    small = lines(piece * 100 + "x")
    assert lines(piece * 800 + "x") <= 9 * small + 200


def test_long_hostile_text_is_read():
    for piece in HOSTILE:
        text = piece * (100_000 // len(piece))
        assert len(parse(text).claims) in (0, text.count("<obj>a</obj>"))
