"""JSON objects of a model folder, read field by field with errors that name file and field."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from o3jax.errors import UserError


class Section:
    """One JSON object of a file."""

    def __init__(self, values: Mapping[str, Any], file: str, prefix: str = ""):
        self.values, self.file, self.prefix = values, file, prefix

    def bad(self, key: str, problem: str) -> UserError:
        return UserError(f"{self.file}: {self.prefix}{key} {problem}")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str) -> Any:
        if not self.has(key):
            raise self.bad(key, "is missing: add it, because no default is right for every model")
        return self.values[key]

    def section(self, key: str) -> Section:
        value = self.get(key)
        if not isinstance(value, Mapping):
            raise self.bad(key, "must be an object")
        return Section(value, self.file, f"{self.prefix}{key}.")

    def integer(self, key: str, least: int = 1) -> int:
        value = self.get(key)
        if type(value) is not int or value < least:
            what = "a positive whole number" if least == 1 else f"a whole number of at least {least}"
            raise self.bad(key, f"must be {what}, not {value!r}")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.get(key)
        if not isinstance(value, list | tuple) or any(type(v) is not int or v < 0 for v in value):
            raise self.bad(key, f"must be a list of whole numbers, not {value!r}")
        return tuple(value)

    def number(self, key: str) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not value > 0:
            raise self.bad(key, f"must be a positive number, not {value!r}")
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self.get(key)
        if type(value) is not bool:
            raise self.bad(key, f"must be true or false, not {value!r}")
        return value

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise self.bad(key, f"must be text, not {value!r}")
        return value

    def only(self, key: str, supported: Any) -> None:
        """Raises unless the value is the one that this port implements."""
        if self.get(key) != supported:
            raise self.bad(key, f"is {self.values[key]!r}, but only {supported!r} is supported")

    def off(self, key: str, supported: Any) -> None:
        """Like `only`, for a switch that means `supported` where it is absent."""
        if self.has(key):
            self.only(key, supported)

    def nothing_but(self, known: Collection[str]) -> None:
        """Raises if there is a field that is not known."""
        unknown = sorted(set(self.values) - set(known))
        if unknown:
            raise UserError(f"{self.file} has the unknown field '{self.prefix}{unknown[0]}': remove it")
