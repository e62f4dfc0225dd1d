"""Shared memory through which loader processes send pixels, reused for the whole training.

A fresh block of shared memory per batch costs more than a copy of it: the kernel clears every page,
and both sides map it again. Here each loader process owns a few slots of one mapping that exists
before it is forked. It claims a free slot, warps images straight into it and sends the number of
the slot. The slot is free again when the trainer drops the last tensor that refers to it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import weakref
from typing import NamedTuple

import numpy as np

_rings: weakref.WeakValueDictionary[int, SharedMemoryRing] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class SharedMemoryRing:
    """``slots`` slots of ``slot_bytes`` for each of ``writers`` processes, which are forked later.

    Create it in the process that reads.
    """

    def __init__(self, writers: int, slots: int, slot_bytes: int) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes
        self.number = next(_numbers)
        # Anonymous: no name to clean up, and the size of /dev/shm does not matter.
        count = writers * slots
        self._pages = mmap.mmap(-1, count + count * slot_bytes)
        # One byte per slot. Only its writer sets it, and only the reader clears it.
        self._in_use = np.frombuffer(self._pages, np.uint8, count)
        _rings[self.number] = self

    def claim(self, writer: int, shape: tuple[int, ...]) -> tuple[np.ndarray, RingSlot | None]:
        """Return an array (uint8, not cleared) and the slot that holds it.

        The slot is None, and the array ordinary memory, if the reader still holds all slots of this
        writer or the array is larger than a slot.
        """
        size = math.prod(shape)
        own = self._in_use[writer * self.slots : (writer + 1) * self.slots]
        free = int(own.argmin())
        if size > self.slot_bytes or own[free]:
            return np.empty(shape, np.uint8), None
        own[free] = 1
        slot = RingSlot(self.number, writer * self.slots + free, shape)
        return self._view(slot), slot

    def open(self, slot: RingSlot) -> np.ndarray:
        """Return the array in a slot; the slot is free once nothing refers to the array."""
        size = math.prod(slot.shape)
        # Views of an array refer to the owner of its memory, not to the array, so create an owner.
        owner = (ctypes.c_uint8 * size).from_buffer(self._pages, self._start(slot))
        weakref.finalize(owner, self._free, slot.number).atexit = False
        return np.frombuffer(memoryview(owner), np.uint8).reshape(slot.shape)

    def _view(self, slot: RingSlot) -> np.ndarray:
        start, size = self._start(slot), math.prod(slot.shape)
        return np.frombuffer(self._pages, np.uint8, size, start).reshape(slot.shape)

    def _start(self, slot: RingSlot) -> int:
        return len(self._in_use) + slot.number * self.slot_bytes

    def _free(self, index: int) -> None:
        self._in_use[index] = 0


class RingSlot(NamedTuple):
    """The location of an array in a ring: all that is sent between the processes."""

    ring: int
    number: int
    shape: tuple[int, ...]

    def open(self) -> np.ndarray:
        """Return the array, in the process that created the ring."""
        return _rings[self.ring].open(self)
