"""The six tasks of the published data, by the names that records, prompts and rewards have for them."""

from __future__ import annotations

SPATIO_TEMPORAL = "temporal-spatial free-form QA"
TEMPORAL = "temporal QA"
TEMPORAL_MCQ = "temporal QA (MCQ)"
VISUAL = "visual QA"  # about an image
MCQ = "General video QA MCQ"
FREE_FORM = "General video QA Free-form"
TASKS = (SPATIO_TEMPORAL, TEMPORAL, TEMPORAL_MCQ, VISUAL, MCQ, FREE_FORM)
