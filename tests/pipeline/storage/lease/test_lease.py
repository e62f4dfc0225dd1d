"""A lease: held, refused, expired, lost, and kept through outages of its storage."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import LeaseLostError, UserError
from pipeline.storage.folder import Storage
from pipeline.storage.lease import LEASE_FILE, Lease, LeaseHeldError, check_lease
from pipeline.storage.lease.compare_and_swap import Content, LocalFile
from tests.conftest import ROOT

SECONDS = 1.2
HOLDER = f"""
import sys
from pipeline.storage.folder import Storage
from pipeline.storage.lease import Lease
lease = Lease(Storage(sys.argv[1]), "run 'one'", {SECONDS})
lease.acquire()
lease.when_lost(lambda: print(lease.lost, flush=True))
print(lease.owner, flush=True)
sys.stdin.read()
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def content(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / LEASE_FILE).read_text())
    return found


def lease_of(folder: Path, seconds: float = SECONDS) -> Lease:
    return Lease(Storage(str(folder)), "run 'one'", seconds)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a process that holds the lease; return it and its owner token."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        owner = process.stdout.readline().strip()
        try:
            yield process, owner
        finally:
            process.kill()


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process look like one on another machine than its children."""
    monkeypatch.setattr("pipeline.storage.lease.process_identity._scope", lambda: "other")


def test_released_lease_is_taken_at_once(tmp_path: Path) -> None:
    first = lease_of(tmp_path, 60.0)
    first.acquire()
    check_lease(Storage(str(tmp_path)), first.owner, "run 'one'")
    with pytest.raises(LeaseHeldError, match=f"process {os.getpid()} on "):
        lease_of(tmp_path).acquire()
    first.release()
    with pytest.raises(LeaseLostError, match="run 'one' was released by process"):
        check_lease(Storage(str(tmp_path)), first.owner, "run 'one'")
    second = lease_of(tmp_path, 60.0)
    began = time.monotonic()
    second.acquire()
    assert time.monotonic() - began < 5
    second.release()
    second.release()  # not held: no effect
    assert [path.name for path in tmp_path.iterdir()] == [LEASE_FILE]


def test_living_holder_on_this_machine_is_reported_at_once(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], str]
) -> None:
    process, _ = holder
    process.send_signal(signal.SIGSTOP)  # it lives, even without heartbeats
    with pytest.raises(LeaseHeldError, match=f"process {process.pid} on "):
        lease_of(tmp_path).acquire()


def test_lease_of_a_killed_process_of_this_machine_is_taken_at_once(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    holder[0].kill()  # and not reaped: a zombie
    wait_until(lambda: "Z" in Path(f"/proc/{holder[0].pid}/stat").read_text())
    lease = lease_of(tmp_path)
    lease.acquire()
    lease.release()
    assert not caplog.records


def test_living_holder_on_another_machine_is_reported_after_a_heartbeat(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], str], other_machine: None
) -> None:
    with pytest.raises(LeaseHeldError, match=f"process {holder[0].pid} on "):
        lease_of(tmp_path).acquire()
    assert content(tmp_path)["owner"] == holder[1]


def test_lease_of_a_lost_machine_is_waited_out_and_fences_it(
    tmp_path: Path,
    holder: tuple[subprocess.Popen[str], str],
    other_machine: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    process, owner = holder
    process.send_signal(signal.SIGSTOP)
    lease = lease_of(tmp_path)
    began = time.monotonic()
    lease.acquire()
    assert time.monotonic() - began > SECONDS
    assert f"was not released by process {process.pid} on " in caplog.text
    assert "waiting 1.2 s for a sign of life" in caplog.text
    storage = Storage(str(tmp_path))
    with pytest.raises(LeaseLostError, match=f"taken over by process {os.getpid()} on"):
        check_lease(storage, owner, "run 'one'")
    check_lease(storage, lease.owner, "run 'one'")
    process.send_signal(signal.SIGCONT)
    assert process.stdout is not None
    assert "run 'one' was taken over by process" in process.stdout.readline()
    assert content(tmp_path)["owner"] == lease.owner and lease.lost is None
    lease.release()


def test_release_is_noticed_by_a_process_that_watches(tmp_path: Path, other_machine: None) -> None:
    first, second = lease_of(tmp_path, 60.0), lease_of(tmp_path, 60.0)
    first._info = first._info.model_copy(update={"process": ""})  # as of another machine
    first.acquire()
    threading.Timer(0.5, first.release).start()
    second.acquire()
    check_lease(Storage(str(tmp_path)), second.owner, "run 'one'")
    second.release()


def test_lease_outlives_an_outage_of_its_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = lease_of(tmp_path, 0.6)
    lease.acquire()

    def fail(*_: object) -> Content:
        raise OSError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFile, "read", fail)
        wait_until(lambda: "not renewed for" in caplog.text)
        time.sleep(1.0)
    before = content(tmp_path)["heartbeat"]
    wait_until(lambda: content(tmp_path)["heartbeat"] != before)
    assert lease.lost is None
    assert caplog.text.count("connection refused; retrying") == 1
    (tmp_path / LEASE_FILE).unlink()  # by hand
    check_lease(Storage(str(tmp_path)), lease.owner, "run 'one'")
    wait_until((tmp_path / LEASE_FILE).exists)
    lease.release()


def test_one_of_many_takes_an_expired_lease(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], str], other_machine: None
) -> None:
    holder[0].kill()
    leases, outcomes = [lease_of(tmp_path) for _ in range(5)], []
    for lease in leases:
        lease._info = lease._info.model_copy(update={"process": ""})

    def take(lease: Lease) -> None:
        try:
            lease.acquire()
        except LeaseHeldError:
            outcomes.append("held")
        else:
            outcomes.append("taken")

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held"] * 4 + ["taken"]
    for lease in leases:
        lease.release()
    assert content(tmp_path)["released"]


def test_damaged_lease_is_one_line(tmp_path: Path) -> None:
    (tmp_path / LEASE_FILE).write_text("{")
    with pytest.raises(UserError, match=r"lease\.json: not valid JSON.*; delete the file if no"):
        lease_of(tmp_path).acquire()
    with pytest.raises(OSError, match="not valid JSON"):
        check_lease(Storage(str(tmp_path)), "a", "run 'one'")
