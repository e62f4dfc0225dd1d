"""The load of many nodes as minimum, mean and maximum over nodes.

One rank of each node sends samples through the key-value store of the process group, and rank 0
reads them. Threads do both, so training never waits for them, and only rank 0 logs to the run.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple, Protocol

from pipeline.tracking.system_metrics import SystemSampler

SAMPLE_SECONDS = 10.0
MAX_AGE_PERIODS = 3  # in SAMPLE_SECONDS; a node whose last sample is older is left out


class KeyValueStore(Protocol):
    """The part of ``torch.distributed.Store`` in use."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Return the value of a key, which exists."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys exist."""


class _Sample(NamedTuple):
    content: bytes
    seen: float  # time.monotonic() of rank 0; clocks of nodes differ
    load: dict[str, float]


class ClusterLoad:
    """Sends the load of this rank's node, if it is one of ``senders``; rank 0 reads all of them.

    A node that is lost or does not respond is left out after `MAX_AGE_PERIODS`.
    """

    def __init__(self, store: KeyValueStore, rank: int, senders: Sequence[int]) -> None:
        self._store, self._rank, self._senders = store, rank, senders
        self._sampler = SystemSampler() if rank in senders else None
        self._samples: dict[int, _Sample] = {}  # by sender
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="load", daemon=True)
        self._thread.start()

    def metrics(self) -> dict[str, float]:
        """Return ``system/min/...``, ``system/mean/...``, ``system/max/...``, ``system/nodes``.

        The last one is the number of nodes with a recent sample. Empty on other ranks than 0.
        """
        oldest = time.monotonic() - MAX_AGE_PERIODS * SAMPLE_SECONDS
        loads = [one.load for one in self._samples.values() if one.seen >= oldest]
        if not self._samples:
            return {}
        metrics = {"system/nodes": float(len(loads))}
        for name in sorted(set().union(*loads)):
            values = [load[name] for load in loads if name in load]
            metrics[f"system/min/{name}"] = min(values)
            metrics[f"system/mean/{name}"] = round(fmean(values), 1)
            metrics[f"system/max/{name}"] = max(values)
        return metrics

    def close(self) -> None:
        """End the thread, without waiting for it."""
        self._ended.set()

    def _work(self) -> None:
        number = 0
        # Without its store the process group is about to fail. No message: at the end of a training
        # the rank with the store may exit first.
        with contextlib.suppress(Exception):
            while not self._ended.wait(SAMPLE_SECONDS):
                if self._rank == 0 and number:  # all nodes have sent when the first period is over
                    self._read()
                if self._sampler is not None:
                    content = json.dumps([number, self._sampler.load()])
                    self._store.set(_key(self._rank), content)
                number += 1

    def _read(self) -> None:
        samples, now = {}, time.monotonic()
        for sender in self._senders:
            if not self._store.check([_key(sender)]):
                continue
            content, before = self._store.get(_key(sender)), self._samples.get(sender)
            if before is None or before.content != content:
                before = _Sample(content, now, json.loads(content)[1])
            samples[sender] = before
        self._samples = samples


def _key(sender: int) -> str:
    return f"system_load/{sender}"
