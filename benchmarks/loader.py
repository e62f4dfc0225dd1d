"""How fast images reach training, against the limit and against other loaders.

    python -m benchmarks.loader                          # 4,000 generated images; 50 minutes
    python -m benchmarks.loader --shards SHARDSET        # any shard set of JPEGs
    python -m benchmarks.loader --augment                # crop, zoom-out and colour too

The limit is decoding and one warp in a plain loop over bytes in memory. All contenders use the same
decoder, draws and warp, on one core with one loader process (which the consumer shares) and on two
cores with two. In each round all of them are restarted, because the speed of a program differs by
up to a tenth between starts, and warmed up. Then they run in turns of a second while the others are
paused: other load on the machine slows all of them equally. There are two rates: images per second
of wall-clock time, and per second of CPU time of the whole process tree. litdata and nginx are
measured if they are installed (``pip install litdata``).

This loader is measured four times. From local shards at its start, when it also checks the headers
of every sample, and after the first epoch ("later"), when it does not. From nginx through a cache
of a third of the set, empty at the start, in the order of a large set (parts and windows), so
shards are fetched, checked and evicted during the whole measurement; and through a cache that holds
the set, after the first epoch ("kept").
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch

import pipeline.data.loading.sample_order
from benchmarks import loader_rivals as rivals
from benchmarks.assign import summary
from benchmarks.interleave import Contender, Turn, open_counters, process_tree, take_turns
from benchmarks.loader_set import HEIGHT, QUALITY, WIDTH, convert, write_folder
from pipeline.config import Config
from pipeline.data import build_train_loader, load_manifest
from pipeline.data.shards.reader import ShardSet
from pipeline.errors import UserError

RESULTS = Path(__file__).parent / "results" / "loader.json"
CONTENDERS = (
    *("limit", "this", "this_later", "this_nginx", "this_nginx_kept"),
    *("loose_files", "webdataset", "litdata"),
)
WARM_SECONDS = 2.0
TURNS_PER_ROUND = 8  # of a second
RATES = ("per_s", "per_cpu_s")
AUGMENT = {"data.crop": 0.5, "data.zoom_out": 0.5, "data.photometric": 0.5}
SETUPS = ((1, 1), (2, 2))  # cores, loader processes
NGINX = """
daemon off; pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1;
events {{}}
http {{ access_log off; sendfile on;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
  uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
  server {{ listen 127.0.0.1:{port}; root {folder}; }} }}
"""


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--shards", type=Path, help="shard set to use instead of generated images")
    add("--images", type=int, default=4000, help="images to generate")
    add("--rounds", type=int, default=10, help="of 8 s per contender; at least 2")
    add("--batch", type=int, default=32)
    add("--size", type=int, default=320)
    add("--augment", action="store_true")
    add("--out", type=Path, default=RESULTS)
    add(
        "--only",
        nargs="+",
        default=CONTENDERS,
        choices=CONTENDERS,
        help="contenders to measure, besides the limit",
    )
    add("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(json.loads(options.child[0]), *map(Path, options.child[1:]))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends all processes that it started
    with tempfile.TemporaryDirectory() as scratch:
        row = _compare(options, Path(scratch))
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    same = ("images", "batch", "size", "augment")
    rows = [old for old in rows if any(old[key] != row[key] for key in same)] + [row]
    options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def _compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    overrides: dict[str, Any] = {
        "model.image_size": options.size,
        "train.batch_size": options.batch,
        "train.epochs": 1e6,
        "data.cache": str(scratch / "cache"),
        **(AUGMENT if options.augment else {}),
    }
    (scratch / "cache").mkdir()
    sources = _sources(options, scratch)
    task = {"config": overrides, **sources}
    names = [name for name in CONTENDERS if name == "limit" or name in options.only]
    speed = {}
    with _nginx(Path(sources["shards"]), scratch) as url:
        task["nginx"] = url
        for cores, workers in SETUPS:
            tasks = [{**task, "what": name, "cores": cores, "workers": workers} for name in names]
            rounds = [_run_round(tasks, scratch) for _ in range(max(2, options.rounds))]
            speed[f"{cores} cores"] = _speeds(rounds)
            for name, rates in speed[f"{cores} cores"].items():
                print(f"{cores} cores  {name:15} {json.dumps(rates)}", flush=True)
    return {
        "images": _describe_images(options, Path(sources["shards"])),
        "batch": options.batch,
        "size": options.size,
        "augment": options.augment,
        "speed": speed,
        "start": _start({**task, "what": "start", "cores": 2, "workers": 2}),
        "memory": _start({**task, "what": "memory", "cores": 2, "workers": 2}),
        "machine": _machine(),
    }


def _run_round(tasks: list[dict[str, Any]], scratch: Path) -> dict[str, Turn | dict[str, str]]:
    """Return the work of the contenders in a round, or why they are unavailable."""
    cache = Path(tasks[0]["config"]["data.cache"])
    with contextlib.ExitStack() as stack:
        stack.callback(cache.mkdir, exist_ok=True)
        # Contenders are killed and leave files there.
        stack.callback(shutil.rmtree, cache, ignore_errors=True)
        started = []
        for task in tasks:
            contender = Contender(_command(task), scratch, task["what"])
            stack.callback(contender.end)
            started.append(contender)
        absent = {one.name: one.ready for one in started if "absent" in one.ready}
        present = [one for one in started if one.name not in absent]
        return {**take_turns(present, TURNS_PER_ROUND), **absent}


def _speeds(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return rates, and their ratio to the limit within rounds."""
    out: dict[str, Any] = {}
    for name in rounds[0]:
        if "absent" in rounds[0][name]:
            out[name] = rounds[0][name]
            continue
        out[name] = {}
        for key in RATES:
            rates, limits = (
                [_rate(turns[who], key) for turns in rounds] for who in (name, "limit")
            )
            ratios = [a / b for a, b in zip(rates, limits, strict=True)]
            out[name] |= {key: summary(rates), f"{key}_of_limit": summary(ratios)}
    return out


def _rate(turn: Turn, key: str) -> float:
    return turn.work / (turn.clock if key == "per_s" else turn.cpu)


def _sources(options: argparse.Namespace, scratch: Path) -> dict[str, str]:
    """Write the same images as shards, loose files and litdata's chunks; return the folders."""
    loose, shards, chunks = scratch / "loose", scratch / "shards", scratch / "chunks"
    if options.shards:
        shards = options.shards.absolute()
        loose.mkdir()
        stored = ShardSet(shards)
        for index in range(len(stored)):
            raw = stored.read(index)
            (loose / f"{index:06d}.jpg").write_bytes(raw.image)
            (loose / f"{index:06d}.json").write_bytes(raw.json)
    else:
        write_folder(loose, options.images)
        convert(loose, shards)
    if find_spec("litdata"):
        rivals.write_litdata(str(shards), chunks)
    return {"loose": str(loose), "shards": str(shards), "chunks": str(chunks)}


def _command(task: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.loader", "--child", json.dumps(task)]


def _start(task: dict[str, Any]) -> Any:
    """Run one measurement in a fresh process; return its result."""
    done = subprocess.run(_command(task), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task['what']}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _child(task: dict[str, Any], counted: Path | None = None) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["cores"]])
    rivals.start_worker()
    config = Config().replace({**task["config"], "data.loader_workers": task["workers"]})
    if task["what"] == "start":
        print(json.dumps(_start_up(task["shards"], config)))
    elif task["what"] == "memory":
        print(json.dumps(_memory(task["shards"], config)))
    elif counted:
        _work(task, config, open_counters(counted))


def _work(task: dict[str, Any], config: Config, count: np.ndarray) -> None:
    """Warm up, print the ready line, and count images until killed."""
    what, workers = task["what"], task["workers"]
    if what == "limit":
        processes = rivals.Limit(task["shards"], config, 1000).start(workers, count)
        time.sleep(WARM_SECONDS)
        print("{}", flush=True)
        for process in processes:
            process.join()
        return
    if what.startswith("this_nginx") and not task["nginx"]:
        return print(json.dumps({"absent": "nginx is not installed"}))
    if what == "litdata" and not find_spec("litdata"):
        return print(json.dumps({"absent": "litdata is not installed"}))
    try:
        batches = {
            "this": lambda: _this(task["shards"], config),
            "this_later": lambda: _later(task["shards"], config),
            "this_nginx": lambda: _from_nginx(task["nginx"], config),
            "this_nginx_kept": lambda: _from_nginx_kept(task["nginx"], config),
            "loose_files": lambda: rivals.loose_files(Path(task["loose"]), config, workers),
            "webdataset": lambda: rivals.webdataset(task["shards"], config, workers),
            "litdata": lambda: rivals.litdata(Path(task["chunks"]), config, workers),
        }[what]()
        next(batches)
    except UserError as error:
        return print(json.dumps({"absent": str(error)}))
    began = time.monotonic()
    while time.monotonic() < began + WARM_SECONDS:
        next(batches)
    print("{}", flush=True)
    for _ in batches:
        count[0] += config.train.batch_size


def _this(uri: str, config: Config) -> Iterator[Any]:
    return iter(build_train_loader(uri, config, rank=0, world_size=1))


def _later(uri: str, config: Config) -> Iterator[Any]:
    """Yield batches of this loader after the first epoch."""
    first = -(-load_manifest(uri).samples // config.train.batch_size)
    return itertools.islice(_this(uri, config), first, None)


def _from_nginx(uri: str, config: Config) -> Iterator[Any]:
    """Yield batches in the order of large sets, through a cache that cannot hold the set."""
    pipeline.data.loading.sample_order.MAX_PERMUTED_WHOLE = 0
    manifest = load_manifest(uri)
    gib = max(int(manifest.sizes.sum()) / 3, 5 * int(manifest.sizes.max())) / 2**30
    with tempfile.TemporaryDirectory(dir=config.data.cache) as cache:
        fields = {"data.cache": cache, "data.cache_gib": gib, "data.parts": 2, "data.window": 1}
        yield from _this(uri, config.replace(fields))


def _from_nginx_kept(uri: str, config: Config) -> Iterator[Any]:
    """Yield batches after the first epoch has filled a cache that holds the set."""
    with tempfile.TemporaryDirectory(dir=config.data.cache) as cache:
        yield from _later(uri, config.replace({"data.cache": cache}))


def _start_up(uri: str, config: Config) -> dict[str, Any]:
    """Return seconds to the first batch: from the start, and from the middle of an epoch."""
    middle = load_manifest(uri).samples * 5 // 2 // config.train.batch_size
    times: dict[str, list[float]] = {"fresh": [], "resumed": []}
    for _ in range(5):
        for name, step in (("fresh", 0), ("resumed", middle)):
            began = time.monotonic()
            batches = iter(build_train_loader(uri, config, 0, 1, start_step=step))
            next(batches)
            times[name].append(time.monotonic() - began)
            del batches
    return {name: summary(values) for name, values in times.items()} | {"resumed_at": middle}


def _memory(uri: str, config: Config) -> dict[str, Any]:
    """Return MiB of the process tree after each of ten epochs; shared pages count once."""
    steps = -(-load_manifest(uri).samples // config.train.batch_size)
    batches = _this(uri, config)
    mib = []
    for _ in range(10):
        for _ in range(steps):
            next(batches)
        mib.append(round(sum(map(_resident_bytes, process_tree(os.getpid()))) / 2**20, 1))
    return {"mib_after_epoch": mib}


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def _nginx(folder: Path, scratch: Path) -> Iterator[str | None]:
    """Yield the URL of a folder that nginx serves on loopback; None if it is not installed."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = scratch / "nginx.conf"
    conf.write_text(NGINX.format(root=scratch, port=port, folder=folder))
    os.chmod(scratch, 0o755)  # nginx's workers may be another user
    server = subprocess.Popen([binary, "-c", str(conf), "-e", str(scratch / "error.log")])
    try:
        _wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _wait_for_port(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise SystemExit("nginx did not start")


def _describe_images(options: argparse.Namespace, shards: Path) -> str:
    count = load_manifest(shards).samples
    if options.shards:
        return f"{count} of {load_manifest(shards).name}"
    return f"{count} generated, {WIDTH}x{HEIGHT}, quality {QUALITY}"


def _machine() -> dict[str, Any]:
    cpu = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "cpu": cpu or platform.processor(),
        "load": round(os.getloadavg()[1], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "simplejpeg": getattr(simplejpeg, "__version__", ""),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }


if __name__ == "__main__":
    main()
