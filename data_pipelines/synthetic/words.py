"""The words of the synthetic world in English and Chinese: names of objects, questions, events."""

from __future__ import annotations

LANGUAGES = ("en", "zh")
CHINESE = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "orange": "橙色",
    "circle": "圆形",
    "square": "方形",
    "triangle": "三角形",
    "star": "星形",
    # of no scene that a model is trained on, see experiments/evaluation/shifts.py
    "pink": "粉色",
    "white": "白色",
    "brown": "棕色",
    "turquoise": "青色",
    "black": "黑色",
    "gold": "金色",
    "diamond": "菱形",
    "cross": "十字形",
}

QUESTIONS = {
    ("interval", "en"): (
        "When is the {x} visible{nth}?",
        "From when to when can the {x} be seen{nth}?",
        "During which time is the {x} on screen{nth}?",
        "In which interval is the {x} visible{nth}?",
    ),
    ("interval", "zh"): (
        "{x}{nth}什么时候可见?",
        "从什么时候到什么时候能{nth}看到{x}?",
        "{x}{nth}可见的时间段是什么?",
    ),
    ("appears", "en"): (
        "When does the {x} appear{nth}?",
        "At what time does the {x} appear{nth}?",
        "At which second does the {x} come into view{nth}?",
    ),
    ("appears", "zh"): (
        "{x}{nth}什么时候出现?",
        "{x}{nth}在第几秒出现?",
        "{x}是何时{nth}出现的?",
    ),
    ("where", "en"): (
        "Where is the {x} at {t} s?",
        "At {t} s, where is the {x}?",
        "Give the position of the {x} at {t} s.",
        "In which box is the {x} at {t} s?",
    ),
    ("where", "zh"): (
        "{t}秒时{x}在哪里?",
        "在{t}秒,{x}在什么位置?",
        "请给出{x}在{t}秒的位置。",
    ),
    ("color", "en"): (
        "What color is the object that {event}?",
        "What is the colour of the object that {event}?",
        "Name the color of the object that {event}.",
    ),
    ("color", "zh"): (
        "{event}的物体是什么颜色?",
        "{event}的物体的颜色是什么?",
        "请说出{event}的物体的颜色。",
    ),
    ("shape", "en"): (
        "What shape is the object that {event}?",
        "What is the shape of the object that {event}?",
        "Name the shape of the object that {event}.",
    ),
    ("shape", "zh"): (
        "{event}的物体是什么形状?",
        "{event}的物体的形状是什么?",
        "请说出{event}的物体的形状。",
    ),
    ("first", "en"): (
        "Which {event}, the {x} or the {y}?",
        "What {event}: the {x} or the {y}?",
        "Of the {x} and the {y}, which {event}?",
    ),
    ("first", "zh"): (
        "{x}和{y}哪个{event}?",
        "{event}的是{x}还是{y}?",
        "{x}与{y},哪一个{event}?",
    ),
    ("mcq", "en"): ("Which object {event}?", "Which of these objects {event}?", "What {event}?"),
    ("mcq", "zh"): ("哪个物体{event}?", "下列哪个物体{event}?", "{event}的是哪个物体?"),
    ("count", "en"): (
        "How many objects are visible at {t} s?",
        "How many objects can be seen at {t} s?",
        "At {t} s, how many objects are there?",
    ),
    ("count", "zh"): ("{t}秒时有几个物体?", "在{t}秒能看到几个物体?", "{t}秒时可见的物体有多少个?"),
    ("count color", "en"): (
        "How many {color} objects appear in the video?",
        "How many {color} objects are there in the video?",
        "What is the number of {color} objects in the video?",
    ),
    ("count color", "zh"): (
        "视频中有几个{color}物体?",
        "视频中出现了几个{color}物体?",
        "视频里{color}物体的数量是多少?",
    ),
}
NEVER = {"en": ("The {x} never appears.", "It never appears."), "zh": ("{x}从未出现。", "它从未出现。")}
EVENTS = {  # (appears or disappears, which) -> words
    ("appears", "first"): {"en": "appears first", "zh": "最先出现"},
    ("appears", "last"): {"en": "appears last", "zh": "最后出现"},
    ("disappears", "first"): {"en": "disappears first", "zh": "最先消失"},
    ("disappears", "last"): {"en": "disappears last", "zh": "最后消失"},
    ("appears", "at"): {"en": "appears at {t} s", "zh": "在{t}秒出现"},
}
VISITS = {"en": (" for the first time", " for the second time"), "zh": ("第一次", "第二次")}


def object_name(color: str, shape: str, language: str) -> str:
    """Returns "red circle" or "红色圆形"."""
    return f"{color} {shape}" if language == "en" else CHINESE[color] + CHINESE[shape]
