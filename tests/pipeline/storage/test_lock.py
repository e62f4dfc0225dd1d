"""Locks between processes: exclusion, release by death, and what forked children hold."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.storage.lock import (
    lock_descriptor,
    lock_file,
    try_lock_file,
)

FORK = multiprocessing.get_context("fork")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def in_a_child(work: Callable[[], None]) -> int | None:
    """Run ``work`` in a forked process; return its exit status."""
    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def test_locks_exclude_while_their_files_are_deleted_and_created(tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(200):
            with try_lock_file(tmp_path / "a.lock") as held:
                assert held
                count = int(counter.read_text())
                counter.write_text(str(count + 1))

    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [FORK.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert counter.read_text() == "800" and not (tmp_path / "a.lock").exists()


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    found: list[bool] = []

    def second() -> None:
        with try_lock_file(tmp_path / "a.lock", 0) as held:
            found.append(held)

    with try_lock_file(tmp_path / "a.lock") as held:
        assert held
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    second()
    assert found == [False, True]


def test_a_held_lock_times_out(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with lock_file(path, 60):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="another process has held .*a.lock for 0.2 s"):
            lock_file(path, 0.2).__enter__()
        assert 0.2 <= time.monotonic() - began < 10
        assert path.exists()


def test_a_waiter_gets_the_lock_once_it_is_released(tmp_path: Path) -> None:
    path, order = tmp_path / "a.lock", []

    def second() -> None:
        with lock_file(path, 60):
            order.append("second")

    thread = threading.Thread(target=second)
    with lock_file(path, 60):
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"] and not path.exists()


def test_a_killed_holder_releases_its_lock(tmp_path: Path) -> None:
    def hold() -> None:
        with lock_file(tmp_path / "a.lock", 60):
            (tmp_path / "held").touch()
            time.sleep(600)

    process = FORK.Process(target=hold)
    process.start()
    wait_for(tmp_path / "held")
    with try_lock_file(tmp_path / "a.lock", 0) as held:
        assert not held
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with try_lock_file(tmp_path / "a.lock", 0) as held:
        assert held


def test_release_frees_the_lock_though_a_forked_child_lives(tmp_path: Path) -> None:
    with lock_file(tmp_path / "a.lock", 60):
        child = FORK.Process(target=time.sleep, args=(600,))
        child.start()
    try:
        with try_lock_file(tmp_path / "a.lock", 0) as held:
            assert held
    finally:
        child.kill()
        child.join()


def test_an_optional_lock_is_granted_without_locks_in_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with try_lock_file(tmp_path / "a.lock", 0, required=False) as held:
        assert held
    with pytest.raises(OSError, match="No locks available"):
        try_lock_file(tmp_path / "a.lock", 0).__enter__()


def test_a_locked_descriptor_excludes_others_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.touch()
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    assert lock_descriptor(first)
    assert not lock_descriptor(second, 0)
    os.close(first)
    assert lock_descriptor(second, 0)
    os.close(second)
    assert path.exists()
