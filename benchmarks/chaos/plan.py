"""Inject faults at random times for as long as asked, and keep the training from ending before."""

import dataclasses
import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from benchmarks.chaos.faults import NotPossible, Target
from benchmarks.chaos.service_faults import KINDS
from benchmarks.chaos.training import CHECKPOINT_STEPS

POLL_SECONDS = 0.5
# Without a new checkpoint, after which the next fault comes all the same: this, and twice the time
# that the undisturbed training has taken to its first one.
PATIENCE_SECONDS = 20.0
EARLY_SHARE = 0.01  # of the polls, at which the next fault does not wait for a checkpoint
TRY_AGAIN_SECONDS = 2.0  # after a fault without a target
MAX_EXTENSION = 3  # of the time, until every kind has come
UPLOAD_DELAY_SECONDS = 1.0  # per request of a checkpoint, while the training is ahead of time
FULL_DISK = "full-disk"
LAST_STEPS = 3 * CHECKPOINT_STEPS  # that are left for the time after the last fault


@dataclasses.dataclass
class Fault:
    """An injected fault. ``recovered`` is the seconds until the next checkpoint."""

    kind: str
    at: float
    detail: str = ""
    step: int = 0
    recovered: float | None = None


class Injector:
    """Deals the kinds like shuffled cards: each comes once before any comes again."""

    def __init__(
        self,
        target: Target,
        kinds: Sequence[str],
        seed: int,
        gap: float,
        report: Callable[[str], None],
    ) -> None:
        self.faults: list[Fault] = []
        self.errors: list[str] = []  # of this program
        self._target, self._kinds, self._seed, self._gap = target, kinds, seed, gap
        self._report, self._draws = report, random.Random(seed)
        self._deck: list[str] = []
        self._threads: list[threading.Thread] = []
        self._running: set[str] = set()
        self._step, self._following = 0, 0.0

    def run(self, seconds: float, steps: int, first_checkpoint: float) -> None:
        """Inject faults for so long, or until the training has ended; then repair everything.

        It takes longer, up to three times as long, if a kind is still missing at the end.
        ``first_checkpoint`` is the seconds that the undisturbed training took to its first one.
        """
        began, patience = time.monotonic(), PATIENCE_SECONDS + 2 * first_checkpoint
        self._following = began + self._draws.uniform(0.0, self._gap)
        progressed = began
        while not self._target.training.join(0):
            now = time.monotonic()
            missing = set(self._kinds) - {fault.kind for fault in self.faults}
            if now > began + seconds * (MAX_EXTENSION if missing else 1):
                break
            before = self._step
            self._follow(now)
            progressed = now if self._step > before else progressed
            due = (steps - LAST_STEPS) * min(1.0, (now - began) / seconds)
            self._target.s3.latency = UPLOAD_DELAY_SECONDS if self._step > due else 0.0
            # Mostly, wait for a checkpoint between two faults: restarts would never end otherwise.
            unrecovered = not self._step or any(fault.recovered is None for fault in self.faults)
            wait = unrecovered and now - progressed < patience
            if now >= self._following and (not wait or self._draws.random() < EARLY_SHARE):
                self._following = now + self._inject()
            time.sleep(POLL_SECONDS)
        self._target.s3.latency = 0.0
        for thread in self._threads:
            thread.join(120)
        self._target.s3.trouble = self._target.mlflow.trouble = None

    def follow(self) -> None:
        """Look for a new checkpoint, note the recovery of faults, and replace lost nodes."""
        self._follow(time.monotonic())

    def _follow(self, now: float) -> None:
        step = self._target.training.step()
        for fault in self.faults:
            if fault.recovered is None and (step > fault.step or self._target.training.result):
                fault.recovered = round(now - fault.at, 1)
        self._step = step
        self._target.nodes.replace_ended()

    def _inject(self) -> float:
        """Start the next fault of the deck in a thread; return the seconds until another one."""
        if not self._deck:
            self._deck = list(self._kinds)
            self._draws.shuffle(self._deck)
        name = self._deck.pop()
        if self._is_busy(name):
            self._deck.insert(0, name)
            return TRY_AGAIN_SECONDS
        draws = random.Random(f"{self._seed} {len(self._threads)}")
        target = dataclasses.replace(self._target, draws=draws)
        fault = Fault(name, time.monotonic(), step=self._step)
        thread = threading.Thread(target=self._inject_one, args=(target, fault), daemon=True)
        self._threads.append(thread)
        thread.start()
        return self._draws.uniform(0.3, 1.7) * self._gap

    def _is_busy(self, name: str) -> bool:
        """Return whether the fault must wait for others: of the same service, or of a full disk.

        While the disks are full, pictures and other files cannot be queued. A full disk is
        therefore alone: it must not fall together with the loss of all that is in memory.
        """
        if FULL_DISK in self._running or (name == FULL_DISK and self._running):
            return True
        proxies = {"s3": self._target.s3, "mlflow": self._target.mlflow}
        proxy = proxies.get(name.split("-")[0])
        return proxy is not None and proxy.trouble is not None

    def _inject_one(self, target: Target, fault: Fault) -> None:
        self._report(f"{fault.kind} ...")
        self.faults.append(fault)
        self._running.add(fault.kind)
        try:
            fault.detail = KINDS[fault.kind](target)
        except NotPossible as error:
            self.faults.remove(fault)
            self._deck.append(fault.kind)
            self._following = time.monotonic() + TRY_AGAIN_SECONDS
            self._report(f"{fault.kind}: not possible yet: {error}")
            return
        except Exception:
            self.errors.append(traceback.format_exc())
            raise
        finally:
            self._running.discard(fault.kind)
        self._report(f"{fault.kind}: {fault.detail}")
