"""V-STaR: what, when and where, along two chains of questions (`V_STaR_test.json`, videos by their `vid`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import values
from data_pipelines.formats.benchmarks.item import VIDEO, BoxesAt, Frames, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items
from data_pipelines.formats.fields import NUMBER, read_field, wrong

LAYOUT = "V_STaR_test.json and videos/{vid}.mp4"
PARTS = ("vqa", "temporal", "spatial", "spatial_2", "temporal_2")
_MAX_NEW_TOKENS = 2048


def load(root: Path) -> list[Item]:
    """Returns the items; `tags` hold the record's other fields by their names."""
    path, media = find(root, "V_STaR_test.json"), Media(root)
    return read_items(path, lambda row, number: _item(row, number, media))


def _item(row: dict[str, Any], number: int, media: Media) -> Item:
    vid, fps = values.text(row, "vid"), read_field(row, "fps", NUMBER)
    count = read_field(row, "frame_count", NUMBER)
    width, height = (read_field(row, name, NUMBER) for name in ("width", "height"))
    if min(fps, width, height) <= 0:
        raise wrong("fps", "and width and height must be positive")
    boxes = []
    for box in read_field(row, "bboxes", list):
        corners = [float(read_field(box, name, NUMBER, inside="bboxes")) for name in _CORNERS]
        size = (width, height, width, height)
        shares = tuple(corner / side for corner, side in zip(corners, size, strict=True))
        boxes.append(BoxesAt(float(read_field(box, "timestamp", NUMBER, inside="bboxes")), (shares,)))
    names = ("temporal_question", "spatial_question", "spatial_question_2")
    asked = {name: values.text(row, name) for name in names}
    kept = ("fps", "width", "height", "frame_count", "timestamps", "bboxes", "vid", "chain", "object")
    seconds = round(count / fps, 2)
    return Item(
        id=f"{vid}-{number}",
        video=media.video(vid),
        question=values.text(row, "question"),
        answer=values.text(row, "answer"),
        intervals=(values.interval(row.get("timestamps"), "timestamps"),),
        boxes=tuple(boxes),
        duration=seconds,
        tags={
            **asked,
            **{name: row.get(name) for name in kept},
            "domain": values.text(row, "domain", default="unknown"),
            "length": "Short" if seconds < 60 else "Medium" if seconds < 180 else "Long",
            # About 3 % of the items; a box that is alone says little about a chain.
            "boxes": "one box" if len(boxes) == 1 else "several boxes",
        },
    )


_CORNERS = ("xmin", "ymin", "xmax", "ymax")

# The interface strings of the published evaluation (Open-o3 Video, eval/test/test_vstar_multi_images.py).
_THINK = (
    "You must first think about the reasoning process in the mind and then provide the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
    "respectively."
)
_GROUNDED = (
    f"{_THINK} All reasoning must be grounded in visual evidence from the video. When you mention any "
    "related object, person, or specific visual element, you must strictly follow the following format: "
    "`<obj>object_name</obj><box>bounding_box</box>at<t>time_in_seconds</t>s`. Do not use <box>, <obj> and "
    "<t> in the answer part."
)
_FROM_TO = "follow the following format: `From <t>start_time</t>s to <t>end_time</t>s'"
_BOXES = " with a series of bounding boxes in [x1, y1, x2, y2] format.\n"
_KEYS = "The keys should be the whole seconds (as strings), and the values should be the {} in {} format.\n"


def _prompts(item: Item, think: bool) -> list[Prompt]:
    tags, boxes = item.tags, item.tags["bboxes"]
    first, last = math.ceil(item.intervals[0][0]), math.floor(item.intervals[0][1])
    seconds = list(range(first, last + 1)) or [first]  # of an event inside one second there are none
    length = f"This video is {item.duration:g} seconds long"
    when = f"Answer the question about the video: {tags['temporal_question']} \n"
    must = f"The answer must {_FROM_TO}" if think else f"You must {_FROM_TO}."
    directly = "" if think else "Directly output the start and end moment timestamps. "
    where = f"{VIDEO}\nPlease answer the question about the video: "
    reasoned, part = (f"{_THINK}\n", "In the answer part, for") if think else ("", "For")
    example = "Example output of the answer part:" if think else "Example output:"
    whole = (
        f"{part} each whole second within the time range {seconds} provided (inclusive of the "
        "boundaries), output a series of bounding boxes of the object in JSON format. The keys should be the "
        "whole seconds (as strings), and the values should be the box in [x1, y1, x2, y2] format.\n"
        f'{example} {{"{seconds[0]}": [x1, y1, x2, y2],...}}\n'
    )
    n = len(boxes)
    related = (
        f"{part} each whole second that may related to the question, output a series of bounding boxes of "
        f"the object in JSON format. You only need to output {n} bbox(es). You need to determine which "
        "frame is related to the question, and you don't need to output the bbox for the frames not "
        f"related to the question.\n{_KEYS.format('bounding box', '[x0,y0,x1,y1]')}\n{example}\n"
        f'{{"0": [x0,y0,x1,y1], "1":..., ..., "{n}":...}} (if the frames at 0~{n} second are related to the '
        "questions)\n"
    )
    known = (
        f"There are {n} bounding boxes of the key object related to the question in the video without "
        f"knowing the time, which are:{[[box[corner] for corner in _CORNERS] for box in boxes]}. "
    )
    texts = {
        "vqa": (
            f"Answer the question about the video: {item.question} \n (If the answer is a person, you don't "
            f"need to identify the person.){_GROUNDED if think else ''}"
        ),
        "temporal": f"{length}. {VIDEO}\n{when}{f'. {_THINK} ' if think else directly}{must}",
        "spatial": f"{where}{tags['spatial_question']}{_BOXES}{reasoned}{whole}",
        "spatial_2": f"{where}{tags['spatial_question_2']}{_BOXES}{reasoned}{related}",
        "temporal_2": (
            f"{length} with a resolution of {tags['width']}x{tags['height']} (width x height). "
            f"{VIDEO}\n{when}{known}{f'{_THINK} ' if think else directly}{must}"
        ),
    }
    system = "You are a helpful assistant."
    questions = {
        "vqa": item.question,
        "spatial": tags["spatial_question"],
        "spatial_2": tags["spatial_question_2"],
        "temporal": tags["temporal_question"],
        "temporal_2": tags["temporal_question"],
    }
    return [
        Prompt(texts[part], part, questions[part], system, max_new_tokens=_MAX_NEW_TOKENS) for part in PARTS
    ]


PROMPTS = {"official": lambda item: _prompts(item, False), "o3": lambda item: _prompts(item, True)}
# As large as they are, within the default of qwen-vl-utils for pictures.
FRAMES = dict.fromkeys(PROMPTS, Frames("seconds", 16, pixels=(4 * 32**2, 16384 * 32**2), all_pixels=2**40))
