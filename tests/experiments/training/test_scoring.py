"""Rewards in processes of their own: one that raises, hangs or dies costs one completion, and no other."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.training.scoring import Scored, Scorer
from o3jax.errors import UserError
from o3jax.rewards import registry
from tests.support.paths import ROOT

# What a reward function may do; each is the text of a completion that asks for it.


def fail():
    raise ValueError("two\nlines")


def leave():
    os._exit(3)


def stop():
    sys.exit(1)


def crash():
    ctypes.string_at(0)


def hang():
    while True:
        pass


def hang_in_c():
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    ctypes.CDLL(None).pause()


def eat():
    return len(bytearray(64 * 2**30))


def recurse():
    return recurse() + 1


VALUES = {"nan": math.nan, "inf": {"a": math.inf, "b": 1}, "none": None, "word": "1.0", "list": [1]}
DEEDS = {f.__name__: f for f in (fail, leave, stop, crash, hang, hang_in_c, eat, recurse)}


def reward(completion: str, sample, factor: float = 1.0, *, step_percent: float = 0.0):
    """Returns the number of the completion, with two terms, or does what its text says."""
    if completion in DEEDS:
        return DEEDS[completion]()
    if completion in VALUES:
        return VALUES[completion]
    return {"number": int(completion) * factor, "step": step_percent}


def seen(completion: str, sample, evidence=None) -> float:
    return float(completion) + sample["bonus"] + len(evidence or ())


def process(completion: str, sample) -> int:
    """Returns the number of the process that asks; for "leave", none."""
    return leave() if completion == "leave" else os.getpid()


no_function = 5
OWN = "tests.experiments.training.test_scoring:reward"


@pytest.fixture(scope="module")
def scorer():
    with Scorer(OWN, fallback=-7.0, time_limit_s=1.0, max_memory_bytes=2**30) as one:
        yield one


def record(number: int) -> dict:
    return {"id": f"r{number}"}


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        ("fail", "the reward raised ValueError: two lines"),
        ("leave", "the reward's process crashed (exit code 3)"),
        ("stop", "the reward raised SystemExit: 1"),
        ("crash", "the reward's process crashed (SIGSEGV)"),
        ("hang", "the reward took longer than time_limit_s = 1 s"),
        ("hang_in_c", "the reward took longer than time_limit_s = 1 s"),
        ("eat", "the reward raised MemoryError:"),
        ("recurse", "the reward raised RecursionError: "),
        ("nan", "the reward's total is nan, which is no finite number"),
        ("inf", "the reward's a is inf, which"),
        ("none", "the reward's total is None, which"),
        ("word", "the reward's total is '1.0', which"),
        ("list", "the reward's total is [1], which"),
    ],
)
def test_a_misbehaving_reward_costs_one_completion(scorer, deed, why):
    texts = [deed if number == 9 else str(number) for number in range(20)]
    scored = scorer.score(texts, [record(number) for number in range(20)], step_percent=0.5)
    for number, one in enumerate(scored):
        if number == 9:
            assert one.terms == {} and one.total == -7.0 and "\n" not in one.error
            assert one.error.startswith(f"completion 9, of record 'r9': {why}")
            assert one.error.endswith("; it counts as -7")
        else:
            assert one == Scored({"number": number, "step": 0.5}, number + 0.5)


def test_many_in_one_batch_and_neighbours(scorer):
    texts = ["nan", "leave", "1", "leave", "leave", "2", "fail", "3"]
    scored = scorer.score(texts, [{}] * len(texts))
    assert [one.total for one in scored] == [-7, -7, 1, -7, -7, 2, -7, 3]
    assert "of a record without id" in scored[0].error
    assert scorer.score([], []) == []


def test_a_process_is_kept_until_it_dies():
    with Scorer("tests.experiments.training.test_scoring:process", workers=1) as scorer:
        first, second, lost, third = (scorer.score([text], [{}])[0] for text in ("a", "b", "leave", "c"))
        assert first.total == second.total != third.total and lost.error
        assert os.getpid() not in (first.total, third.total)
        os.kill(int(third.total), signal.SIGKILL)  # between two requests: nobody's fault
        os.waitid(os.P_PID, int(third.total), os.WEXITED | os.WNOWAIT)
        after = scorer.score(["d"], [{}])[0]
        assert after.error is None and after.total != third.total
        last = int(after.total)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{last}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{last}").exists()


def test_the_run_is_over_when_too_many_fail():
    with Scorer(OWN, workers=1, max_failed_share=0.05) as scorer:
        scorer.score(["nan"] * 5, [{}] * 5)
        assert not scorer.is_over()  # 5 of at least 100
        scorer.score(["nan"], [{}])
        assert scorer.is_over() and (scorer.failed, scorer.scored) == (6, 6)
        scorer.score(["1"] * 114, [{}] * 114)
        assert not scorer.is_over()  # 6 of 120
        scorer.score(["nan"], [{}])
        assert scorer.is_over()


def test_options_records_and_evidence_reach_the_reward():
    with Scorer(OWN, options={"factor": 3.0}, workers=1) as scorer:
        assert scorer.score(["2"], [{}])[0].terms == {"number": 6.0, "step": 0.0}
    with Scorer("tests.experiments.training.test_scoring:seen", workers=1) as scorer:
        records, evidence = [{"bonus": 10}, {"bonus": 20}], [[{}, {}], None]
        assert [one.total for one in scorer.score(["1", "2"], records, evidence)] == [13.0, 22.0]
        with pytest.raises(ValueError):
            scorer.score(["1"], records)


def test_published_names_give_what_the_registry_gives():
    sample = {"task": "General video QA MCQ", "answer": "B", "duration": 6.0, "evidence": []}
    texts = ["<think>a</think><answer>B</answer>", "<think>a</think><answer>C</answer>", "B"]
    for name in ("open_o3_paper", "article"):
        with Scorer(name, workers=1) as scorer:
            totals = [one.total for one in scorer.score(texts, [sample] * 3, step_percent=0.3)]
        assert totals == [registry.total(name, text, sample) for text in texts]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "good",
            {},
            "'good' is unknown; use one of format, open_o3, open_o3_paper, article, article_literal, over",
        ),
        ("tests.nothing:reward", {}, "importing 'tests.nothing' failed .ModuleNotFoundError"),
        ("tests.experiments.training.test_scoring:nothing", {}, "has no such function"),
        ("tests.experiments.training.test_scoring:no_function", {}, "has no function, but other things"),
        (OWN, {"faktor": 1}, "has no option 'faktor'; it has factor, step_percent"),
        ("article", {"mod": "literal"}, "has no option 'mod'; it has evidence, mode, source, space, weights"),
    ],
)
def test_a_reward_that_cannot_be_had_is_named(name, options, words):
    with pytest.raises(UserError, match=words):
        registry.prepare(name, options)
    with pytest.raises(UserError, match=words):
        Scorer(name, options=options)


def test_a_module_that_kills_its_importer_is_named(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text("import os\nos._exit(4)\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit('bye')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"'deadly:f' cannot be had: importing it, the process crashed .exit code 4"
    ):
        Scorer("deadly:f")
    with pytest.raises(UserError, match="importing 'leaving' failed .SystemExit: bye"):
        Scorer("leaving:f")


@pytest.mark.parametrize("change", [{"workers": 0}, {"time_limit_s": 0}, {"fallback": math.nan}])
def test_arguments_that_make_no_sense(change):
    with pytest.raises(UserError, match="scoring needs"):
        Scorer(OWN, **change)


def test_the_registry_reads_numbers_of_any_kind():
    import numpy as np

    assert registry._terms(np.float32(0.5)) == {"total": 0.5}
    assert registry._terms({"a": np.array(1), "b": True}) == {"a": 1.0, "b": 1.0, "total": 2.0}


def test_rewards_are_imported_only_when_used():
    code = "import sys, experiments.training.scoring; print({'nltk', 'scipy', 'jax'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
