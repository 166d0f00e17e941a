"""Fits the calibration of a model's confidences: `o3jax evaluate --calibrate --model_path M`.

Questions of the synthetic world that training never asks (the `val` split) are answered, at levels 1 to 3 and
a part of them under shifts. On two thirds of their clips each kind of predictor is fit and the best one
chosen, by its Brier score over folds; on the last third its figures and its error bounds are measured, which
nothing was fit on. In every kind a signal may move the confidence in its own direction only.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evaluation.observing import Line
from o3jax.files import write_json
from o3jax.verify import calibration, risk, signals
from o3jax.verify.confidence_model import CONFIDENCE, Predictor, Tree, fingerprint, predictor_json

KINDS = ("logistic", "logistic, isotonic", "boosted", "boosted, isotonic")
GROUPS = {  # of the ablation
    "agreement of text and decoder": (
        *("time_gap_s", "box_overlap", "inside", "worst_gap_s", "worst_overlap", "answer_gap_s"),
        "answer_overlap",
    ),
    "decoder's spread": ("spread_s", "length_s"),
    "decoder's logit": ("score", "worst_score"),
    "token likelihood": (
        *(
            "answer_likelihood",
            "answer_least",
            "likelihood",
            "least",
            "likelihood_evidence",
            "least_evidence",
        ),
    ),
    "relevance": ("relevance", "best_relevance", "searched"),
    "proposals": ("proposed", "margin"),
    "answer, evidence and question": ("fits", "named", "told"),
    "what is asked": ("asks_when", "asks_where", "asks_count", "asks_choice", "log_duration"),
    "form of the text": ("sound", "stated", "claims", "log_tokens"),
    "only its evidence shown": ("kept",),
    "its evidence hidden": ("without",),
}
_FOLDS, _SEED = 5, 0
_HELD_OUT = 3  # of so many clips one is


@dataclasses.dataclass(frozen=True)
class Rows:
    """Signals and truth, a row for each answer or piece of evidence."""

    names: tuple[str, ...]
    x: np.ndarray
    right: np.ndarray
    clip: np.ndarray  # a number of the clip that each is about

    def take(self, index: np.ndarray) -> Rows:
        return dataclasses.replace(self, x=self.x[index], right=self.right[index], clip=self.clip[index])

    def only(self, names: Sequence[str]) -> Rows:
        """Returns the rows with some of the signals."""
        return dataclasses.replace(
            self, names=tuple(names), x=self.x[:, [self.names.index(name) for name in names]]
        )

    def predict(self, predictor: Predictor) -> list[float]:
        return [predictor(dict(zip(self.names, row, strict=True))) for row in self.x.tolist()]


def rows_of(lines: Sequence[Line], which: str) -> Rows:
    """Returns the rows for "full", "cheap" or "evidence": of the answers whose confidence is calibrated."""
    lines = [line for line in lines if not line.never]
    if which == "evidence":
        names = signals.evidence_names()
        found = [
            (dataclasses.asdict(one), right, _clip(line))
            for line in lines
            for one, right in zip(signals.evidence_signals(line.seen), line.evidence_right, strict=True)
        ]
    else:
        names = signals.names(which == "full")
        found = [
            (signals.answer_signals(line.seen, which == "full"), line.correct, _clip(line)) for line in lines
        ]
    x = np.array([[values[name] for name in names] for values, _, _ in found])
    return Rows(names, x, *(np.array([one[i] for one in found]) for i in (1, 2)))


def calibrate(model_path: Path, lines: Sequence[Line], data: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of the calibration that it fits and writes into the model's folder."""
    found = {which: fit(rows_of(lines, which)) for which in ("full", "cheap", "evidence")}
    versions = {name: importlib.metadata.version(name) for name in ("scikit-learn", "numpy")}
    content = {
        "version": signals.VERSION,
        "model": fingerprint(model_path),
        "fit_on": data | {"answers": len(lines), **versions},
        **{
            which: predictor_json(predictor)
            | {"figures": {key: value for key, value in figures.items() if key != "bounds"}}
            for which, (predictor, figures) in found.items()
        },
    }
    write_json(model_path / CONFIDENCE, content)
    return {which: figures for which, (_, figures) in found.items()}


def fit(rows: Rows) -> tuple[Predictor, dict[str, Any]]:
    """Returns the best predictor and its figures on the rows that it was not fit on."""
    held = rows.clip % _HELD_OUT == 0
    train, test = rows.take(~held), rows.take(held)
    scores = {kind: _cross_validated(train, kind) for kind in KINDS}
    kind = min(scores, key=lambda kind: scores[kind]["brier"])
    predictor = _FIT[kind](train)
    confidence, right = test.predict(predictor), test.right
    bounds = tuple(risk.bound(confidence, right, rate) for rate in risk.RATES)
    figures = {
        "kind": kind,
        "fit": len(train.x),
        "held_out": _short(confidence, right),
        "folds": scores,
        "bounds": [dataclasses.asdict(one) for one in bounds],
    }
    return dataclasses.replace(predictor, bounds=bounds), figures


def ablation(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Returns what each group of signals brings, alone and to the others: figures on the held-out rows, with
    the kind of predictor that is best with all of them."""
    rows = rows_of(lines, "full")
    _, figures = fit(rows)

    def measured(names: Sequence[str]) -> dict[str, float]:
        some = rows.only(names)
        held = some.clip % _HELD_OUT == 0
        predictor = _FIT[figures["kind"]](some.take(~held))
        return _short(some.take(held).predict(predictor), some.take(held).right)

    table = [{"signals": "all", "alone": measured(rows.names), "without": None}]
    for group, mine in GROUPS.items():
        others = [name for name in rows.names if name not in mine]
        table.append({"signals": group, "alone": measured(mine), "without": measured(others)})
    return table


def _clip(line: Line) -> int:
    """Returns a number of the line's clip; the same clip under a shift has the same one."""
    return zlib.crc32("-".join(line.id.split("-")[:2]).encode())


def _short(confidence: Sequence[float], right: Sequence[bool]) -> dict[str, float]:
    found = calibration.report(confidence, right)
    return {name: found[name] for name in ("N", "accuracy", "confidence", "ece", "brier", "auroc")}


def _cross_validated(rows: Rows, kind: str) -> dict[str, float]:
    out = np.zeros(len(rows.x))
    for fold in range(_FOLDS):
        mine = rows.clip // _HELD_OUT % _FOLDS == fold
        if mine.any():
            out[mine] = rows.take(mine).predict(_FIT[kind](rows.take(~mine)))
    return _short(out, rows.right)


def _logistic(rows: Rows) -> Predictor:
    """Returns a logistic predictor; a signal that would move it the wrong way is left out, until none
    does."""
    from sklearn.linear_model import LogisticRegression

    means, scales = rows.x.mean(0), rows.x.std(0)
    scales[scales < 1e-6] = 1  # what never varies says nothing
    x = (rows.x - means) / scales
    sign = np.array([(name in signals.RISING) - (name in signals.FALLING) for name in rows.names])
    used = np.ones(len(rows.names), bool)
    while True:
        model = LogisticRegression(C=0.3, max_iter=2000).fit(x[:, used], rows.right)
        weights = np.zeros(len(used))
        weights[used] = model.coef_[0]
        wrong = weights * sign < 0
        if not wrong.any() or wrong[used].all():
            break
        used &= ~wrong
    return Predictor(rows.names, float(model.intercept_[0]), *map(_floats, (weights, means, scales)))


def _boosted(rows: Rows) -> Predictor:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    direction = [(name in signals.RISING) - (name in signals.FALLING) for name in rows.names]
    booster = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=80,
        max_leaf_nodes=6,
        min_samples_leaf=15,
        l2_regularization=5.0,
        monotonic_cst=direction,
        early_stopping=False,
        random_state=_SEED,
    )
    with threadpool_limits(1, "openmp"):  # threads that wait for each other take longer than so few rows
        model = booster.fit(rows.x, rows.right)
    trees = tuple(_tree(stage[0].nodes) for stage in model._predictors)
    predictor = Predictor(rows.names, float(np.ravel(model._baseline_prediction)[0]), trees=trees)
    # The library has no public form of its trees: what is stored must say what it says.
    expected = np.clip(model.predict_proba(rows.x)[:, 1], 0.01, 0.99)
    np.testing.assert_allclose(rows.predict(predictor), expected, atol=1e-6)
    return predictor


def _tree(nodes: np.ndarray) -> Tree:
    leaf = nodes["is_leaf"].astype(bool)
    return Tree(
        signal=tuple(np.where(leaf, -1, nodes["feature_idx"]).tolist()),
        threshold=tuple(np.where(leaf, 0.0, nodes["num_threshold"]).tolist()),  # whole: values lie on it
        left=tuple(nodes["left"].tolist()),
        right=tuple(nodes["right"].tolist()),
        value=_floats(nodes["value"]),
    )


def _isotonic(kind: Callable[[Rows], Predictor]) -> Callable[[Rows], Predictor]:
    """Returns a fit with an isotonic table behind the score, fit on folds that the score was not fit on."""

    def fitted(rows: Rows) -> Predictor:
        from sklearn.isotonic import IsotonicRegression

        scores = np.zeros(len(rows.x))
        for fold in range(_FOLDS):
            mine = rows.clip // (_HELD_OUT * _FOLDS) % _FOLDS == fold
            if mine.any():
                scores[mine] = _logits(rows.take(mine).predict(kind(rows.take(~mine))))
        model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, rows.right)
        table = tuple(zip(_floats(model.X_thresholds_), _floats(model.y_thresholds_), strict=True))
        return dataclasses.replace(kind(rows), table=table)

    return fitted


def _logits(probabilities: Sequence[float]) -> np.ndarray:
    p = np.asarray(probabilities)
    return np.log(p / (1 - p))


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.9g}") for value in np.asarray(values, np.float64).tolist())


_FIT = {
    "logistic": _logistic,
    "logistic, isotonic": _isotonic(_logistic),
    "boosted": _boosted,
    "boosted, isotonic": _isotonic(_boosted),
}
