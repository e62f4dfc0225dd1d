"""Durable writes: an old file or a new one, never half of one, in an order that power cuts keep."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.durable import open_durably, sync_file, sync_folder, write_durably
from tests.conftest import ROOT


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_creates_and_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "one"
    write_durably(path, b"first")
    assert path.read_bytes() == b"first"
    write_durably(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(tmp_path) == ["one"]


def test_block_that_raises_keeps_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "one"
    write_durably(path, b"old")

    def interrupted() -> None:
        with open_durably(path) as file:
            file.write(b"half of it")
            file.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old" and names(tmp_path) == ["one"]


@pytest.mark.parametrize("size", [150_000, 10_000_000])
def test_write_beyond_the_size_limit_keeps_the_old_file_and_no_draft(
    tmp_path: Path, size: int
) -> None:
    """The kernel refuses to let a file grow past a limit, as it does on a full disk."""
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from pipeline.storage.durable import write_durably\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "write_durably(Path(sys.argv[1]), bytes(int(sys.argv[2])))"
    )
    path = tmp_path / "one"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", code, path, str(size)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1 and "OSError: [Errno 27] File too large" in done.stderr
    assert path.read_bytes() == b"old" and names(tmp_path) == ["one"]


def test_write_over_a_folder_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(IsADirectoryError):
        write_durably(tmp_path / "one", b"data")
    assert names(tmp_path) == ["one"] and names(tmp_path / "one") == []


def test_content_is_on_disk_before_its_name_and_the_name_before_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records the system calls; each is made as well."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        kind = "folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes"
        calls.append(f"fsync {kind}")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_durably(tmp_path / "one", bytes(1000))
    assert calls == ["fsync 1000 bytes", "rename to one", "fsync folder"]


def test_mode_is_limited_by_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_durably(tmp_path / "shared", b"")
        write_durably(tmp_path / "private", b"", mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_sync_file_flushes_what_is_buffered(tmp_path: Path) -> None:
    with (tmp_path / "one").open("wb") as file:
        file.write(b"buffered")
        assert (tmp_path / "one").stat().st_size == 0
        sync_file(file)
        assert (tmp_path / "one").read_bytes() == b"buffered"
        sync_file(file.fileno())


def test_sync_folder_accepts_a_file_system_without_it_and_reports_an_absent_folder(
    tmp_path: Path,
) -> None:
    descriptor = os.open("/proc", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):  # as some network disks answer
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(Path("/proc"))
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "absent")
