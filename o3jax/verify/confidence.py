"""What a confidence means to a person: its word, whether somebody should look, how it is written."""

from __future__ import annotations

import math

HIGH = 0.8
MEDIUM = 0.6  # below it a person should look

LABELS = {
    "en": {"high": "high", "medium": "medium", "low": "low"},
    "zh": {"high": "高", "medium": "中", "low": "低"},
}


def label(confidence: float) -> str:
    """Returns the confidence in a word: "high" (>= 0.8), "medium" (>= 0.6) or "low"; see `LABELS`."""
    if confidence >= HIGH:
        return "high"
    return "low" if needs_review(confidence) else "medium"


def needs_review(confidence: float) -> bool:
    """Returns whether a person should check: the confidence is below 0.6 (or no number)."""
    return not confidence >= MEDIUM


def format_confidence(confidence: float) -> str:
    """Returns the confidence with two decimals, rounded down so that it never reads as a higher label."""
    return f"{math.floor(confidence * 100 + 1e-9) / 100:.2f}" if math.isfinite(confidence) else "-"
