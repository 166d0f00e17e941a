"""How each benchmark counts, traps of the published scorers included, on predictions made by hand."""

from __future__ import annotations

import pytest

from data_pipelines.formats.benchmarks.item import BoxesAt, Item
from experiments.evaluation.benchmarks.prediction import Prediction, Reader
from experiments.evaluation.benchmarks.suite import SUITE
from o3jax.metrics import parsers

EVENT = Item("1", "v", "?", "A", ("a", "b"), intervals=((0.0, 10.0),), duration=20.0)
GROUNDED = ("tvgbench", "charades_sta", "activitynet", "extremewhenbench", "rextime", "nextgqa")
GROUNDED += tuple(name for name in SUITE if name.startswith("timelens_"))


def metrics(name: str, *pairs: tuple[Item, Prediction | None]) -> dict[str, float | None]:
    return SUITE[name].scorer.metrics(pairs)


@pytest.mark.parametrize("name", GROUNDED)
def test_an_iou_of_exactly_a_threshold(name):
    """Time-R1's three are strict, the others are not."""
    found = metrics(name, (EVENT, Prediction("A", (0.0, 3.0))))
    metric = {"rextime": "MR-R1@0.3", "nextgqa": "TIoU@0.3"}.get(name, "R1@0.3")
    assert found[metric] == (name not in ("tvgbench", "charades_sta", "activitynet"))


@pytest.mark.parametrize("name", GROUNDED)
def test_an_answer_that_cannot_be_read(name):
    """Counts 0; NExT-GQA leaves it out of what is grounded."""
    found = metrics(name, (EVENT, Prediction("A", (0.0, 10.0))), (EVENT, Prediction("A", None)))
    mean = found["MR-mIoU"] if name == "rextime" else found["mIoU"]
    assert mean == (1.0 if name == "nextgqa" else 0.5)
    assert name != "nextgqa" or (found["counted"], found["Acc@QA"]) == (1, 1.0)
    assert found.get("unparsed", 0.5) == 0.5


@pytest.mark.parametrize(
    ("name", "text", "iou"),
    [
        ("timelens_charades", "17.8 - 12.5", 0.0),  # is not put in order
        ("timelens_charades", "12.4 - 17.6", 5 / 6),  # whole seconds: 12 to 18, of 12 to 17
        ("timelens_charades", "12.5s to 17.8s", 1.0),  # read as 12 to 17
        ("charades_sta", "17 - 12", 1.0),  # is
        ("extremewhenbench", "17 - 12", 1.0),
        ("tvgbench", "17 to 12", 0.0),
        ("tvgbench", "From <t>12</t>s to <t>17</t>s", 0.0),
    ],
)
def test_what_the_official_parser_makes_of_it(name, text, iou):
    item = Item("1", "v", "?", intervals=((12.0, 17.0),))
    scorer = SUITE[name].scorer
    prediction = scorer.read(item, {"answer": text}, Reader(name, "official"))
    assert scorer.figures(item, prediction)["tIoU"] == pytest.approx(iou)


def test_an_end_after_the_video_is_not_clipped():
    late = Item("1", "v", "?", intervals=((4.0, 24.0),), duration=10.0)
    assert metrics("charades_sta", (late, Prediction(interval=(4.0, 10.0))))["mIoU"] == pytest.approx(0.3)


def test_empty_open_answers_of_videommmu_are_left_out():
    opened, chosen = Item("1", "v", "?", "7"), Item("2", "v", "?", "A", ("a", "b"))

    def read(item: Item, text: str) -> tuple[Item, Prediction]:
        return item, SUITE["videommmu"].scorer.read(item, {"answer": text}, Reader("videommmu", "official"))

    found = metrics("videommmu", read(opened, "x = 7"), read(opened, " \n"), read(chosen, ""))
    assert (found["accuracy"], found["counted"]) == (0.5, 2)
    # What was not answered at all is not left out here, but is for LongVideo-Reason.
    assert metrics("videommmu", (opened, None), (chosen, None))["counted"] == 2
    assert metrics("longvideo_reason", (chosen, None), (chosen, Prediction("A")))["accuracy"] == 1.0


def test_rextime_as_published():
    """[0, 10] for [5, 15] and a miss, both letters right."""
    items = [Item(str(n), "v", "?", "A", ("a", "b"), intervals=((5.0, 15.0),)) for n in range(2)]
    found = metrics(
        "rextime", (items[0], Prediction("A", (0.0, 10.0))), (items[1], Prediction("A", (20, 30)))
    )
    assert found["VQA"] == 1.0 and found["VQA,mIoU@0.5"] == 0.0 and found["MR-R1@0.3"] == 0.5


def test_a_colour_that_is_not_named():
    """VideoZeroBench's own rule takes nothing for it; with our parser it is wrong."""
    item = Item("1", "v", "?", "红色", boxes=(BoxesAt(1.0, ((0, 0, 1, 1),)),), tags={"size": (10, 10)})
    texts = dict.fromkeys(("level1", "level2", "level3"), "")
    for parser, level in (("official", 1.0), ("o3", 0.0)):
        scorer = SUITE["videozerobench"].scorer
        prediction = scorer.read(item, texts, Reader("videozerobench", parser))
        assert scorer.metrics([(item, prediction)])["level-3"] == level


def test_a_group_is_that_of_its_last_question():
    """Video-MME-v2: 1011 has 6.25, 33.3 or 10 points, 0111 has 0, 0 or 10, 1110 has 56.25, 58.3 or 50."""
    structures = ("[1, 2, 3, 4]", "[1, [2, 3], 4]", "[[1, 2], 3, 4]")
    points = {"1011": (6.25, 33.333, 10), "0111": (0, 0, 10), "1110": (56.25, 58.333, 50)}
    for right, per_structure in points.items():
        for structure, wanted in zip(structures, per_structure, strict=True):
            tags = [{"group_structure": "[1, 2, 3, 4]", "group_type": "relevance"}] * 3
            tags.append({"group_structure": structure, "group_type": "logic"})
            pairs = [
                (
                    Item(f"7-{n + 1}", "v", "?", "A", ("a", "b"), group="7", tags=tags[n]),
                    Prediction("BA"[int(one)]),
                )
                for n, one in enumerate(right)
            ]
            found = metrics("videomme_v2", *reversed(pairs))
            assert 100 * found["score"] == pytest.approx(wanted, abs=1e-3) and found["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tvgbench", "From <t>3</t>s to <t>4</t>s"),
        ("activitynet", "From <t>3</t>s to <t>4</t>s"),
        ("charades_sta", "between 3 and 9"),
        ("charades_sta", "17.8 - 12.5"),
        ("timelens_charades", "12.5s to 17.8s"),
        ("extremewhenbench", "20:00 - 21:00"),
        ("videomme", "Bananas"),
        ("videomme_v2", "Answer: Ambiguous"),
    ],
)
def test_a_fault_of_the_official_parser_is_kept_mended_by_ours_and_told(name, text):
    part = "letter" if name.startswith("videomme") else "interval"
    official, ours = (
        parsers.parse(name, text, parser=parser, options="ABCD", part=part) for parser in ("official", "o3")
    )
    assert official != ours and f"`{text}`" in SUITE[name].note
