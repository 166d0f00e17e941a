"""Notes for people, about what was not read, shown or answered as asked: each in English and in Chinese."""

from __future__ import annotations

from typing import Any

# Whoever has something to say adds both languages here.
_SENTENCES = {
    # the file
    "cut off": (
        "cut off: {:.2f} s of {:.2f} s could be decoded",
        "文件不完整:{1:.2f}秒中只有{0:.2f}秒可以解码",
    ),
    "damaged": (
        "damaged near {:.2f} s; no wanted frame was lost",
        "文件在{:.2f}秒附近有损坏,所需的画面没有缺失",
    ),
    "left out": (
        "damaged: {} wanted times are left out, the first at {:g} s",
        "文件有损坏:缺少{}个所需时刻的画面,最早的在{:g}秒",
    ),
    "read error": ("reading stopped early because of damage in the file", "文件有损坏,读取提前停止"),
    "past the end": (
        "{} wanted times lie past that, the first at {:g} s",
        "有{}个所需时刻在此之后,最早的在{:g}秒",
    ),
    "clock": (
        "the file's clock jumps back {} times; what follows is shown after what came before",
        "文件的时钟回跳{}次,其后的画面接在之前的画面之后",
    ),
    "untimed": ("{} frames without a timestamp are not shown", "有{}帧没有时间戳,未显示"),
    "other sizes": (
        "the frame size changes; all frames were resized to the first one's size",
        "画面尺寸中途改变,所有帧都缩放到第一帧的尺寸",
    ),
    "slanted": (
        "the display matrix is not a right angle; the nearest one was applied",
        "显示矩阵不是直角旋转,已按最接近的直角处理",
    ),
    "pixel shape": (
        "pixels are declared not square ({}); frames are shown as stored",
        "文件声明像素不是正方形({}),画面按存储的样子显示",
    ),
    "key frames": (
        "key frames are too far apart ({} in all): the video was decoded from start to end",
        "关键帧间隔过大(共{}个),视频从头到尾解码",
    ),
    "index": (
        "the file's index of key frames is wrong: the video was decoded from start to end",
        "文件的关键帧索引有误,视频从头到尾解码",
    ),
    "no seeking": (
        "{} files cannot be searched by jumping: the video was decoded from start to end",
        "{}文件无法跳转查找,视频从头到尾解码",
    ),
    "cache damaged": (
        "what was kept of the video from an earlier question was damaged and was made anew",
        "先前提问保留的视频特征已损坏,已重新计算",
    ),
    "cache old": (
        "the video, the model or this program changed since the last question: the video was searched anew",
        "视频、模型或程序在上次提问后有变化,已重新搜索视频",
    ),
    # the search
    "searching coarse": ("searching from afar: {} of {}", "粗略搜索:{} / {}"),
    "searching cues": ("looking where much changes: {} of {}", "查看变化较大处:{} / {}"),
    "searching refine": ("looking closer where it is uncertain: {} of {}", "细看不确定处:{} / {}"),
    "searching fine": ("reading what is relevant: {} of {}", "读取相关片段:{} / {}"),
    "search": ("Searched: {} of {} frames decoded ({:g} %)", "搜索:解码{}帧,共{}帧({:g}%)"),
    "searched": ("relevant stretches: {}", "相关片段:{}处"),
    "searched short": ("the video is short enough to be read whole", "视频较短,已全部读取"),
    "searched named": ("the question names the time", "问题给出了时刻"),
    "searched lost": (
        "{} stretches seemed relevant but cannot be decoded: frames from all over the video were read",
        "有{}处似乎相关但无法解码,已均匀读取整个视频",
    ),
    "uniform": (
        "nothing seemed relevant: frames from all over the video were read",
        "没有似乎相关之处,已均匀读取整个视频",
    ),
    # the answer
    "never": ("It never appears.", "它从未出现。"),
    "never named": ("what is most like it, at {:.1f} s, is named {}", "最像的是{0:.1f}秒时的{1}"),
    "tokens": ("the text was cut off after {} tokens", "文本在{}个词元后被截断"),
    "no answer": ("the response gives no answer", "生成的文本中没有答案"),
    "empty answer": ("the answer is empty", "答案为空"),
    "open answer": ("the answer has no end", "答案没有结尾"),
    "answers": ("the response gives {} answers", "生成的文本中有{}个答案"),
    "loop": ("the response repeats itself", "生成的文本不断重复"),
    "unreadable": ("{} names, boxes or times cannot be read", "有{}处名称、边界框或时间无法识别"),
    "times outside": ("a time lies after the end of the video", "有时间在视频结束之后"),
    "no option": ("the answer is none of the options", "答案不在选项之中"),
    "claims outside": (
        "{} claims lie after the end of the video and were left out",
        "有{}条证据的时间在视频结束之后,已略去",
    ),
    # how sure the answer may be
    "times agree": ("text and decoder agree within {:.1f} s", "文本与证据解码器的时间相差不超过{:.1f}秒"),
    "times apart": ("text and decoder are {:.1f} s apart", "文本与证据解码器的时间相差{:.1f}秒"),
    "boxes agree": ("their boxes overlap (IoU {:.2f})", "两者的边界框重合(交并比{:.2f})"),
    "boxes apart": ("their boxes hardly overlap (IoU {:.2f})", "两者的边界框几乎不重合(交并比{:.2f})"),
    "decoder unsure": (
        "the decoder is unsure of the time (± {:.1f} s)",
        "证据解码器对时间没有把握(±{:.1f}秒)",
    ),
    "unlikely answer": (
        "a word of the answer is unlikely (probability {:.2f})",
        "答案中有可能性低的词(概率{:.2f})",
    ),
    "no evidence": ("the text names no evidence", "文本没有给出证据"),
    "kept": ("the answer stays when only this evidence is shown", "只看这些证据时答案不变"),
    "not kept": ("the answer changes when only its evidence is shown", "只看这些证据时答案改变"),
    "needed": ("the answer changes when this evidence is hidden", "隐藏这些证据后答案改变"),
    "not needed": ("the answer stays the same when its evidence is hidden", "隐藏这些证据后答案不变"),
}  # fmt: skip


class Note(str):
    """A note: the string is its English, `text("zh")` its Chinese."""

    __slots__ = ("_name", "_values")

    def __new__(cls, name: str, *values: Any) -> Note:
        note = super().__new__(cls, _SENTENCES[name][0].format(*values))
        note._name, note._values = name, values
        return note

    def __reduce__(self) -> tuple[type[Note], tuple[Any, ...]]:
        return Note, (self._name, *self._values)

    def text(self, language: str) -> str:
        """Returns the sentence in "en" or "zh"."""
        return _SENTENCES[self._name][language == "zh"].format(*self._values)


def text(note: str, language: str) -> str:
    """Returns a note in "en" or "zh"; what is only a string stays as it is."""
    return note.text(language) if isinstance(note, Note) else note
