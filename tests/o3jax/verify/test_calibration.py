"""Figures of confidences and promises about them, against scikit-learn, scipy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, roc_auc_score

from o3jax.errors import UserError
from o3jax.verify import calibration, risk


def test_by_hand():
    """Four answers: two bins are used, and each is off by a known amount."""
    found = calibration.report([0.95, 0.95, 0.25, 0.25], [True, False, False, False])
    assert found["ece"] == pytest.approx(0.5 * 0.45 + 0.5 * 0.25)
    assert found["brier"] == pytest.approx((0.05**2 + 0.95**2 + 2 * 0.25**2) / 4)
    assert found["auroc"] == pytest.approx((0.5 + 1 + 1) / 3)  # a tie with one, above the other two
    assert found["risk_coverage"] == [
        {"threshold": 0.95, "coverage": 0.5, "risk": 0.5},
        {"threshold": 0.25, "coverage": 1.0, "risk": 0.75},
    ]
    assert [(b["low"], b["N"]) for b in found["bins"]] == [(0.2, 2), (0.9, 2)]


@pytest.mark.parametrize("decimals", [1, 2, 9])  # with one decimal there are many ties, and edges of bins
def test_against_scikit_learn(decimals):
    rng = np.random.default_rng(decimals)
    confidence = rng.random(500).round(decimals)
    correct = rng.random(500) < confidence**2
    found = calibration.report(confidence, correct)
    assert found["auroc"] == pytest.approx(roc_auc_score(correct, confidence))
    assert found["brier"] == pytest.approx(brier_score_loss(correct, confidence))
    ece, edges = 0.0, np.round(np.arange(11) / 10, 9)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        mine = (confidence >= low) & ((confidence < high) | (high == 1))
        if mine.any():
            ece += mine.sum() / 500 * abs(confidence[mine].mean() - correct[mine].mean())
    assert found["ece"] == pytest.approx(ece)
    for point in found["risk_coverage"]:
        taken = confidence >= point["threshold"]
        assert point["coverage"] == pytest.approx(taken.mean())
        assert point["risk"] == pytest.approx(1 - correct[taken].mean())


def test_extremes():
    assert calibration.report([1.0, 0.0], [True, False])["ece"] == 0
    assert calibration.report([1.0], [True])["auroc"] is None
    assert calibration.report([0.5] * 3, [False] * 3)["auroc"] is None


@pytest.mark.parametrize(
    "confidence, correct",
    [
        ([], []),
        ([0.5], [True, False]),
        ([1.1], [True]),
        ([float("nan")], [True]),
        (["x"], [True]),
        ([0.5], [2]),
    ],
)
def test_refused(confidence, correct):
    with pytest.raises(UserError):
        calibration.report(confidence, correct)


def test_wilson():
    expected = stats.binomtest(37, 50).proportion_ci(0.95, "wilson")
    assert calibration.interval(37, 50) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert calibration.interval(0, 0) == (0.0, 1.0)


def test_a_promise_is_kept():
    """Of 400 promises hardly more than 5 % are broken, counted on as many new answers."""
    rng, broken, made = np.random.default_rng(0), 0, 0
    for _ in range(400):
        confidence = rng.random((2, 1500))
        correct = rng.random((2, 1500)) < confidence
        found = risk.bound(confidence[0], correct[0], 0.2)
        if found.threshold is not None:
            made += 1
            broken += np.mean(~correct[1][confidence[1] >= found.threshold]) > 0.2
    assert made > 350 and broken <= 0.05 * 400 + 2 * np.sqrt(400 * 0.05 * 0.95)


def test_no_promise_without_answers_or_accuracy():
    # Of 2 x 80 answers 5 are wrong and all in the other half: C(155, 80) / C(160, 80) = 0.029. Of 2 x 79,
    # 4 break it: C(154, 79) / C(158, 79) = 0.060.
    assert risk.bound([0.99] * 79, [True] * 79, 0.05).threshold is None
    assert risk.bound([0.99] * 80, [True] * 80, 0.05) == risk.Bound(0.05, 0.95, 0.0, 1.0)
    assert risk.bound([0.9] * 500, [True, False] * 250, 0.1).threshold is None
    with pytest.raises(UserError, match="rate"):
        risk.bound([0.5], [True], 1.0)
