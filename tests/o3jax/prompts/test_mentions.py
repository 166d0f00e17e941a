"""Token positions of mentions against whole-text decoding, and matching against every permutation."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3jax.grounding import Grounding as Named
from o3jax.prompts.grammar import parse
from o3jax.prompts.mentions import claim_numbers, match_mentions, mention_positions
from tests.support.paths import ROOT

QWEN = ROOT.parent / "shared" / "data" / "qwen3_vl_tokenizer"
TINY = ROOT / "o3jax" / "assets" / "o3-tiny"


@pytest.fixture(scope="module", params=["qwen", "tiny"])
def tokenizer(request):
    from transformers import AutoTokenizer

    if request.param == "qwen" and not QWEN.is_dir():
        pytest.skip("the published tokenizer is not here")
    return AutoTokenizer.from_pretrained(QWEN if request.param == "qwen" else TINY)


def brute_force(tokenizer, ids):
    """The first prefix of ids whose text holds the k-th `</obj`, for each k: decoding all of it each time."""
    counts = [tokenizer.decode(ids[: n + 1]).count("</obj") for n in range(len(ids))]
    return [counts.index(k + 1) for k in range(counts[-1] if counts else 0)]


TEXT = "<think>The <obj>red 方块</obj>{}<box>[1,2,3,4]</box>at<t>1.2</t>s, then <obj>a</obj>{}</think>"
AFTER = ["", " is", "\n", "\n\n", " ", "在", "，然后", "s", ">", "<", "</", "é", "🚗"]


@pytest.mark.parametrize("after", AFTER)
def test_positions_whatever_follows_the_tag(tokenizer, after):
    ids = tokenizer(TEXT.format(after, after))["input_ids"]
    positions = mention_positions(tokenizer, ids)
    assert positions == brute_force(tokenizer, ids)
    assert len(positions) == 2
    assert all("obj" in tokenizer.decode([ids[p]]) for p in positions)


def test_positions_do_not_depend_on_what_follows(tokenizer):
    # Up to the token before, the context is the same, so that cached generation and a pass over the
    # whole text find the same state.
    found = set()
    for after in AFTER:
        ids = tokenizer("一<obj>red car</obj>" + after)["input_ids"]
        found.add(mention_positions(tokenizer, ids)[0])
    assert len(found) == 1


def test_positions_of_ids_that_no_tokenizer_would_choose(tokenizer):
    one = {c: tokenizer(c)["input_ids"] for c in "</obj>红"}
    assert all(len(ids) == 1 for c, ids in one.items() if c.isascii())
    ids = [i for c in "红<</obj>红</ob</obj></obj>" for i in one[c]]
    positions = mention_positions(tokenizer, ids)
    assert [tokenizer.decode([ids[p]]) for p in positions] == ["j"] * 3
    wide = len(one["红"])
    assert positions == [wide + 5, 2 * wide + 15, 2 * wide + 21]
    assert mention_positions(tokenizer, []) == []
    assert mention_positions(tokenizer, one["<"] + one["o"]) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["<obj>", "</obj>", "</ob", "j>", "obj", " a", "红", "é", "\n", ">", "<"])))
def test_positions_in_any_text(tokenizer, pieces):
    text = "".join(pieces)
    ids = tokenizer(text)["input_ids"]
    positions = mention_positions(tokenizer, ids)
    assert len(positions) == text.count("</obj>")
    for number, position in enumerate(positions, start=1):
        # With this token the tag is complete but for its end; without it, it is not.
        before, after = tokenizer.decode(ids[:position]), tokenizer.decode(ids[: position + 1])
        assert before.count("</obj>") < number
        if not after.endswith("</ob"):
            assert after.rstrip("�").count("</obj") >= number


def test_claims_know_their_tags():
    text = (
        "</obj><obj></obj><obj>a</obj> and <obj>b</obj><box>[1,2,3,4]</box></obj>, <obj>c</obj>at<t>1.0</t>s"
    )
    claims = parse(text).claims
    assert [claim.object for claim in claims] == ["a", "b", "c"]
    assert claim_numbers(text, [claim.span for claim in claims]) == [2, 3, 5]
    assert claim_numbers("", []) == []


def test_in_order_where_the_names_agree():
    claims = [Named("car", 9.0), Named("Dog ", None), Named("car", 1.0)]
    truth = [Named("car", 1.0), Named("dog", 5.0), Named("Car", 9.0)]
    assert match_mentions(claims, truth) == [0, 1, 2]
    assert match_mentions([], []) == []


@pytest.mark.parametrize(
    ("claims", "truth", "expected"),
    [
        ([Named("car", 1.0), Named("car", 9.0)], [Named("car", 8.0)], [-1, 0]),
        ([Named("car", 8.0)], [Named("car", 1.0), Named("car", 9.0)], [1]),
        (
            [Named("dog", 1.0), Named("car", 1.0)],
            [Named("car", 1.0), Named("dog", 1.0)],
            [1, 0],
        ),
        ([Named("cat", 1.0)], [Named("dog", 1.0)], [-1]),
        ([Named("car"), Named("car", 5.0)], [Named("car", 5.1)], [-1, 0]),
        (
            [Named("car"), Named("car"), Named("dog")],
            [Named("car"), Named("car")],
            [0, 1, -1],
        ),
        ([Named("car", 1.0)], [], [-1]),
        ([], [Named("car", 1.0)], []),
        # Least in all: the nearest pair first (2.0 with 2.1) would leave 0.0 with 9.0.
        (
            [Named("a", 2.0), Named("a", 6.0), Named("b")],
            [Named("a", 2.1), Named("a", 1.0)],
            [1, 0, -1],
        ),
    ],
)
def test_hand_worked_matches(claims, truth, expected):
    assert match_mentions(claims, truth) == expected


MENTIONS = st.lists(
    st.builds(Named, st.sampled_from("ab"), st.one_of(st.none(), st.integers(0, 40).map(lambda i: i / 4))),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(MENTIONS, MENTIONS)
def test_matches_are_the_best_of_all(claims, truth):
    if [m.object for m in claims] == [m.object for m in truth]:
        return
    found = match_mentions(claims, truth)

    def value(pairs):
        """(pairs, pairs of a time with none, time error): more pairs first, then the less the better."""
        names = [(claims[i], truth[j]) for i, j in pairs]
        if any(a.object != b.object for a, b in names):
            return None
        both = [abs(a.time_s - b.time_s) for a, b in names if a.time_s is not None and b.time_s is not None]
        return -len(pairs), sum((a.time_s is None) != (b.time_s is None) for a, b in names), sum(both)

    everything = []
    for size in range(min(len(claims), len(truth)) + 1):
        for chosen in itertools.combinations(range(len(claims)), size):
            everything += [list(zip(chosen, p)) for p in itertools.permutations(range(len(truth)), size)]  # noqa: B905
    best = min(v for pairs in everything if (v := value(pairs)) is not None)
    got = [(i, j) for i, j in enumerate(found) if j >= 0]
    assert len({j for _, j in got}) == len(got)
    assert value(got) == pytest.approx(best)
