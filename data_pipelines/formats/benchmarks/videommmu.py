"""VideoMMMU: questions on lectures, on three tracks (a parquet file in the folder of each)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import choice, values
from data_pipelines.formats.benchmarks.item import OPEN_O3_FRAMES, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items
from data_pipelines.formats.fields import wrong

LAYOUT = "{Perception,Comprehension,Adaptation}/test-00000-of-00001.parquet and videos/{discipline}/{id}.mp4"
TRACKS = ("Perception", "Comprehension", "Adaptation")
DISCIPLINES = {
    "Art": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health"
    ),
    "Humanities": "History Literature Psychology Sociology",
    "Engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
        "Mechanical_Engineering"
    ),
}


def load(root: Path) -> list[Item]:
    """Returns the items of all tracks; a question is open where it has no options, whatever its type says."""
    media, items = Media(root), []
    for track in TRACKS:
        path = find(root, f"{track}/test*.parquet", f"{track}*.parquet")
        items += read_items(path, lambda row, _, track=track: _item(row, track, media))
    return items


def _item(row: dict[str, Any], track: str, media: Media) -> Item:
    qid = values.text(row, "id")
    given = values.parsed(row, "options")
    options = values.options(given) if given else ()
    answer = values.text(row, "answer")
    picture = row.get("image")
    picture = picture.get("bytes") if isinstance(picture, dict) else picture
    if picture is not None and not isinstance(picture, bytes):
        raise wrong("image", "must hold the bytes of a picture")
    subject = qid.partition("_")[2].rpartition("_")[0] or "unknown"
    return Item(
        id=f"{track}-{qid}",
        video=media.video(qid),
        question=values.text(row, "question"),
        answer=values.letter(answer, options) if options else answer,
        options=options,
        tags={
            "track": track,
            "subject": subject,
            "discipline": next((d for d, of in DISCIPLINES.items() if subject in of.split()), "unknown"),
            "type": values.text(row, "question_type", default="unknown"),
            "image": picture,
        },
    )


_QUIZ = "Please ignore the Quiz question in last frame of the video."


def _official(item: Item) -> list[Prompt]:
    """Returns lmms-eval's prompt, which is the official one."""
    if item.tags["track"] != "Adaptation":
        return [Prompt(f"{choice.question(item)}\n{_QUIZ}")]
    kind = "multi-choice" if item.options else "open-ended"
    text = (
        "You should watch and learn the video content. Then apply what you learned to answer the following "
        f"{kind} question. The image for this question is at the end of the video.\n{choice.question(item)}"
    )
    return [Prompt(text, image=item.tags["image"])]


def _think(item: Item) -> list[Prompt]:
    """Returns the prompt of Open-o3 Video's evaluation."""
    track = item.tags["track"]
    learn = (
        "You should watch and learn the video content. Then apply what you learned to the question. Some key "
        "information of the question is in the input image."
    )
    said = learn if track == "Adaptation" else _QUIZ
    last = "the letter of the correct option." if item.options else "the final answer."
    text = (
        f"{choice.question(item)}\nQuestion Category:{track}\n{said}\n{choice.THINK} In the answer part, "
        f"respond with only {last}"
    )
    return [Prompt(text, image=item.tags["image"])]


PROMPTS = {"official": _official, "lmms": _official, "o3": _think}
FRAMES = {"o3": OPEN_O3_FRAMES}
