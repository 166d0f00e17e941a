"""How each benchmark is run and scored, by its name. A new one is a format and a line in `SUITE`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from data_pipelines.formats.benchmarks import registry, videomme, videomme_v2, worldsense
from data_pipelines.formats.benchmarks.registry import Format
from experiments.evaluation.benchmarks.chains import VideoZeroBench, VStar
from experiments.evaluation.benchmarks.scorers import Choice, Grouped, Intervals, NExTGQA, ReXTime, Scorer
from o3jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark: its files, its scorer, and what stands beside a model's figures."""

    scorer: Scorer
    headline: tuple[str, ...]  # the metrics of the overview
    note: str = ""  # what a reader of the figures must know
    # Published figures, in percent: model -> metric -> value.
    anchors: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


_RECALL = ("mIoU", "R1@0.3", "R1@0.5", "R1@0.7")


def _recall(*models: tuple[str, float | None, float, float, float]) -> dict[str, dict[str, float]]:
    """Returns anchors of (model, mIoU, R1@0.3, R1@0.5, R1@0.7)."""
    return {
        name: {metric: value for metric, value in zip(_RECALL, values, strict=True) if value is not None}
        for name, *values in models
    }


def _timelens(*models: tuple[str, float, float, float, float]) -> Benchmark:
    note = "the official parser rounds predictions to whole seconds, and reads `12.5s to 17.8s` as 12 to 17"
    return Benchmark(Intervals(rounded=True), _RECALL, note, _recall(*models))


def _tops(**values: float) -> dict[str, float]:
    return values


SUITE: dict[str, Benchmark] = {
    "vstar": Benchmark(
        VStar(),
        ("Acc", "m_tIoU_c1", "m_tIoU_c2", "m_vIoU_c1", "m_vIoU_c2", "mAM", "mLGM"),
        "about 22 % of the items need dialogue, 3.3 % have one box only (see the table by boxes); the "
        "official parser reads no boxes at `3.0` for those at 3 s",
        {
            "GPT-4o": _tops(
                Acc=60.8, m_tIoU_c1=16.7, m_tIoU_c2=12.8, m_vIoU_c1=6.5, m_vIoU_c2=3.0, mAM=26.8, mLGM=38.2
            ),
            "Qwen2.5-VL-7B": _tops(
                Acc=33.5, m_tIoU_c1=15.4, m_tIoU_c2=13.8, m_vIoU_c1=17.0, m_vIoU_c2=2.5, mAM=19.3, mLGM=22.4
            ),
            "Open-o3-Video-7B": _tops(
                Acc=61.0, m_tIoU_c1=24.5, m_tIoU_c2=24.0, m_vIoU_c1=25.4, m_vIoU_c2=6.0, mAM=33.7, mLGM=46.6
            ),
            "Qwen3-VL-8B": _tops(
                Acc=42.9, m_tIoU_c1=23.5, m_tIoU_c2=24.4, m_vIoU_c1=27.3, m_vIoU_c2=7.1, mAM=28.0, mLGM=34.4
            ),
            "Open-o3 Qwen3-VL-32B": _tops(
                Acc=64.6, m_tIoU_c1=26.4, m_tIoU_c2=26.0, m_vIoU_c1=33.6, m_vIoU_c2=11.9, mAM=37.9, mLGM=53.7
            ),
        },
    ),
    "videozerobench": Benchmark(
        VideoZeroBench(),
        ("level-1", "level-2", "level-3", "level-4", "level-5", "m_tIoU", "m_vIoU"),
        "the official rule takes an empty answer for a Chinese colour; ours does not",
        {"Open-o3-Video-4B": {"level-1": 17.6, "level-3": 5.8, "m_tIoU": 9.7, "m_vIoU": 9.9, "level-5": 0.0}},
    ),
    "tvgbench": Benchmark(
        Intervals(("type", "dataset"), strict=True, average=True),
        _RECALL,
        "answering with the whole video has mIoU 17.4 on the real files; the official parser reads no "
        "`From <t>3</t>s to <t>4</t>s`",
        _recall(
            ("Time-R1-7B", None, 41.8, 29.4, 16.4),
            ("Gemini-2.5-Pro", None, 39.1, 24.4, 12.8),
            ("TRACE", None, 37.0, 25.5, 14.6),
        )
        | {"Open-o3-Video-7B": {"mIoU": 20.8}, "Qwen2.5-VL-7B": {"mIoU": 16.3}},
    ),
    "charades_sta": Benchmark(
        Intervals(strict=True),
        _RECALL,
        "20.6 % of the queries are not unique: read it beside timelens_charades; lmms-eval's prompt tells "
        "the first real annotation as its example; the official parser reads nothing in `between 3 and 9`, "
        "and 12.5 to 17.8 in `17.8 - 12.5`",
        _recall(("Time-R1-7B", None, 78.1, 60.8, 35.3)) | {"Open-o3-Video-7B": {"mIoU": 42.5}},
    ),
    "activitynet": Benchmark(
        Intervals(strict=True),
        _RECALL,
        "the official parser reads no `From <t>3</t>s to <t>4</t>s`",
        _recall(("Time-R1-7B", None, 58.6, 39.0, 21.4)),
    ),
    "timelens_charades": _timelens(
        ("Qwen2.5-VL-7B", 39.3, 59.7, 37.8, 16.6),
        ("Qwen3-VL-8B", 48.3, 69.2, 53.4, 27.5),
        ("TimeLens-8B", 55.2, 76.6, 63.0, 35.2),
    ),
    "timelens_activitynet": _timelens(
        ("Qwen2.5-VL-7B", 31.4, 44.1, 31.0, 16.1),
        ("Qwen3-VL-8B", 46.8, 62.1, 51.2, 34.4),
        ("TimeLens-8B", 53.2, 68.9, 58.4, 40.6),
    ),
    "timelens_qvhighlights": _timelens(
        ("Qwen2.5-VL-7B", 31.6, 41.5, 27.8, 15.2),
        ("Qwen3-VL-8B", 59.4, 74.2, 64.6, 49.3),
        ("TimeLens-8B", 65.5, 80.2, 71.6, 55.5),
    ),
    "extremewhenbench": Benchmark(
        Intervals(("corpus", "category")),
        (*_RECALL, "unparsed"),
        "uniform frames of an hour are far apart; the official parser reads `20:00 - 21:00` as 0 to 21",
        {"Qwen3.5-9B, 768 frames": {"mIoU": 4.7}},
    ),
    "rextime": Benchmark(ReXTime(("source",)), ("VQA", "MR-mIoU", "MR-R1@0.3", "MR-R1@0.5", "VQA,mIoU@0.5")),
    "nextgqa": Benchmark(
        NExTGQA(("type",)),
        ("Acc@QA", "Acc@GQA", "mIoP", "mIoU", "TIoU@0.5"),
        "IoP rewards tiny intervals; as published, questions without a predicted interval are left out",
    ),
    "videomme": Benchmark(
        Choice(videomme.TABLES),
        ("accuracy",),
        "prompts and frame budgets of the harnesses differ by several points; published parsers take "
        "`Bananas` for B, and `A is wrong, B is right` for A",
        {
            "GPT-4o": {"accuracy": 71.9},
            "Qwen2.5-VL-7B": {"accuracy": 62.4},
            "Open-o3-Video-7B": {"accuracy": 63.6},
        },
    ),
    "videomme_v2": Benchmark(
        Grouped(videomme_v2.TABLES),
        ("score", "accuracy"),
        "a group of four questions is scored together; research use only; the official parser takes "
        "`Answer: Ambiguous` for A",
        {
            "human": {"score": 90.7},
            "Gemini-3-Pro": {"score": 49.4, "accuracy": 66.1},
            "Gemini-3-Flash": {"score": 42.5, "accuracy": 61.1},
            "Qwen3.5-397B-A17B-Think": {"score": 39.1},
        },
    ),
    "worldsense": Benchmark(
        Choice((*worldsense.TABLES, "audio")),
        ("accuracy",),
        "audio-visual, and this model does not hear; lmms-eval's parser takes `Answer: B` for A",
        {
            "GPT-4o": {"accuracy": 42.6},
            "Qwen2.5-VL-7B": {"accuracy": 36.1},
            "Open-o3-Video-7B": {"accuracy": 37.5},
        },
    ),
    "videommmu": Benchmark(
        Choice(("track", "discipline", "subject"), drop_empty_open=True),
        ("accuracy",),
        "as published, open answers without a character are left out of the denominator",
        {
            "GPT-4o": {"accuracy": 61.2},
            "Qwen2.5-VL-7B": {"accuracy": 51.2},
            "Open-o3-Video-7B": {"accuracy": 52.3},
        },
    ),
    "longvideo_reason": Benchmark(
        Choice(("type",), drop_failed=True),
        ("accuracy",),
        "as published, videos that failed are left out of the denominator",
        {"Qwen2.5-VL-7B": {"accuracy": 59.3}, "Open-o3-Video-7B": {"accuracy": 69.4}},
    ),
}


def form(name: str) -> Format:
    """Returns a benchmark's format; UserError if there is none of this name."""
    if name not in registry.FORMATS:
        raise UserError(f"unknown benchmark '{name}': there is {', '.join(registry.FORMATS)}")
    return registry.FORMATS[name]
