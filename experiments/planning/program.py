"""A compiled program -> its collectives, memory traffic and largest buffers, loops counted as they run.

XLA's own counts take the body of a loop once. Here an instruction counts as often as the loops around it run.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "token": 0, "opaque": 0}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# What moves nothing by itself: views, and what holds other instructions.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
_FREE |= {"iota", "after-all", "partition-id", "replica-id", "opt-barrier", "domain"}

_SLICES = ("dynamic-slice", "gather", "slice")

_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    shapes: tuple[tuple[str, int], ...]  # (type, elements) of the result, each part of a tuple
    operands: tuple[str, ...]
    rest: str  # the attributes
    root: bool
    line: str

    @property
    def bytes(self) -> float:
        return sum(_BYTES.get(kind, 4) * count for kind, count in self.shapes)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer between chips: how much each one sends in a step, over which axes, for which line."""

    kind: str
    wire_bytes: float  # by one chip, of all times that it runs
    axes: tuple[str, ...]  # of the mesh
    chips: int  # of a group
    chips_apart: int  # how far the numbers of a group reach: more than a node has, and it leaves the node
    times: float
    shape: str
    source: str


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A result that stands in memory."""

    gib: float
    shape: str
    source: str


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled program does on each chip."""

    collectives: list[Collective]
    traffic: float  # bytes read and written; what is fused counts where it enters and leaves
    buffers: list[Buffer]  # the largest first, one for each shape and line
    unknown_loops: int  # whose length depends on the data


def read_program(text: str, mesh: dict[str, int], assumed: int = 1) -> Program:
    """Returns what a program does.

    Args:
        text: of `jax.stages.Compiled.as_text()`.
        mesh: the axes' sizes, in the order in which the devices are numbered.
        assumed: how often a loop runs whose length depends on the data.
    """
    computations, entry = _parse(text)
    sources = _Sources(text)
    times, unknown = _times(computations, entry, assumed)
    collectives, buffers, traffic = [], {}, 0.0
    for name, count in times.items():
        by_name = {i.name: i for i in computations[name]}
        for i in computations[name]:
            kind = i.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                collectives.append(_collective(i, kind, count, mesh, sources))
            if i.opcode in _FREE or i.opcode.endswith("-done"):
                continue
            traffic += count * _moved(i, by_name, computations)
            buffer = Buffer(i.bytes / 2**30, _shape_text(i), sources.of(i.rest))
            buffers.setdefault((buffer.shape, buffer.source), buffer)
    largest = sorted(buffers.values(), key=lambda b: -b.gib)
    return Program(sorted(collectives, key=lambda c: -c.wire_bytes), traffic, largest, unknown)


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _LINE.match(line)):
            current.append(_instruction(found[1], found[2], "ROOT " in line[:8], line))
    return computations, entry


def _instruction(name: str, text: str, root: bool, line: str) -> Instruction:
    # The type may be a tuple with brackets inside; the opcode is the word before the first free bracket.
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, call = text[:end], text[end:].lstrip()
    opcode, _, _ = call.partition("(")
    start = len(opcode)
    stop = _closing(call, start)
    operands = tuple(re.findall(r"%([\w.\-]+)", call[start : stop + 1]))
    shapes = tuple(
        (t, math.prod(int(n) for n in dims.split(",")) if dims else 1) for t, dims in _SHAPE.findall(kind)
    )
    return Instruction(name, opcode.strip(), shapes, operands, call[stop + 1 :], root, line)


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0 and text[at] == ")":
            return at
    return len(text) - 1


def _called(i: Instruction) -> list[str]:
    """Returns the computations that an instruction runs, apart from those that are fused into it."""
    if i.opcode in ("while", "call", "async-start"):
        return re.findall(r"(?:body|to_apply|calls)=%?([\w.\-]+)", i.rest)
    if i.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
        named = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", i.rest)
        return re.findall(r"%?([\w.\-]+)", listed[1]) if listed else named
    return []


def _times(
    computations: dict[str, list[Instruction]], entry: str, assumed: int
) -> tuple[dict[str, float], int]:
    """Returns how often each computation runs, and how many loops do not tell their length.

    Every branch of a conditional counts: a chunk that may be skipped is planned for.
    """
    times: dict[str, float] = collections.defaultdict(float)
    unknown = 0

    def visit(name: str, count: float) -> None:
        nonlocal unknown
        times[name] += count
        for i in computations[name]:
            inner = count
            if i.opcode == "while":
                known = _length(i, computations)
                unknown += known is None
                inner = count * (assumed if known is None else known)
            for called in _called(i):
                if called in computations:
                    visit(called, inner)

    visit(entry, 1.0)
    return times, unknown


def _length(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """Returns how often a loop runs: as XLA notes it, or the one constant of its condition."""
    if noted := re.search(r'known_trip_count"?:?=?\{"?n"?[:=]"?(\d+)', loop.rest):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    waiting, constants = [condition[1]] if condition else [], set()
    while waiting:
        for i in computations.get(waiting.pop(), []):
            waiting += re.findall(r"calls=%?([\w.\-]+)", i.rest)
            if i.opcode == "constant" and (value := re.search(r"s32\[\]\S* constant\((\d+)\)", i.line)):
                constants.add(int(value[1]))
    return constants.pop() if len(constants) == 1 else None


def _moved(i: Instruction, by_name: dict[str, Instruction], computations: dict) -> float:
    """Returns the bytes that an instruction reads and writes."""
    read = sum(by_name[name].bytes for name in i.operands if name in by_name)
    if i.opcode in _SLICES:
        return 2 * i.bytes
    if i.opcode.endswith("-start"):  # its result holds its operands too
        return i.bytes
    if i.opcode == "dynamic-update-slice":
        return 2 * (by_name[i.operands[1]].bytes if i.operands[1] in by_name else i.bytes)
    if "__cublas" in i.rest:  # beside its product it has room to work in, of which it takes what it needs
        return read + i.bytes - sum(count for kind, count in i.shapes if kind == "s8")
    if i.opcode != "fusion":
        return read + i.bytes
    inner = _inner(i, computations)
    return _fused(i, inner, computations) if inner else read + i.bytes


def _inner(fusion: Instruction, computations: dict) -> list[Instruction]:
    """Returns the instructions that are fused into one."""
    return computations.get(next(iter(re.findall(r"calls=%?([\w.\-]+)", fusion.rest)), ""), [])


def _fused(fusion: Instruction, inner: Sequence[Instruction], computations: dict) -> float:
    """Returns the bytes of a fusion: of what is sliced the slices, of what is updated in place the part."""
    names = {i.name: i for i in inner}
    total = sum(_read(i, _users(inner), computations) for i in inner if i.opcode == "parameter")
    updates = [i for i in inner if i.opcode == "dynamic-update-slice"]
    if updates:
        return total + sum(2 * names[i.operands[1]].bytes for i in updates if i.operands[1] in names)
    return total + fusion.bytes


def _read(value: Instruction, users: dict, computations: dict) -> float:
    """Returns how many bytes of a value a fusion reads: what it slices, also in a fusion inside."""
    seen, total = _through_views(value, users), 0.0
    for user, position in seen:
        if user.opcode == "fusion":
            inner = _inner(user, computations)
            given = (i for i in inner if f" parameter({position})" in i.line)
            total += sum(_read(i, _users(inner), computations) for i in given)
        elif user.opcode not in (*_SLICES, "dynamic-update-slice") or position:
            return value.bytes
        elif user.opcode in _SLICES:  # what is overwritten in place, such as a row of a sum, is not read
            total += user.bytes
    return min(total, value.bytes) if seen else value.bytes


def _users(inner: Sequence[Instruction]) -> dict[str, list[tuple[Instruction, int]]]:
    """Returns who uses each value, and as which of its operands."""
    users: dict[str, list[tuple[Instruction, int]]] = collections.defaultdict(list)
    for i in inner:
        for position, operand in enumerate(i.operands):
            users[operand].append((i, position))
    return users


def _through_views(i: Instruction, users: dict) -> list[tuple[Instruction, int]]:
    """Returns who uses a value, views left out, and as which operand."""
    found = []
    for user, position in users[i.name]:
        if user.opcode in ("bitcast", "copy", "convert") and user.name != i.name and not user.root:
            found += _through_views(user, users)
        else:
            found.append((user, position))
    return found


def _collective(
    i: Instruction, kind: str, count: float, mesh: dict[str, int], sources: _Sources
) -> Collective:
    members, axes = _group(i.rest, mesh)
    chips, apart = max(len(members), 1), int(members.max() - members.min()) + 1
    # Apart from numbers that the chips agree by (u32[]), a start holds its operands and its results.
    sizes = [_BYTES.get(t, 4) * n for t, n in i.shapes if (t, n) != ("u32", 1)]
    parts = max(1, len(sizes) // 2) if i.opcode.endswith("-start") and len(sizes) > 1 else len(sizes)
    operands, results = sum(sizes[:parts]), sum(sizes[-parts:])
    whole = {"all-gather": results, "reduce-scatter": results * chips}.get(kind, results)
    share = (chips - 1) / chips
    wire = {"all-reduce": 2 * whole * share, "collective-permute": operands}.get(kind, whole * share)
    return Collective(kind, wire * count, axes, chips, apart, count, _shape_text(i), sources.of(i.rest))


def _group(rest: str, mesh: dict[str, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns which chips exchange something (one group of them), and along which axes of the mesh."""
    total = math.prod(mesh.values())
    members = np.arange(total)
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        members = np.array([int(found[1]), int(found[2])])
    elif found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        members = np.array([int(n) for n in found[1].split(",")])
    elif found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = [int(n) for n in re.findall(r"'?\w+'?=(\d+)", found[1])]
        names = re.findall(r"'(\w+)'=\d+", found[1])
        chosen = [names.index(n) for n in re.findall(r"'(\w+)'", found[2]) if n in names]
        grid = np.arange(total).reshape(sizes)
        at = tuple(slice(None) if axis in chosen else 0 for axis in range(len(sizes)))
        members = grid[at].reshape(-1)
    elif found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        grid = np.arange(total).reshape([int(n) for n in found[3].split(",")])
        if found[4]:
            grid = grid.transpose([int(n) for n in found[4].split(",")])
        members = grid.reshape(int(found[1]), int(found[2]))[0]
    places = np.unravel_index(members, tuple(mesh.values()))
    axes = tuple(name for name, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1)
    return members, axes


class _Sources:
    """The source line of an instruction."""

    def __init__(self, text: str):
        head = text[: text.find("\n\n%")] if "StackFrames" in text else ""
        self.files = dict(re.findall(r'^(\d+) "([^"]*\.py)"$', _section(head, "FileNames"), re.M))
        pattern = r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)"
        self.places = {n: (f, at) for n, f, at in re.findall(pattern, _section(head, "FileLocations"), re.M)}
        pattern = r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?"
        found = re.findall(pattern, _section(head, "StackFrames"), re.M)
        self.frames = {n: (place, parent) for n, place, parent in found}

    @functools.cache  # noqa: B019 (lives as long as the program is read)
    def frame(self, number: str) -> str:
        """Returns file:line of the innermost frame in our code."""
        place, parent = self.frames.get(number, ("", ""))
        file, line = self.places.get(place, ("", ""))
        name = self.files.get(file, "")
        if "/o3jax/" in name or "/experiments/" in name:
            return f"{name[max(name.rfind('/o3jax/'), name.rfind('/experiments/')) + 1 :]}:{line}"
        return self.frame(parent) if parent and parent != number else ""

    def of(self, rest: str) -> str:
        if found := re.search(r"stack_frame_id=(\d+)", rest):
            return self.frame(found[1])
        if found := re.search(r'source_file="([^"]*)" source_line=(\d+)', rest):
            return f"{found[1]}:{found[2]}"
        return ""


def _section(head: str, name: str) -> str:
    found = re.search(rf"^{name}\n(.*?)(?:\n\n|\Z)", head, re.M | re.S)
    return found[1] if found else ""


def _shape_text(i: Instruction) -> str:
    end = _closing(i.line.split(" = ", 1)[1], 0) + 1 if " = (" in i.line else None
    text = i.line.split(" = ", 1)[1]
    text = text[:end] if end else text.partition(" ")[0]
    shapes = [f"{t}[{dims}]" for t, dims in _SHAPE.findall(text)]
    return next((shape for shape in reversed(shapes) if shape != "u32[]"), "")


def by_key(collectives: Sequence[Collective], key: str) -> dict[str, float]:
    """Returns the GB on the wire, by `kind` or by `axes`."""
    sums: dict[str, float] = collections.defaultdict(float)
    for one in collectives:
        value = getattr(one, key)
        sums[value if isinstance(value, str) else "+".join(value) or "none"] += one.wire_bytes / 1e9
    return {name: total for name, total in sorted(sums.items(), key=lambda kv: -kv[1])}
