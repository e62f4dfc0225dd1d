"""Test slots of shared memory: claimed by the writer, free when the reader drops them."""

import gc
import multiprocessing

import numpy as np

from pipeline.data.loading.shared_memory import SharedMemoryRing


def test_slot_is_free_when_nothing_refers_to_its_array():
    ring = SharedMemoryRing(writers=1, slots=2, slot_bytes=64)
    _, first = ring.claim(0, (4, 16))
    array, second = ring.claim(0, (8,))
    array[:] = 7
    assert {first.number, second.number} == {0, 1} and ring.claim(0, (1,))[1] is None
    opened = second.open()
    view = opened[2:]  # a view keeps the slot
    assert opened.tolist() == [7] * 8
    del opened
    gc.collect()
    assert ring.claim(0, (1,))[1] is None
    del view
    gc.collect()
    assert ring.claim(0, (1,))[1].number == second.number


def test_writers_have_separate_slots_and_large_arrays_none():
    ring = SharedMemoryRing(writers=2, slots=1, slot_bytes=10)
    assert ring.claim(0, (11,))[1] is None
    assert ring.claim(1, (10,))[1].number == 1
    assert ring.claim(0, (10,))[1].number == 0


def test_array_written_by_a_forked_process_is_read():
    ring = SharedMemoryRing(writers=1, slots=1, slot_bytes=1000)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def write():
        array, slot = ring.claim(0, (10, 100))
        array[:] = np.arange(1000).reshape(10, 100) % 251
        queue.put(slot)

    process = context.Process(target=write)
    process.start()
    assert np.array_equal(queue.get().open().ravel(), np.arange(1000) % 251)
    process.join()
