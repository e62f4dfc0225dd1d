"""Shared memory that loader processes send images through, used again and again.

A fresh block of shared memory per batch costs more than its copy: the kernel clears every page and
both sides map it anew. Here each loader process owns a few slots of one mapping that was made
before it was forked. It claims a free slot, warps straight into it and sends the slot's number; the
slot is free again when the trainer lets go of the last tensor on it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import weakref
from typing import NamedTuple

import numpy as np

_rings: weakref.WeakValueDictionary[int, Ring] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Ring:
    """``slots`` slots of ``slot_bytes`` for each of ``writers`` processes, forked after this."""

    def __init__(self, writers: int, slots: int, slot_bytes: int) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes
        self.number = next(_numbers)
        # Anonymous: there is no name to clean up, and /dev/shm may be as small as it likes.
        taken = writers * slots
        self._pages = mmap.mmap(-1, taken + taken * slot_bytes)
        # One byte a slot. Only its writer sets it, and only the trainer clears it.
        self._taken = np.frombuffer(self._pages, np.uint8, taken)
        _rings[self.number] = self

    def claim(self, writer: int, shape: tuple[int, ...]) -> tuple[np.ndarray, Slot | None]:
        """An array (uint8, with whatever was in it) and the slot it lies in; None: in no slot.

        The latter when the trainer holds on to all of them, or the array is larger than a slot.
        """
        size = math.prod(shape)
        own = self._taken[writer * self.slots : (writer + 1) * self.slots]
        free = int(own.argmin())
        if size > self.slot_bytes or own[free]:
            return np.empty(shape, np.uint8), None
        own[free] = 1
        slot = Slot(self.number, writer * self.slots + free, shape)
        return self._view(slot), slot

    def open(self, slot: Slot) -> np.ndarray:
        """The array in a slot. The slot is free once nothing refers to the array any more."""
        size = math.prod(slot.shape)
        # Views of an array refer to the owner of its memory, not to the array: so this has one.
        owner = (ctypes.c_uint8 * size).from_buffer(self._pages, self._start(slot))
        weakref.finalize(owner, self._free, slot.place).atexit = False
        return np.frombuffer(memoryview(owner), np.uint8).reshape(slot.shape)

    def _view(self, slot: Slot) -> np.ndarray:
        start, size = self._start(slot), math.prod(slot.shape)
        return np.frombuffer(self._pages, np.uint8, size, start).reshape(slot.shape)

    def _start(self, slot: Slot) -> int:
        return len(self._taken) + slot.place * self.slot_bytes

    def _free(self, place: int) -> None:
        self._taken[place] = 0


class Slot(NamedTuple):
    """Where an array lies: all that travels between the processes."""

    ring: int
    place: int
    shape: tuple[int, ...]

    def open(self) -> np.ndarray:
        """The array, in the process that made the ring."""
        return _rings[self.ring].open(self)
