"""Calibrations as files: they say what scikit-learn's predictors say, and only of the model they were fit
on."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from experiments.evaluation import calibrating
from experiments.evaluation.calibrating import Rows
from o3jax.errors import UserError
from o3jax.hf.folder import ASSETS
from o3jax.verify import signals
from o3jax.verify.confidence_model import (
    CONFIDENCE,
    fingerprint,
    predictor_json,
    read_calibration,
)
from o3jax.verify.risk import Bound
from tests.o3jax.verify.test_signals import fitted


def rows(names=("score", "kept", "time_gap_s", "claims")) -> Rows:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, len(names)))
    right = rng.random(400) < 1 / (1 + np.exp(-2 * x[:, 0] - x[:, 1] + x[:, 2]))
    return Rows(tuple(names), x, right, np.arange(400) // 2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    return tmp_path


def write(folder, **values):
    fit = fitted()
    content = {"version": signals.VERSION, "model": fingerprint(folder), "fit_on": {}}
    content |= {name: predictor_json(getattr(fit, name)) for name in ("full", "cheap", "evidence")}
    (folder / CONFIDENCE).write_text(json.dumps(content | values))


def test_logistic_is_scikit_learns():
    some = rows()
    found = calibrating._logistic(some)
    x = (some.x - some.x.mean(0)) / some.x.std(0)
    expected = LogisticRegression(C=0.3, max_iter=2000).fit(x, some.right).predict_proba(x)[:, 1]
    np.testing.assert_allclose(some.predict(found), np.clip(expected, 0.01, 0.99), atol=1e-6)


def test_boosted_is_scikit_learns_and_keeps_the_directions(folder):
    some = rows()
    found = calibrating._boosted(some)
    model = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=80, max_leaf_nodes=6, min_samples_leaf=15, l2_regularization=5.0,
        monotonic_cst=[1, 1, -1, 0], early_stopping=False, random_state=0,
    ).fit(some.x, some.right)  # fmt: skip
    expected = np.clip(model.predict_proba(some.x)[:, 1], 0.01, 0.99)
    np.testing.assert_allclose(some.predict(found), expected, atol=1e-6)
    for name, sign in (("score", 1), ("kept", 1), ("time_gap_s", -1)):
        values = [found({**dict.fromkeys(some.names, 0.0), name: v}) for v in np.linspace(-3, 3, 40)]
        assert (np.diff(values) * sign >= 0).all() and values[0] != values[-1]
    # As a file it says the same.
    write(folder, full=predictor_json(dataclasses.replace(found, bounds=(Bound(0.1, 0.95, 0.5, 0.8),))))
    again = read_calibration(folder).full
    assert some.predict(again) == some.predict(found) and again.bounds == (Bound(0.1, 0.95, 0.5, 0.8),)


def test_a_signal_in_the_wrong_direction_is_left_out():
    some = rows(("time_gap_s", "kept", "score", "claims"))  # a gap that goes with right answers
    weights = calibrating._logistic(some).weights
    assert weights[0] == 0 and weights[2] == 0 and weights[1] > 0


def test_the_best_kind_is_fit_on_two_thirds_of_the_clips():
    predictor, figures = calibrating.fit(rows())
    assert figures["fit"] + figures["held_out"]["N"] == 400 and figures["held_out"]["N"] == 134
    best = min(figures["folds"].values(), key=lambda fold: fold["brier"])
    assert figures["folds"][figures["kind"]] == best and figures["held_out"]["auroc"] > 0.8
    assert [bound.rate for bound in predictor.bounds] == [0.05, 0.1, 0.2]


def test_another_models_calibration_is_refused(folder):
    write(folder)
    assert read_calibration(folder).full == fitted().full
    for name, content in (
        ("model.safetensors", bytes(100) + bytes(range(256)) * 400),
        ("config.json", b"{ }"),
    ):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match="of another model: fit it again with o3jax evaluate --calibrate"):
            read_calibration(folder)
        (folder / name).write_bytes(before)
    assert read_calibration(folder)


def test_training_moves_the_fingerprint(folder):
    before = fingerprint(folder)
    weights = np.frombuffer((folder / "model.safetensors").read_bytes(), np.uint8).copy()
    weights[1000] ^= 1
    (folder / "model.safetensors").write_bytes(weights.tobytes())
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    "values, field",
    [
        ({"version": 0}, "other signals"),
        ({"full": {}}, "signals"),
        ({"cheap": {"signals": ["mood"]}}, "signals"),
        ({"evidence": 1}, "evidence"),
        ({"model": 3}, "model"),
    ],
)
def test_what_is_no_calibration_is_refused(folder, values, field):
    write(folder, **values)
    with pytest.raises(UserError, match=field):
        read_calibration(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": "x"},
        {"bias": float("nan")},
        {"weights": [1.0]},
        {"trees": [{}]},
        {
            "trees": [{"signal": [0], "threshold": [0], "left": [0], "right": [0], "value": [1]}]
        },  # goes nowhere
        {"trees": 3},
        {"table": [1]},
        {"table": [["a", 2]]},
        {"bounds": [{"rate": 1}]},
    ],
)
def test_a_malformed_predictor_is_refused(folder, change):
    write(folder, full=predictor_json(fitted().full) | change)
    with pytest.raises(UserError, match=CONFIDENCE):
        read_calibration(folder)


def test_there_may_be_none(folder):
    assert read_calibration(folder) is None


@pytest.mark.parametrize("folder", [p for p in ASSETS.iterdir() if (p / CONFIDENCE).is_file()], ids=str)
def test_shipped_calibrations_are_of_the_shipped_weights(folder):
    assert read_calibration(folder) is not None
