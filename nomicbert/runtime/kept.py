"""A bounded store of values that take long to make: those used last stay, for all threads.

Where in the flow: holds the models of `nomicbert.embed`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Source = TypeVar("Source")


class Kept(Generic[Key, Value]):
    """Values by key, the one used last at the end.

    Threads that ask for the same new value make it once; different values are made at once. A value
    that is dropped lives on with whoever uses it.

    Attributes:
        most: values that are kept.
    """

    def __init__(self, most: int) -> None:
        """Nothing is kept yet."""
        self.most = most
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        # a gate is gone with the last thread that makes the value, or has failed to
        self._gates: WeakValueDictionary[Key, threading.Lock] = WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, key: Key, fetch: Callable[[], Source], make: Callable[[Source], Value]) -> Value:
        """The value of this key, made if it is not kept.

        Args:
            key: of the value.
            fetch: first step, before another value is dropped for this one. If it fails, none is.
            make: second step. The values that are kept then leave room for one more.

        Raises: what `fetch` and `make` raise, in every thread that asks; nothing is kept then.
        """
        with self._lock:
            if key in self._kept:
                return self._used(key)
            gate = self._gates.setdefault(key, threading.Lock())
        with gate:
            with self._lock:
                if key in self._kept:
                    return self._used(key)
            source = fetch()
            self._drop_to(self.most - 1)
            value = make(source)
            with self._lock:
                self._kept[key] = value
            self._drop_to(self.most)  # another thread may have made another value meanwhile
        return value

    def clear(self) -> None:
        """Drop all values."""
        self._drop_to(0)

    def _used(self, key: Key) -> Value:
        self._kept.move_to_end(key)
        return self._kept[key]

    def _drop_to(self, most: int) -> None:
        with self._lock:
            while len(self._kept) > most:
                self._kept.popitem(last=False)
