"""Encoded pictures in bounded memory; the one that was used longest ago goes first."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor

from s2clip.encoding.encoded import Encoded


class EncodedCache:
    """Hashable key → `Encoded`, of `capacity` bytes of tensors together, on whatever device they lie.

    One that is larger than the whole cache is not kept. Safe for threads.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.bytes = self.evicted = 0
        self._kept: OrderedDict[Hashable, tuple[Encoded, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Encoded | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, encoded: Encoded) -> None:
        size = size_of(encoded)
        with self._lock:
            if key in self._kept:
                self.bytes -= self._kept.pop(key)[1]
            if size > self.capacity:
                return
            self._kept[key] = encoded, size
            self.bytes += size
            while self.bytes > self.capacity:
                self.bytes -= self._kept.popitem(last=False)[1][1]
                self.evicted += 1


def size_of(value: Any) -> int:
    """Bytes of the memory that the tensors of a value keep; a view keeps all that it is a part of."""
    storages: dict[int, int] = {}
    _collect(value, storages)
    return sum(storages.values())


def _collect(value: Any, storages: dict[int, int]) -> None:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _collect(getattr(value, field.name), storages)
    elif isinstance(value, list | tuple):
        for one in value:
            _collect(one, storages)
    elif isinstance(value, Mapping):
        for one in value.values():
            _collect(one, storages)
