"""The cache: one fetch for many processes, a byte limit, nothing half-written, whoever dies."""

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
    """A folder of six shards of two samples, 10 kB or so each."""
    folder = tmp_path_factory.mktemp("written")
    writer = ShardWriter(folder, max_samples=2, max_bytes=2**20)
    for i in range(12):
        writer.add("jpg", bytes([i]) * 4000, b"{}")
    return folder, writer.close()


@pytest.fixture
def source(written):
    """Copies a shard as a transfer would, and counts."""

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
    shard = source.shards[number]
    descriptor, index = cache.open(shard, source.fetch(shard))
    data = os.pread(descriptor, shard.bytes + 1, 0)
    os.close(descriptor)
    assert hashlib.sha256(data).hexdigest() == shard.sha256
    image_at, size = index[1, :2].tolist()
    assert data[image_at : image_at + size] == bytes([2 * number + 1]) * 4000


def kept(cache: ShardCache, source) -> list[int]:
    here = {path.stem for path in cache.folder.glob("*.tar")}
    return [i for i, shard in enumerate(source.shards) if shard.sha256 in here]


def space(cache: ShardCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.iterdir())


def test_a_shard_is_fetched_once_and_indexed(source, tmp_path):
    cache = ShardCache(tmp_path / "deep/cache")
    for number in (0, 1, 0, 1):
        get(cache, source, number)
    assert source.fetched == ["shard-000000.tar", "shard-000001.tar"]
    assert (tmp_path / "deep/cache").stat().st_mode & 0o077 == 0


def test_the_least_recently_used_go_first(source, tmp_path):
    cache = ShardCache(tmp_path, limit=3 * source.size)
    for number in (0, 1, 2, 0, 3):  # 1 is now the one longest unused
        get(cache, source, number)
        time.sleep(0.01)
    assert kept(cache, source) == [0, 2, 3] and space(cache) <= cache.limit
    get(cache, source, 1)
    assert kept(cache, source) == [0, 1, 3]


def test_the_limit_holds_whatever_is_read(source, tmp_path):
    cache = ShardCache(tmp_path, limit=int(2.5 * source.size))
    for number in [0, 1, 2, 3, 4, 5] * 3:
        get(cache, source, number)
        assert space(cache) <= cache.limit
    assert len(source.fetched) == 18


def test_a_limit_below_one_shard_is_one_line(source, tmp_path):
    with pytest.raises(UserError, match=r"data\.cache_gib .* cannot hold a shard of \d+ bytes"):
        get(ShardCache(tmp_path, limit=1000), source, 0)


def test_a_folder_that_cannot_be_made_is_one_line(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache .*file/cache: Not a directory"):
        get(ShardCache(tmp_path / "file/cache"), source, 0)


def test_a_failed_transfer_leaves_nothing(source, tmp_path):
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


def test_processes_that_need_more_than_fits_still_get_the_right_bytes(source, tmp_path):
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


def test_no_claim_becomes_a_shard_while_room_is_counted(source, tmp_path):
    """A count that met it under neither name would let the cache outgrow its limit."""
    cache, shard = ShardCache(tmp_path), source.shards[0]
    begun, go_on = threading.Event(), threading.Event()

    def fetch(to: Path) -> None:
        source.fetch(shard)(to)
        begun.set()
        go_on.wait(60)

    thread = threading.Thread(target=cache.fetch, args=(shard, fetch))
    thread.start()
    assert begun.wait(60)
    with try_lock_file(tmp_path / "room.lock"):
        go_on.set()
        thread.join(0.5)
        assert thread.is_alive() and len(list(tmp_path.glob("*.partial"))) == 1
    thread.join(60)
    assert kept(cache, source) == [0] and not list(tmp_path.glob("*.partial"))


def test_a_process_killed_in_mid_transfer_leaves_neither_lock_nor_space(source, tmp_path):
    cache = ShardCache(tmp_path / "cache", limit=2 * source.size)
    shard = source.shards[0]

    def stuck(to: Path) -> None:
        to.write_bytes(b"half of it")
        (tmp_path / "begun").touch()
        time.sleep(600)

    process = FORK.Process(target=lambda: cache.open(shard, stuck))
    process.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    # While it lives, the room it has claimed counts and its shard is left to it.
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


def test_a_file_that_something_has_cut_is_fetched_again(source, tmp_path):
    cache = ShardCache(tmp_path)
    get(cache, source, 0)
    path = tmp_path / f"{source.shards[0].sha256}.tar"
    path.write_bytes(path.read_bytes()[:100])
    get(cache, source, 0)
    assert source.fetched == ["shard-000000.tar"] * 2


def test_an_absent_index_is_made_again(source, tmp_path):
    cache = ShardCache(tmp_path)
    get(cache, source, 0)
    (tmp_path / f"{source.shards[0].sha256}.index").unlink()
    get(cache, source, 0)


def test_a_shard_with_other_samples_than_its_manifest_says_is_refused(source, tmp_path):
    shard = source.shards[0].model_copy(update={"samples": 3})
    with pytest.raises(UserError, match="holds 2 samples, the manifest says 3"):
        ShardCache(tmp_path).open(shard, source.fetch(shard))


def test_an_evicted_shard_in_use_is_read_on_and_then_closed(written, tmp_path):
    """Through ShardSet: what the cache deletes is closed when the next shard is opened."""
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
        problems=[],
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    size = entries[0].bytes + 64
    # fsspec's own local files stand for any protocol that it opens.
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


def test_what_is_in_use_is_not_the_least_recently_used(written, tmp_path, monkeypatch):
    from pipeline.data.shards import reader as module

    monkeypatch.setattr(module, "TOUCH_SECONDS", 0.0)
    folder, entries = written
    got = module.ShardSet(f"local://{folder}", ShardCache(tmp_path, 3 * (entries[0].bytes + 64)))
    for index in (0, 2, 0, 4, 0, 6, 0, 8):
        got.read(index)
        time.sleep(0.01)
    here = {path.stem for path in tmp_path.glob("*.tar")}
    assert here == {entries[n].sha256 for n in (0, 3, 4)}


def test_no_room_on_the_disk_is_one_line(source, tmp_path):
    def full(to: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cache .*: No space left on device"):
        ShardCache(tmp_path).open(source.shards[0], full)


def test_files_of_others_in_the_folder_stay_and_do_not_count(source, tmp_path):
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
