"""Responses that show a fault are to be checked, and sound ones are not; what people are shown of either."""

from __future__ import annotations

import time

import pytest

from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import make_scene
from o3jax.prompts import templates
from o3jax.verify import confidence
from o3jax.verify.reasons import MOST, answer_and_reasoning, reasons, without_loops

CLAIM = "<obj>red circle</obj><box>[100,200,300,400]</box>at<t>1.2</t>s"
SOUND = f"<think>A {CLAIM}.</think>\n<answer>From <t>0.5</t>s to <t>2.0</t>s</answer>"


def why(text: str, question: str = "When?", finished: bool = True) -> list[str]:
    return [str(reason) for reason in reasons(text, question, 6.0, 9, finished)]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_right_responses_show_no_fault(level):
    for index in range(20):
        scene = make_scene(index, level, 2)
        for sample in make_samples(scene):
            found = reasons(templates.response(sample), sample.question, scene.duration, 9)
            assert not found, (templates.response(sample), sample.question)


def test_a_response_without_an_answer():
    nothing = "the response gives no answer"
    assert why("It is there.") == why("<think>so</think>") == why("<think>so") == why("") == [nothing]
    assert why("<think>so", finished=False) == ["the text was cut off after 9 tokens", nothing]


@pytest.mark.parametrize("inside", ["", " \n", "...", "<t></t>", "<obj></obj>", "<think></think>"])
def test_an_answer_that_says_nothing(inside):
    assert "the answer is empty" in why(f"<think>x</think><answer>{inside}</answer>")


def test_an_answer_without_an_end_and_several_answers():
    assert why("<answer>red") == ["the answer has no end"]
    assert why("<answer>red</answer><answer>blue</answer>") == ["the response gives 2 answers"]


@pytest.mark.parametrize(
    "loop",
    [
        "1." + "21." * 700,
        "the cat sat. " * 9,
        "红色圆形出现," * 12,
        CLAIM * 5,
        "\n" * 90,
        "ab" * 20,
        "=" * 64,
    ],
    ids=lambda loop: repr(loop[:9]),
)
def test_a_loop_is_found_wherever_it_is(loop):
    assert why(f"<think>{loop}</think><answer>red</answer>") == ["the response repeats itself"]
    assert "the response repeats itself" in why(f"<think>so</think><answer>{loop} red</answer>")
    answer, reasoning = answer_and_reasoning(f"So {loop}")
    assert len(answer) < 200 and not reasoning
    assert len(without_loops(f"before {loop} after")) < 200


def counted(claim: str, times: int, first: float = 1.0, step: float = 0.1) -> str:
    return " ".join(claim.replace("1.2", f"{first + n * step:.1f}") for n in range(times))


@pytest.mark.parametrize(
    "loop",
    [
        counted(CLAIM, 40),
        counted("From <t>1.2</t>s to <t>9.0</t>s it moves.", 9, first=8.0, step=1.0),
        " ".join(f"From <t>{n}.0</t>s to <t>{n + 1}.0</t>s it moves." for n in range(5, 15)),
        "".join(f"{n}. The cat sat.\n" for n in range(1, 30)),
        "".join(f"第{n}次出现红色圆形，" for n in range(95, 120)),
        counted(CLAIM + " and " + CLAIM.replace("red", "blue"), 12, step=0.5),
        counted(CLAIM, 30, first=9.0, step=-0.2),
    ],
    ids=lambda loop: repr(loop[:24]),
)
def test_a_loop_that_counts_is_found(loop):
    for text in (f"<think>so</think><answer>{loop}</answer>", f"<think>{loop}</think><answer>red</answer>"):
        assert "the response repeats itself" in [str(r) for r in reasons(text, "When?", 99.0, 9, True)]
    assert len(without_loops(f"before {loop} after")) < 300 and without_loops(loop).startswith(loop[:16])


def _track(move) -> str:
    """A claim at each half second, whose box moves as a thing does."""
    return " ".join(
        f"<obj>red circle</obj><box>[{','.join(map(str, move(n)))}]</box>at<t>{n / 2:.1f}</t>s"
        for n in range(40)
    )


@pytest.mark.parametrize(
    "listed",
    [
        _track(lambda n: (100 + 5 * n, 200, 300 + 5 * n, 400)),  # straight and even
        _track(lambda n: (100 + 3 * n + n % 2, 200 - 2 * n, 300 + 3 * n, 400 - 2 * n)),
        " ".join(CLAIM.replace("red", c).replace("1.2", f"{i}.0") for i, c in enumerate("abcdefghijklmnop")),
        " ".join(
            CLAIM.replace("red", f"{c} {k}").replace("1.2", f"{i}.{j}")
            for i, c in enumerate(("red", "blue", "green", "grey"))
            for j, k in enumerate(("big", "small", "round"))
        ),
        counted(CLAIM, 7),
        "\n".join(f"{n}. {word}" for n, word in enumerate("one two six ten cat dog fox owl".split())),
        ", ".join(f"from <t>{a}.0</t>s to <t>{a + 1 + a % 3}.5</t>s" for a in (0, 3, 9, 11, 20, 26, 40, 60)),
        ", ".join(f"<t>{time}</t>s" for time in (1.0, 2.5, 2.9, 7.0, 7.2, 8.0, 9.9, 14.0)),
    ],
    ids=lambda listed: repr(listed[-24:]),
)
def test_a_long_list_is_no_loop(listed):
    assert not reasons(f"<think>{listed}</think><answer>so</answer>", "When?", 99.0, 9, True)
    assert without_loops(listed) == listed


@pytest.mark.parametrize("text", ["red red red", "no, no, no, no.", "A, B, A, B", "12:12:12", "哈哈哈哈"])
def test_a_word_said_again_is_no_loop(text):
    assert not why(f"<answer>{text}</answer>") and without_loops(text) == text


UNREADABLE = {
    **{box: CLAIM.replace("[100,200,300,400]", box) for box in ("[1,2,3]", "[1,2,3,4,5]", "[]", "1,2,3,4")},
    **{box: CLAIM.replace("[100,200,300,400]", box) for box in ("[nan,2,3,4]", "[3,4,1,2]", "[5,5,5,9]")},
    **{
        box: CLAIM.replace("[100,200,300,400]", box) for box in ("[0,0,1200,90]", "[-5,0,90,90]", "[a,b,c,d]")
    },
    **{time: CLAIM.replace("1.2", time) for time in ("inf", "1e3", "", "-1", "soon", "1.2.3")},
    "no name": CLAIM.replace("red circle", ""),
    "no object": CLAIM.removeprefix("<obj>red circle</obj>"),
    "open name": CLAIM.replace("</obj>", ""),
    "open box": CLAIM.replace("</box>", ""),
    "open time": CLAIM.replace("</t>s", ""),
    "cut": CLAIM[:34],
}


@pytest.mark.parametrize("claim", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_claim_that_cannot_be_read(claim):
    (reason,) = why(SOUND.replace(CLAIM, claim))
    assert reason.endswith("names, boxes or times cannot be read") and reason[0] in "123"


def test_what_lies_outside_the_video():
    assert why(SOUND.replace("1.2", "6.3")) == ["1 claims lie after the end of the video and were left out"]
    assert why(SOUND.replace("2.0", "7.5")) == ["a time lies after the end of the video"]
    assert not why(SOUND.replace("2.0", "6.0"))


@pytest.mark.parametrize(
    "question",
    [
        "Which? A. red B. blue C. dark green",
        "Which?\nA) red\nB) blue\nC) dark green",
        "(A) red (B) blue (C) dark green?",
    ],
)
def test_an_answer_outside_the_options(question):
    for answer in ("A", "b", "C.", "B. blue", "(C) dark green", "The answer is B.", "Dark green", "答案是A"):
        assert not why(f"<answer>{answer}</answer>", question), answer
    for answer in ("D", "E. pink", "pink", "The answer is D"):
        assert why(f"<answer>{answer}</answer>", question) == ["the answer is none of the options"], answer
    assert not why("<answer>pink</answer>", "What does person A. do?")
    assert not why("<answer>B、蓝色</answer>", "颜色是? A、红色 B、蓝色")
    assert why("<answer>绿色</answer>", "颜色是? A、红色 B、蓝色") == ["the answer is none of the options"]


def test_such_an_answer_is_of_low_confidence():
    assert confidence.label(MOST) == "low" and confidence.needs_review(MOST)


def test_nothing_is_said_twice():
    for text in (
        "and then",
        "<think>and then",
        "<think>and then</think>",
        "<think>and then</think><answer></answer>",
    ):
        assert answer_and_reasoning(text) == ("and then", "")
    assert answer_and_reasoning("<think>red</think><answer>red</answer>") == ("red", "")
    assert answer_and_reasoning(SOUND) == ("From <t>0.5</t>s to <t>2.0</t>s", f"A {CLAIM}.")
    words = " ".join(f"word{n * n}" for n in range(900))
    assert (
        len(answer_and_reasoning(words)[0]) < 700
        and answer_and_reasoning(f"<answer>{words}</answer>")[0] == words
    )


PIECES = ("a", "<answer>", "<obj>", ".", " A.", "<", "<box>[1,2,3,4]</box>", "1 ", "12.5")


@pytest.mark.parametrize("piece", PIECES)
def test_long_texts_take_linear_time(piece):
    start = time.process_time()
    why(piece * (100_000 // len(piece)), "A. x B. y " + piece * 20_000)
    assert time.process_time() - start < 5
