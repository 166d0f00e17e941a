"""The file that says what is looked for, read with the line and the field of whatever is wrong in it.

events:                    # or tags: for `o3jax label`
  - name: red circle
    question: When is the red circle visible?
    object: red circle     # optional: findings whose evidence names something else are left out
    min_confidence: 0.6    # optional: less sure findings are left out
    min_s: 0.5             # optional: shorter ones too
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import yaml

from experiments.library.asking import Question
from o3jax.errors import UserError
from o3jax.printing import check_whole

_FIELDS = {field.name: field for field in dataclasses.fields(Question)}
_MOST_BYTES = 2**20
_MOST = {"min_confidence": 1.0, "min_s": 86400.0}


def read_questions(path: str, key: str) -> tuple[Question, ...]:
    """Returns the questions of a file, in its order.

    Args:
        key: of the list, "events" or "tags".

    Raises:
        UserError: with the line and the field, if the file is not as the module's docstring says.
    """
    try:
        data = Path(path).read_bytes()[: _MOST_BYTES + 1]
        if len(data) > _MOST_BYTES:
            raise UserError(f"{path} has more than {_MOST_BYTES} bytes: name the file with the {key}")
        root = yaml.compose(data.decode("utf-8-sig"), yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name the file with the {key}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text: save it as UTF-8") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or "it cannot be read"
        raise UserError(f"{path}{where}: this is no YAML ({why}): mend the line") from None
    return _Reader(path, key).questions(root)


class _Reader:
    def __init__(self, path: str, key: str):
        self.path, self.key = path, key

    def wrong(self, node: yaml.Node | None, what: str) -> UserError:
        line = f", line {node.start_mark.line + 1}" if node is not None else ""
        return UserError(f"{self.path}{line}: {what}")

    def questions(self, root: yaml.Node | None) -> tuple[Question, ...]:
        named = dict(self.pairs(root, "the file")) if root is not None else {}
        example = f'write "{self.key}:" and below it "- name: NAME" and "question: QUESTION"'
        if self.key not in named:
            raise self.wrong(root, f"'{self.key}' is missing, so there is nothing to ask: {example}")
        for name, node in named.items():
            if name != self.key:
                raise self.wrong(node, f"'{name}' is unknown: only '{self.key}' is read")
        listed = named[self.key]
        if not isinstance(listed, yaml.SequenceNode) or not listed.value:
            raise self.wrong(listed, f"'{self.key}' has no questions: {example}")
        found: dict[str, Question] = {}
        for node in listed.value:
            question = self.question(node)
            if question.name in found:
                raise self.wrong(node, f"name: {question.name!r:.60} is there twice: give each its own")
            found[question.name] = question
        return tuple(found.values())

    def question(self, node: yaml.Node) -> Question:
        values: dict[str, str | float] = {}
        for name, value in self.pairs(node, "each entry"):
            if name not in _FIELDS:
                raise self.wrong(value, f"{name!r:.60} is unknown: there is {', '.join(_FIELDS)}")
            values[name] = self.number(name, value) if name in _MOST else self.text(name, value)
        for name in ("name", "question"):
            if name not in values:
                raise self.wrong(node, f"{name} is missing: every entry needs a name and a question")
        return Question(**values)

    def pairs(self, node: yaml.Node, what: str) -> list[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, f"{what} must be fields with values, such as 'name: red car'")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in found:
                raise self.wrong(key, f"{name!r:.60} is there twice: remove one")
            found[name] = value
        return list(found.items())

    def text(self, name: str, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":null") or not node.value.strip():
            raise self.wrong(node, f"{name} must be a text: write one behind '{name}:'")
        if len(node.value) > 2000:
            raise self.wrong(node, f"{name} has more than 2000 characters: shorten it")
        check_whole(node.value, f"{self.path}, line {node.start_mark.line + 1}: {name}")
        return node.value.strip()

    def number(self, name: str, node: yaml.Node) -> float:
        try:
            value = float(node.value)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= _MOST[name]:
            raise self.wrong(
                node, f"{name} must be a number from 0 to {_MOST[name]:g}, not {node.value!r:.60}"
            )
        return value
