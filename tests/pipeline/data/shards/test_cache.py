"""Test the cache: one fetch for many processes, a byte limit, and killed processes."""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.manifest import Shard
from pipeline.data.shards.writer import ShardWriter
from pipeline.errors import UserError
from pipeline.storage.lock import try_lock_file

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list[Shard]]:
    """Return a folder with six shards of two samples, about 10 kB each, and their entries."""
    folder = tmp_path_factory.mktemp("written")
    writer = ShardWriter(folder, max_samples=2, max_bytes=2**20)
    for i in range(12):
        writer.add("jpg", bytes([i]) * 4000, b"{}")
    return folder, writer.close()


@pytest.fixture
def source(written):
    """Return a source that copies shards as a transfer would, and records them."""

    class Source:
        def __init__(self) -> None:
            self.folder, self.shards = written
            self.size = self.shards[0].bytes + 32 * 2
            self.fetched: list[str] = []

        def fetch(self, shard):
            def run(to: Path) -> None:
                self.fetched.append(shard.name)
                to.write_bytes((self.folder / shard.name).read_bytes())

            return run

    return Source()


def get(cache: ShardCache, source, number: int) -> None:
    """Open a shard and check its bytes and its index."""
    shard = source.shards[number]
    descriptor, index = cache.open(shard, source.fetch(shard))
    data = os.pread(descriptor, shard.bytes + 1, 0)
    os.close(descriptor)
    assert hashlib.sha256(data).hexdigest() == shard.sha256
    image_at, size = index[1, :2].tolist()
    assert data[image_at : image_at + size] == bytes([2 * number + 1]) * 4000


def kept(cache: ShardCache, source) -> list[int]:
    """Return the numbers of the shards in the cache."""
    stored = {path.stem for path in cache.folder.glob("*.tar")}
    return [i for i, shard in enumerate(source.shards) if shard.sha256 in stored]


def space(cache: ShardCache) -> int:
    """Return the bytes of all files of the cache."""
    return sum(path.stat().st_size for path in cache.folder.iterdir())


def test_shard_is_fetched_once_and_indexed(source, tmp_path):
    cache = ShardCache(tmp_path / "deep/cache")
    for number in (0, 1, 0, 1):
        get(cache, source, number)
    assert source.fetched == ["shard-000000.tar", "shard-000001.tar"]
    assert (tmp_path / "deep/cache").stat().st_mode & 0o077 == 0


def test_least_recently_used_shards_are_evicted_first(source, tmp_path):
    cache = ShardCache(tmp_path, limit=3 * source.size)
    for number in (0, 1, 2, 0, 3):  # 1 is now the least recently used
        get(cache, source, number)
        time.sleep(0.01)
    assert kept(cache, source) == [0, 2, 3] and space(cache) <= cache.limit
    get(cache, source, 1)
    assert kept(cache, source) == [0, 1, 3]


def test_limit_holds_for_any_reads(source, tmp_path):
    cache = ShardCache(tmp_path, limit=int(2.5 * source.size))
    for number in [0, 1, 2, 3, 4, 5] * 3:
        get(cache, source, number)
        assert space(cache) <= cache.limit
    assert len(source.fetched) == 18


def test_limit_below_one_shard_is_an_error(source, tmp_path):
    with pytest.raises(UserError, match=r"data\.cache_gib .* cannot hold a shard of \d+ bytes"):
        get(ShardCache(tmp_path, limit=1000), source, 0)


def test_folder_that_cannot_be_created_is_an_error(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache .*file/cache: Not a directory"):
        get(ShardCache(tmp_path / "file/cache"), source, 0)


def test_failed_transfer_leaves_nothing(source, tmp_path):
    cache, shard = ShardCache(tmp_path), source.shards[0]

    def broken(to: Path) -> None:
        to.write_bytes(b"half")
        raise UserError("the server is gone")

    with pytest.raises(UserError, match="the server is gone"):
        cache.open(shard, broken)
    assert space(cache) == 0 and kept(cache, source) == []
    get(cache, source, 0)


def test_many_processes_fetch_each_shard_once(source, tmp_path):
    cache, log = ShardCache(tmp_path / "cache"), tmp_path / "log"

    def fetch(shard):
        def run(to: Path) -> None:
            with log.open("a") as file:
                file.write(f"{shard.name}\n")
            time.sleep(0.05)
            source.fetch(shard)(to)

        return run

    def work(first: int) -> None:
        for n in range(6):
            shard = source.shards[(first + n) % 6]
            os.close(cache.open(shard, fetch(shard))[0])

    processes = [FORK.Process(target=work, args=(n,)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == [shard.name for shard in source.shards]


def test_processes_that_need_more_than_the_limit_get_the_right_bytes(source, tmp_path):
    cache = ShardCache(tmp_path / "cache", limit=int(3.2 * source.size))

    def work(first: int) -> None:
        for n in range(30):
            get(cache, source, (first + n * (first + 1)) % 6)

    processes = [FORK.Process(target=work, args=(n,)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert space(cache) <= cache.limit


def test_reservation_becomes_a_shard_only_under_the_space_lock(source, tmp_path):
    """A count that found it under neither name would let the cache exceed its limit."""
    cache, shard = ShardCache(tmp_path), source.shards[0]
    started, proceed = threading.Event(), threading.Event()

    def fetch(to: Path) -> None:
        source.fetch(shard)(to)
        started.set()
        proceed.wait(60)

    thread = threading.Thread(target=cache.fetch, args=(shard, fetch))
    thread.start()
    assert started.wait(60)
    with try_lock_file(tmp_path / "room.lock"):
        proceed.set()
        thread.join(0.5)
        assert thread.is_alive() and len(list(tmp_path.glob("*.partial"))) == 1
    thread.join(60)
    assert kept(cache, source) == [0] and not list(tmp_path.glob("*.partial"))


def test_process_killed_during_a_transfer_leaves_no_lock_and_no_reserved_space(source, tmp_path):
    cache = ShardCache(tmp_path / "cache", limit=2 * source.size)
    shard = source.shards[0]

    def stuck(to: Path) -> None:
        to.write_bytes(b"half of it")
        (tmp_path / "started").touch()
        time.sleep(600)

    process = FORK.Process(target=lambda: cache.open(shard, stuck))
    process.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    # While it lives, its reservation counts and others do not fetch its shard.
    get(cache, source, 1)
    assert not cache.fetch(shard, source.fetch(shard), wait=False)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    for number in (3, 4):
        get(cache, source, number)
    assert not list(cache.folder.glob("*.partial")) and kept(cache, source) == [3, 4]
    assert not list(cache.folder.glob("*.lock"))
    get(cache, source, 0)
    assert kept(cache, source) == [0, 4]


def test_truncated_file_is_fetched_again(source, tmp_path):
    cache = ShardCache(tmp_path)
    get(cache, source, 0)
    path = tmp_path / f"{source.shards[0].sha256}.tar"
    path.write_bytes(path.read_bytes()[:100])
    get(cache, source, 0)
    assert source.fetched == ["shard-000000.tar"] * 2


def test_shard_without_index_is_fetched_again(source, tmp_path):
    cache = ShardCache(tmp_path)
    get(cache, source, 0)
    (tmp_path / f"{source.shards[0].sha256}.index").unlink()
    get(cache, source, 0)


def test_shard_with_another_count_than_the_manifest_is_rejected(source, tmp_path):
    shard = source.shards[0].model_copy(update={"samples": 3})
    with pytest.raises(UserError, match="has 2 samples, the manifest says 3"):
        ShardCache(tmp_path).open(shard, source.fetch(shard))


def test_evicted_shard_in_use_stays_readable_and_is_then_closed(written, tmp_path):
    """Read through ShardSet: a shard that the cache deletes is closed at the next opening."""
    from pipeline.data.shards import reader as module
    from pipeline.data.shards.manifest import Manifest

    folder, entries = written
    manifest = Manifest(
        name="n",
        split="train",
        source="written",
        fingerprint="f",
        classes=["a"],
        samples=12,
        samples_without_objects=12,
        boxes=0,
        boxes_per_class={"a": 0},
        shards=entries,
        problem_counts={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    size = entries[0].bytes + 64
    # fsspec's local files represent any protocol that it supports.
    uri = f"local://{folder}"
    got = module.ShardSet(uri, ShardCache(tmp_path, limit=2 * size))
    other = module.ShardSet(uri, ShardCache(tmp_path, limit=2 * size))
    assert got.read(0).image == bytes(4000)
    for index in (2, 4, 6):
        other.read(index)
    assert not (tmp_path / f"{entries[0].sha256}.tar").exists()
    assert got.read(1).image == bytes([1]) * 4000  # still open
    assert got.read(8).image == bytes([8]) * 4000
    assert list(got._open) == [4]


def test_shard_in_use_is_not_the_least_recently_used(written, tmp_path, monkeypatch):
    from pipeline.data.shards import reader as module

    monkeypatch.setattr(module, "TOUCH_SECONDS", 0.0)
    folder, entries = written
    got = module.ShardSet(f"local://{folder}", ShardCache(tmp_path, 3 * (entries[0].bytes + 64)))
    for index in (0, 2, 0, 4, 0, 6, 0, 8):
        got.read(index)
        time.sleep(0.01)
    stored = {path.stem for path in tmp_path.glob("*.tar")}
    assert stored == {entries[n].sha256 for n in (0, 3, 4)}


def test_full_disk_is_an_error(source, tmp_path):
    def full(to: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cache .*: No space left on device"):
        ShardCache(tmp_path).open(source.shards[0], full)


def test_other_files_in_the_folder_stay_and_do_not_count(source, tmp_path):
    names = [
        "VOC.tar",
        "shard-000000.tar",
        "shard-000000.index",
        "x.partial",
        "x.lock",
        "a.7.partial",
    ]
    for name in names:
        (tmp_path / name).write_bytes(bytes(4 * source.size))
        os.utime(tmp_path / name, (0, 0))
    cache = ShardCache(tmp_path, limit=2 * source.size)
    for number in (0, 1, 2):
        get(cache, source, number)
    assert all((tmp_path / name).stat().st_size == 4 * source.size for name in names)
    assert {1, 2} <= {number for number in range(6) if number in kept(cache, source)}
