"""Results that requests share: made once, even if several want one at a time, and kept for a while."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class Shared:
    """Keeps results of up to `most_bytes` in all, of which those that nobody asked for longest go first."""

    def __init__(self, most_bytes: int):
        self._most, self._bytes = most_bytes, 0
        self._kept: collections.OrderedDict[Hashable, tuple[Future, int]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """Returns what `make` returns, or what it returned for this key; an exception is for who waits now.

        Args:
            size: of a result, in bytes.
        """
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            else:
                future: Future = Future()
                self._kept[key] = future, 0
        if found is not None:
            return found[0].result()
        try:
            result = make()
        except BaseException as error:
            with self._lock:
                del self._kept[key]
            future.set_exception(error)
            raise
        future.set_result(result)
        with self._lock:
            if key in self._kept:
                self._kept[key] = future, size(result)
                self._bytes += size(result)
            for old in list(self._kept):
                if self._bytes <= self._most:
                    break
                if self._kept[old][0].done():
                    self._bytes -= self._kept.pop(old)[1]
        return result
