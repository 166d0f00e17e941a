"""The consistency experiment: is an answer right where its evidence is, and sure where it is right?

`o3jax evaluate --benchmark consistency`: questions of the synthetic world's test split at levels 1 to 3, and
some of them under shifts. Evidence is right if the times and boxes of all claims are, see `observing`. The
answers with what was seen of them are kept in the workdir, so that figures can be taken again without a
model: another calibration needs no new answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipelines.synthetic.datasets import claim_folder
from experiments.cli import terminal
from experiments.evaluation import calibrating
from experiments.evaluation.observing import Line, Part, lines_of
from experiments.evaluation.reviewed import lines_of_reviews
from experiments.evaluation.shifts import SHIFTS
from o3jax.api import Model
from o3jax.verify import calibration, reasons, risk
from o3jax.verify.confidence import MEDIUM
from o3jax.verify.confidence_model import Calibration, fingerprint
from o3jax.verify.signals import VERSION
from o3jax.verify.verdict import verdict

LEVELS = (1, 2, 3)
_SPLITS = 100  # of the test of the bound


def parts(split: str, count: int, seed: int, shifted: int) -> list[Part]:
    """Returns `count` questions, in equal shares of the levels, and `shifted` under each shift, of levels 1
    and 2. The shifted questions are among the first of those that are asked as they are."""
    plain = [Part(level, split, -(-count // len(LEVELS)), seed=seed) for level in LEVELS]
    changed = [
        Part(level, split, max(1, shifted // 2), shift, seed) for shift in SHIFTS[1:] for level in (1, 2)
    ]
    return plain + (changed if shifted else [])


def collect(model: Model, asked: Sequence[Part], folder: Path) -> list[Line]:
    """Returns the answers to all parts, with a bar; those that the folder holds are not asked again.

    Raises:
        UserError: if the folder holds answers of another model, or something else.
    """
    claim_folder(folder, {"answers of": fingerprint(model.folder), "signals": VERSION}, ("clips",))
    lines: list[Line] = []
    with terminal.progress() as progress:
        bar = progress.add_task("answering", total=sum(part.count for part in asked))
        for part in asked:
            progress.update(bar, description=f"level {part.level}, {part.shift}")
            lines += lines_of(model, part, folder, lambda n: progress.advance(bar, n))
    return lines


def run_calibration(
    load: Callable[[], Model],
    folder: Path,
    count: int,
    seed: int,
    console: Console,
    reviews: Path | None = None,
) -> dict[str, Any]:
    """Returns the figures of the calibration that it writes into the model's folder, printed too.

    Args:
        reviews: a folder of answers with what people said of them, which count beside the made questions.
    """
    model = load()
    reviewed = [] if reviews is None else lines_of_reviews(model, reviews)
    asked = parts("val", count * 3 // 4, seed, count // 4 // (len(SHIFTS) - 1))
    lines = collect(model, asked, folder) + reviewed
    data = {"world": "synthetic", "parts": {part.name: part.count for part in asked}}
    if reviews is not None:
        data["reviews"] = len(reviewed)
        console.print(f"reviewed answers of {reviews} that the model gives again: {len(reviewed)}")
    figures = calibrating.calibrate(model.folder, lines, data)
    table = Table("predictor of", "kind", "fit on", "held out", "accuracy", "ECE", "Brier", "AUROC")
    for which, found in figures.items():
        held = found["held_out"]
        numbers = (_number(held[name]) for name in ("accuracy", "ece", "brier", "auroc"))
        table.add_row(which, found["kind"], str(found["fit"]), str(held["N"]), *numbers)
    console.print(table)
    for which in ("full", "cheap"):
        for bound in figures[which]["bounds"]:
            console.print(f"{which}: {_promise(bound)}")
    removed = calibrating.ablation(lines)
    table = Table("signals", "alone: AUROC", "Brier", "without them: AUROC", "Brier")
    for row in removed:
        cells = [
            _number(one and one[name])
            for one in (row["alone"], row["without"])
            for name in ("auroc", "brier")
        ]
        table.add_row(row["signals"], *cells)
    console.print(table)
    return {"benchmark": "calibrate", "model": str(model.folder), **figures, "ablation": removed}


def run_consistency(
    load: Callable[[], Model], folder: Path, count: int, seed: int, console: Console
) -> dict[str, Any]:
    """Returns the report of the experiment, printed as tables too; its diagram is `reliability.png`."""
    model = load()
    asked, fitted = parts("test", count, seed, count // 10), model.calibration
    result = report(collect(model, asked, folder), fitted)
    result |= {"benchmark": "consistency", "model": str(model.folder), "seed": seed}
    _print(result, console)
    _draw(result, folder / "reliability.png")
    console.print(f"diagram: {folder / 'reliability.png'}")
    return result


def report(lines: Sequence[Line], fitted: Calibration | None) -> dict[str, Any]:
    """Returns the figures of answers, with the confidences that a calibration gives them, if there is one."""
    sure = {(line.shift, line.id): _confidence(line, fitted) for line in lines}
    plain = [line for line in lines if line.shift == "none"]

    def figures(some: Sequence[Line]) -> dict[str, Any]:
        own = [sure[line.shift, line.id] for line in some]
        return calibration.report(own, [line.correct for line in some])

    confidence, right = [sure["none", line.id] for line in plain], [line.correct for line in plain]
    shifts = {}
    for shift in SHIFTS[1:]:
        changed = [line for line in lines if line.shift == shift]
        if changed:
            ids = {line.id for line in changed}
            same = [sure["none", line.id] for line in plain if line.id in ids]
            unchanged = float(np.mean(same)) if same else None
            shifts[shift] = _head(figures(changed)) | {"unchanged_confidence": unchanged}
    hidden = {line.id: line for line in lines if line.shift == "hidden"}
    falls = [
        sure["none", line.id] - sure["hidden", line.id]
        for line in plain
        if line.correct and line.id in hidden
    ]
    return {
        "calibrated": fitted is not None,
        "levels": {
            level: _head(figures([x for x in plain if x.level == level]))
            for level in sorted({line.level for line in plain})
        },
        "all": figures(plain),
        "mean token probability": _head(
            calibration.report([verdict(line.seen, None).confidence for line in plain], right)
        ),
        "evidence": consistency(plain),
        "no_review": calibration.selective(confidence, right, MEDIUM),
        "bounds": _bounds(confidence, right, fitted),
        "shifts": shifts,
        "hidden_fall_median": float(np.median(falls)) if falls else None,
        "hidden_fall_N": len(falls),
    }


def consistency(lines: Sequence[Line]) -> dict[str, Any]:
    """Returns accuracy where all evidence of an answer is right and where it is not, with 95 % intervals."""
    found = {}
    for name, wanted in (("right", True), ("wrong", False)):
        mine = [x.correct for x in lines if (any(x.evidence_right) and all(x.evidence_right)) == wanted]
        share = sum(mine) / len(mine) if mine else None
        found[name] = {
            "N": len(mine),
            "accuracy": share,
            "interval": calibration.interval(sum(mine), len(mine)),
        }
    both = [found[name]["accuracy"] for name in ("right", "wrong")]
    return found | {"gap": both[0] - both[1] if None not in both else None}


def _confidence(line: Line, fitted: Calibration | None) -> float:
    if line.never:
        return reasons.MOST
    full = line.seen.kept is not None or line.seen.hidden is not None
    return verdict(line.seen, fitted, full).confidence


def _bounds(
    confidence: Sequence[float], right: Sequence[bool], fitted: Calibration | None
) -> list[dict[str, Any]]:
    """Returns what was promised and what came of it on these answers; and how many of 100 promises made on
    one half of them the other half keeps."""
    sure, good = np.asarray(confidence), np.asarray(right, bool)
    rng, found = np.random.default_rng(0), []
    for rate in risk.RATES:
        kept = made = 0
        for _ in range(_SPLITS):
            order = rng.permutation(len(sure))
            half, rest = np.array_split(order, 2)
            bound = risk.bound(sure[half], good[half], rate)
            made += bound.threshold is not None
            taken = rest[sure[rest] >= bound.threshold] if bound.threshold is not None else []
            kept += not len(taken) or bool((~good[taken]).mean() <= rate)
        row = {"rate": rate, "resplits_kept": kept, "resplits_promised": made}
        for promised in fitted.full.bounds if fitted else ():
            if promised.rate == rate and promised.threshold is not None:
                row |= {"threshold": promised.threshold}
                row |= calibration.selective(confidence, right, promised.threshold)
        found.append(row)
    return found


def _head(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in ("N", "accuracy", "confidence", "ece", "brier", "auroc")}


def _print(result: dict[str, Any], console: Console) -> None:
    words = "calibrated" if result["calibrated"] else "uncalibrated: o3jax evaluate --calibrate fits one"
    title = f"{result['model']}, {words}"
    table = Table("", "N", "accuracy", "confidence", "ECE", "Brier", "AUROC", title=title)

    def row(name: str, figures: dict[str, Any]) -> None:
        numbers = (_number(figures[key]) for key in ("accuracy", "confidence", "ece", "brier", "auroc"))
        table.add_row(name, str(figures["N"]), *numbers)

    for level, figures in result["levels"].items():
        row(f"level {level}", figures)
    row("all", result["all"])
    row("all, by mean token probability", result["mean token probability"])
    for shift, figures in result["shifts"].items():
        row(f"shift: {shift} (unchanged: {_number(figures['unchanged_confidence'])})", figures)
    console.print(table)
    for name in ("right", "wrong"):
        found = result["evidence"][name]
        low, high = found["interval"]
        console.print(
            f"accuracy where the evidence is {name}: {_number(found['accuracy'])} "
            f"(95 %: {low:.3f}-{high:.3f}, N = {found['N']})"
        )
    passed = result["no_review"]
    console.print(f"gap: {_number(result['evidence']['gap'])}")
    console.print(
        f"no review needed (confidence >= {MEDIUM}): {passed['coverage']:.1%} of the answers, "
        f"accuracy {_number(passed['accuracy'])}"
    )
    for bound in result["bounds"]:
        console.print(
            f"error at most {bound['rate']:.0%}: of 100 halves {bound['resplits_promised']} make a promise, "
            f"{bound['resplits_kept']} are not proved wrong by the other half"
            + (
                f"; the calibration's threshold {bound['threshold']:.2f} lets {bound['coverage']:.1%} pass, "
                f"accuracy {_number(bound['accuracy'])}"
                if "threshold" in bound
                else ""
            )
        )
    fall, count = _number(result["hidden_fall_median"]), result["hidden_fall_N"]
    console.print(f"with its evidence hidden a right answer's confidence falls by {fall} (median of {count})")


def _promise(bound: dict[str, Any]) -> str:
    if bound["threshold"] is None:
        return f"no confidence promises an error of at most {bound['rate']:.0%}"
    return (
        f"at a confidence of {bound['threshold']:.2f} and more at most {bound['rate']:.0%} are wrong, with "
        f"{bound['certainty']:.0%} certainty; {bound['coverage']:.1%} of the answers pass"
    )


def _draw(result: dict[str, Any], path: Path) -> None:
    """Draws the reliability diagram and the risk-coverage curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.5))
    bins = result["all"]["bins"]
    left.plot([0, 1], [0, 1], color="grey", linewidth=1)
    left.bar([b["low"] + 0.05 for b in bins], [b["accuracy"] for b in bins], 0.09, color="#6699cc")
    left.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o", color="#224466")
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title="reliability")
    curve = result["all"]["risk_coverage"]
    right.step([p["coverage"] for p in curve], [p["risk"] for p in curve], where="post", color="#224466")
    right.set(xlabel="coverage", ylabel="share wrong", xlim=(0, 1), ylim=(0, 1), title="risk and coverage")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
