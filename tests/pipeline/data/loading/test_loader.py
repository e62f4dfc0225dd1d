"""Test batches: the same for any cluster, any number of loader processes, after any restart."""

import multiprocessing
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data import build_eval_loader, build_train_loader, load_manifest
from pipeline.data.loading import loader as loader_module
from pipeline.data.loading.mosaic import closing_step
from pipeline.data.loading.train_dataset import input_size
from pipeline.data.shards.reader import ShardSet
from pipeline.data.sources.coco import coco_source
from pipeline.data.sources.voc import voc_source
from pipeline.data.transforms.resize import FILL_COLOUR
from pipeline.errors import TrainingFailed, UserError

AUGMENT = {
    "data.crop": 0.5,
    "data.zoom_out": 0.5,
    "data.photometric": 0.5,
    "train.epochs": 1.5,
}


def images_of(batches) -> list[tuple]:
    """Return every image with everything that is learned from it, in order."""
    rows = []
    for batch in batches:
        for i, image_id in enumerate(batch.image_ids):
            real = batch.labels[i] >= 0
            rows.append(
                (
                    image_id,
                    batch.images[i].numpy().tobytes(),
                    batch.boxes[i][real].numpy().tobytes(),
                    batch.labels[i][real].tolist(),
                )
            )
    return rows


@pytest.fixture(scope="module")
def one_rank(scenes):
    """Return all batches of an augmented training on one rank."""
    from pipeline.config import Config

    base = {"model.image_size": 64, "train.batch_size": 8, "data.loader_workers": 0}
    config = Config().replace({**base, **AUGMENT})
    return list(build_train_loader(scenes, config, 0, 1))


def test_batches_have_the_stated_shapes_and_types(scenes, one_rank):
    assert len(one_rank) == 5  # ceil(1.5 * 23 / 8)
    for batch in one_rank:
        assert batch.images.shape == (8, 3, 64, 64) and batch.images.dtype == torch.uint8
        assert batch.boxes.shape == (*batch.labels.shape, 4) and batch.boxes.dtype == torch.float32
        assert batch.labels.dtype == torch.int64 and batch.ignore_boxes.shape == (8, 0, 4)
        assert batch.valid.all() and batch.valid.shape == (8,) and batch.problems == []
        assert ((batch.labels >= 0) == (batch.boxes[..., 2] > batch.boxes[..., 0])).all()
        assert batch.boxes.min() >= 0 and batch.boxes.max() <= 64


def test_every_sample_occurs_once_per_epoch(scenes, one_rank):
    ids = [i for batch in one_rank for i in batch.image_ids]
    assert sorted(ids[:23]) == [f"train-0-{i:06d}" for i in range(23)]
    assert len(set(ids[23:])) == len(ids[23:])


def test_epochs_differ_in_augmentation(one_rank):
    rows = images_of(one_rank)
    first = {row[0]: row[1] for row in rows[:23]}
    same = [row[0] for row in rows[23:] if first[row[0]] == row[1]]
    assert len(same) < len(rows[23:]) / 2  # sometimes no augmentation is drawn twice


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_global_batches_are_the_same_for_any_world_size(scenes, one_rank, make_config, world_size):
    config = make_config(**AUGMENT)
    ranks = [list(build_train_loader(scenes, config, r, world_size)) for r in range(world_size)]
    assert {len(batches) for batches in ranks} == {5}
    for step, whole in enumerate(one_rank):
        together = [row for batches in ranks for row in images_of([batches[step]])]
        assert sorted(together) == sorted(images_of([whole]))


def test_batches_are_the_same_with_loader_processes(scenes, one_rank, make_config):
    for workers in (1, 2):
        config = make_config(**AUGMENT, **{"data.loader_workers": workers, "data.prefetch": 1})
        assert images_of(build_train_loader(scenes, config, 0, 1)) == images_of(one_rank)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(start=st.integers(0, 5), world_size=st.integers(1, 8))
def test_resume_gives_the_same_images_at_any_step_and_world_size(
    scenes, one_rank, make_config, start, world_size
):
    config = make_config(**AUGMENT)
    loaders = [build_train_loader(scenes, config, r, world_size, start) for r in range(world_size)]
    assert [len(loader) for loader in loaders] == [5 - start] * world_size
    rest = [row for loader in loaders for row in images_of(loader)]
    assert sorted(rest) == sorted(images_of(one_rank[start:]))


MIX = {**AUGMENT, "data.mosaic": 0.5, "data.mixup": 0.4, "data.fit": "letterbox"}


def test_mosaic_is_the_same_after_resume_and_for_any_workers(scenes, make_config):
    config = make_config(**MIX, **{"data.sizes": (64, 128), "data.size_steps": 1})
    whole = list(build_train_loader(scenes, config, 0, 1))
    assert {batch.images.shape[-1] for batch in whole} == {64, 128}
    assert max(len(row) for row in images_of(whole)) and all(b.valid.all() for b in whole)
    processes = config.replace({"data.loader_workers": 2})
    assert images_of(build_train_loader(scenes, processes, 0, 1)) == images_of(whole)
    rest = [
        row
        for rank in range(3)
        for row in images_of(build_train_loader(scenes, config, rank, 3, start_step=2))
    ]
    assert sorted(rest) == sorted(images_of(whole[2:]))


@pytest.mark.parametrize("variant", ["ssd", "published"])
def test_rotated_images_are_the_same_after_resume_and_for_any_workers(scenes, make_config, variant):
    turned = {"data.rotate": 25.0, "data.scale": 0.4, "data.shear": 5.0}
    config = make_config(**MIX, **turned, **{"data.augment_variant": variant})
    whole = list(build_train_loader(scenes, config, 0, 1))
    rest = [
        row
        for rank in range(3)
        for row in images_of(build_train_loader(scenes, config, rank, 3, start_step=2))
    ]
    assert sorted(rest) == sorted(images_of(whole[2:]))
    off = config.replace(dict.fromkeys(turned, 0.0))
    assert images_of(build_train_loader(scenes, off, 0, 1)) != images_of(whole)


@pytest.mark.parametrize(("fraction", "mixed"), [(0.0, 5), (0.1, 5), (0.4, 3), (0.5, 3), (1.0, 0)])
def test_mosaic_and_mixup_end_at_a_global_step(scenes, make_config, fraction, mixed):
    config = make_config(**MIX, **{"data.close_mosaic": fraction})
    always, never = (
        list(build_train_loader(scenes, make_config(**mix), 0, 1))
        for mix in (MIX, {**MIX, "data.mosaic": 0.0, "data.mixup": 0.0})
    )
    expected = always[:mixed] + never[mixed:]  # of ceil(1.5 * 23 / 8) = 5 steps
    assert images_of(build_train_loader(scenes, config, 0, 1)) == images_of(expected)
    resumed = [
        row
        for rank in range(2)
        for row in images_of(build_train_loader(scenes, config, rank, 2, start_step=4))
    ]
    assert sorted(resumed) == sorted(images_of(expected[4:]))


def test_closing_step_is_exact_where_the_fraction_is_not():
    assert closing_step(0.1, 100) == 90 and closing_step(0.9, 10) == 1
    assert closing_step(0.0, 7) == 7 and closing_step(1.0, 7) == 0
    assert closing_step(0.1, 7) == 7  # at most the fraction


def test_input_size_changes_neither_draws_nor_order(scenes, make_config):
    small, large = (
        list(build_train_loader(scenes, make_config(**MIX, **{"data.sizes": (side,)}), 0, 1))
        for side in (64, 128)
    )
    for a, b in zip(small, large, strict=True):
        assert a.image_ids == b.image_ids
        kept = (a.labels >= 0).sum(1)
        assert torch.equal(kept, (b.labels >= 0).sum(1))  # the same objects ...
        # ... in the same places, except for rounding where the tiles of a mosaic meet.
        assert torch.allclose(a.boxes * 2, b.boxes, atol=4.0)


def test_input_size_depends_on_the_global_step_only(make_config):
    config = make_config(**{"data.sizes": (64, 128, 192), "data.size_steps": 5})
    sides = [input_size(config, step) for step in range(100)]
    assert set(sides) == {64, 128, 192}
    assert all(len(set(sides[k : k + 5])) == 1 for k in range(0, 100, 5))
    assert input_size(make_config(), 7) == 64


def test_sizes_on_both_sides_of_a_pyramid_level_are_rejected(scenes, make_config):
    config = make_config(**{"data.sizes": (512, 576)})
    with pytest.raises(UserError, match=r"data\.sizes \[512, 576\] and model\.image_size 64"):
        build_train_loader(scenes, config, 0, 1)


def test_unreadable_partner_leaves_a_tile_without_objects(damage, scenes, make_config):
    config = make_config(**{"data.mosaic": 1.0, "train.epochs": 1, "data.max_bad_fraction": 1})
    loader = build_train_loader(damage([7]), config, 0, 1)
    batches = list(loader)
    valid = {i: bool(v) for b in batches for i, v in zip(b.image_ids, b.valid, strict=True)}
    assert sum(not v for v in valid.values()) == 1  # only the damaged image itself
    assert sum(loader.bad.problems.values()) > 1  # it was also a partner
    lost = 0
    for batch, intact in zip(batches, build_train_loader(scenes, config, 0, 1), strict=True):
        for row in batch.valid.nonzero().flatten():
            found, whole = (
                {(*box, label) for box, label in zip(*pair, strict=True) if label >= 0}
                for pair in (
                    (b.boxes[row].tolist(), b.labels[row].tolist()) for b in (batch, intact)
                )
            )
            assert found <= whole
            blank = (batch.images[row].permute(1, 2, 0) == torch.tensor(FILL_COLOUR)).all(2)
            for x1, y1, x2, y2, _ in found:
                assert not blank[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1].all()
            lost += len(whole - found)
    assert lost


def test_partners_count_as_samples_read(damage, make_config):
    config = make_config(**{"data.mosaic": 1.0, "train.epochs": 2})
    loader = build_train_loader(damage([7]), config, 0, 1)
    list(loader)
    assert loader.bad.samples_read == 4 * 6 * 8  # six batches of eight images of four samples


def test_images_in_use_are_not_overwritten(scenes, make_config):
    config = make_config(**{"data.loader_workers": 1, "data.prefetch": 1, "train.epochs": 8})
    batches, copies = [], []
    for batch in build_train_loader(scenes, config, 0, 1):
        batches.append(batch.images)
        copies.append(batch.images.clone())
    assert len(batches) == 23 and all(map(torch.equal, batches, copies))


def test_slots_are_reused(scenes, make_config):
    config = make_config(**{"data.loader_workers": 1, "data.prefetch": 1, "train.epochs": 8})
    places = {b.images.data_ptr() for b in build_train_loader(scenes, config, 0, 1)}
    assert len(places) <= 4


@pytest.mark.parametrize("hangs", [1, 9])
def test_loader_processes_that_hang_at_their_start_are_replaced(
    scenes, make_config, monkeypatch, tmp_path, hangs
):
    """A hanging one neither says that it lives nor ends at SIGTERM."""
    start = loader_module._start_worker

    def hang(sign_of_life, number):
        times = tmp_path / "times"
        with times.open("a") as file:
            file.write(".")
        if len(times.read_text()) <= hangs:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        start(sign_of_life, number)

    monkeypatch.setattr(loader_module, "_start_worker", hang)
    monkeypatch.setattr(loader_module, "START_SECONDS", 0.5)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    config = make_config(**{"data.loader_workers": 1})
    batches = build_train_loader(scenes, config, 0, 1)
    if hangs == 1:
        assert images_of(batches) == images_of(
            build_train_loader(scenes, make_config(**{"data.loader_workers": 0}), 0, 1)
        )
    else:
        with pytest.raises(TrainingFailed, match=r"hung 3 times .* set data\.loader_workers to 0"):
            list(batches)
    assert not multiprocessing.active_children()


def test_resume_reads_nothing_before_its_step(scenes, make_config, monkeypatch):
    loader = build_train_loader(scenes, make_config(**AUGMENT), 0, 1, start_step=4)
    read = []
    original = ShardSet.read
    monkeypatch.setattr(ShardSet, "read", lambda self, i: read.append(i) or original(self, i))
    list(loader)
    assert len(read) == 8


def test_starting_does_not_advance_the_global_random_state(scenes, make_config):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(build_train_loader(scenes, make_config(), 0, 1)))
    assert torch.equal(before, torch.get_rng_state())


def test_epochs_end_at_the_stated_steps(scenes, make_config):
    loader = build_train_loader(scenes, make_config(**{"train.epochs": 3}), 0, 1)
    assert [loader.steps_per_epoch_end(e) for e in range(3)] == [3, 6, 9]
    assert loader.total_steps == len(loader) == 9
    config = make_config(**{"train.epochs": 3, "train.min_steps": 40})
    assert len(build_train_loader(scenes, config, 0, 1)) == 40


def test_world_larger_than_the_batch_is_rejected(scenes, make_config):
    with pytest.raises(UserError, match=r"train\.batch_size 8 is smaller than the 9 workers"):
        build_train_loader(scenes, make_config(), 0, 9)


def test_fewer_samples_than_a_batch_cause_a_warning(scenes, make_config, caplog):
    loader = build_train_loader(
        scenes, make_config(**{"train.batch_size": 64, "train.epochs": 1}), 0, 1
    )
    assert "has 23 samples, fewer than train.batch_size 64" in caplog.text
    (batch,) = loader
    assert len(batch.image_ids) == 64 and len(set(batch.image_ids)) == 23


def test_missing_shard_set_is_reported(tmp_path, make_config):
    for build in (build_train_loader, build_eval_loader):
        with pytest.raises(UserError, match=r"not a shard set \(manifest\.json not found\)"):
            build(str(tmp_path), make_config(), 0, 1)


def test_crowds_become_regions_to_ignore_and_empty_images_train(
    coco, tmp_path, convert_source, make_config
):
    rows = [{"bbox": [0, 0, 20, 15]}, {"bbox": [20, 15, 20, 15], "iscrowd": 1}]
    images = [
        {"id": 7, "file_name": "one.jpg", "width": 40, "height": 30},
        {"id": 8, "file_name": "two.jpg", "width": 40, "height": 30},
    ]
    folder, annotations = coco(rows, images=images)
    shutil.copy(folder / "one.jpg", folder / "two.jpg")
    convert_source(coco_source(folder, annotations), tmp_path / "out")
    config = make_config(**{"train.batch_size": 2, "train.epochs": 1, "data.flip": 0})
    (batch,) = build_train_loader(str(tmp_path / "out"), config, 0, 1)
    full, empty = (batch.image_ids.index(i) for i in ("7", "8"))
    assert batch.boxes[full].tolist() == [[0, 0, 32, 32]] and batch.labels[full].tolist() == [0]
    assert batch.ignore_boxes[full].tolist() == [[32, 32, 64, 64]]
    assert batch.labels[empty].tolist() == [-1] and batch.valid.all()
    assert batch.ignore_boxes[empty].tolist() == [[0, 0, 0, 0]]


@pytest.fixture
def damage(scenes, tmp_path):
    """Return a function that copies the scenes and overwrites the images of some samples."""

    def run(indices) -> str:
        copy = Path(shutil.copytree(scenes, tmp_path / "damaged"))
        for i in indices:
            path = copy / f"shard-{i // 5:06d}.tar"
            at, size = np.fromfile(path.with_suffix(".index"), "<i8").reshape(-1, 4)[i % 5, :2]
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes(size))
        return str(copy)

    return run


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_sample_keeps_its_position_masked(
    damage, scenes, one_rank, make_config, caplog, workers
):
    bad = "train-0-000007"
    config = make_config(**AUGMENT, **{"data.loader_workers": workers})
    loader = build_train_loader(damage([7]), config, 0, 1)
    occurrences = 0
    for whole, batch in zip(one_rank, loader, strict=True):
        for i, image_id in enumerate(whole.image_ids):
            assert batch.valid[i] == (image_id != bad)
            if image_id == bad:
                occurrences += 1
                assert not batch.images[i].any() and (batch.labels[i] == -1).all()
            else:
                assert images_of([batch])[i] == images_of([whole])[i]
    assert occurrences >= 1 and "shard-000001.tar sample 2: not an image" in caplog.text
    assert sum(loader.bad.problems.values()) == occurrences


def test_truncated_shard_trains_on_the_remaining_samples(scenes, tmp_path, make_config):
    copy = Path(shutil.copytree(scenes, tmp_path / "cut"))
    path = copy / "shard-000004.tar"
    path.write_bytes(path.read_bytes()[:3000])
    loader = build_train_loader(str(copy), make_config(**{"train.epochs": 1}), 0, 1)
    assert sum(int((~batch.valid).sum()) for batch in loader) == 3
    assert all("shard-000004.tar" in problem for problem in loader.bad.problems)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_samples_stop_the_run_with_the_list(damage, make_config, workers):
    uri = damage(range(11))
    config = make_config(**{"train.epochs": 9, "data.loader_workers": workers})
    with pytest.raises(UserError, match=r"samples could not be read, above data\.max_bad_fraction"):
        list(build_train_loader(uri, config, 0, 1))
    with pytest.raises(UserError) as caught:
        list(build_eval_loader(uri, config, 0, 1))
    assert all(f"sample {i}" in str(caught.value) for i in range(5))
    assert "\n" not in str(caught.value)


def test_label_beyond_the_classes_is_a_problem(scenes, tmp_path, make_config):
    copy = Path(shutil.copytree(scenes, tmp_path / "copy"))
    manifest = load_manifest(copy).model_copy(update={"classes": ["circle"]})
    (copy / "manifest.json").write_text(manifest.model_dump_json())
    batch = next(iter(build_train_loader(str(copy), make_config(), 0, 1)))
    assert "is not one of the 1 classes" in batch.problems[0]
    assert "image 'train-0-" in batch.problems[0]
    evaluated = build_eval_loader(str(copy), make_config(), 0, 1)._dataset[range(23)].unpack()
    assert len(evaluated.problems) == 23 - len(evaluated.image_ids) > 0
    assert all("image 'train-0-" in problem for problem in evaluated.problems)


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_reads_each_sample_once(scenes, make_config, world_size, workers):
    config = make_config(**{"evaluate.batch_size": 4, "data.loader_workers": workers})
    seen, alone = [], [batch.image_ids for batch in build_eval_loader(scenes, config, 0, 1)]
    for rank in range(world_size):
        loader = build_eval_loader(scenes, config, rank, world_size)
        batches = list(loader)
        assert len(batches) == len(loader)
        own = [i for batch in batches for i in batch.image_ids]
        for batch in batches:
            assert batch.image_ids in alone  # the same images together for any number of ranks
            assert batch.images.shape[1:] == (3, 64, 64)
            assert batch.sizes.tolist() == [[96, 96]] * len(batch.image_ids)
            assert [s.image_id for s in batch.samples] == batch.image_ids
        seen += own
    assert seen == [f"train-0-{i:06d}" for i in range(23)]  # each rank reads a row of them


def test_evaluation_on_more_ranks_than_samples(scenes, make_config):
    loader = build_eval_loader(scenes, make_config(**{"data.loader_workers": 1}), 30, 40)
    assert len(loader) == 0 and list(loader) == []


def test_evaluation_skips_damaged_samples_with_a_warning(damage, make_config, caplog):
    config = make_config(**{"evaluate.batch_size": 1})
    loader = build_eval_loader(damage([2]), config, 0, 1)
    ids = [i for batch in loader for i in batch.image_ids]
    assert len(ids) == 22 and "train-0-000002" not in ids
    assert "shard-000000.tar sample 2" in caplog.text


def test_real_images_load(shared, tmp_path, convert_source, make_config):
    source = voc_source(shared / "data/mini", "train")
    convert_source(source, tmp_path / "out")
    config = make_config(**AUGMENT, **{"model.image_size": 128, "train.batch_size": 4})
    batches = list(build_train_loader(str(tmp_path / "out"), config, 0, 1))
    assert all(batch.valid.all() for batch in batches)
    assert 20 < np.mean([batch.images.float().mean() for batch in batches]) < 235


def test_dataset_can_be_sent_to_a_spawned_process(scenes, one_rank, make_config):
    dataset = build_train_loader(scenes, make_config(**AUGMENT), 0, 1)._dataset
    assert images_of([dataset[0].unpack()]) == images_of(one_rank[:1])  # opens files, fills caches
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own bytes
    assert images_of([copy[3].unpack()]) == images_of([one_rank[3]])


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_in_page_locked_memory_beside_a_gpu(scenes, one_rank, make_config, workers):
    config = make_config(**AUGMENT, **{"data.loader_workers": workers})
    batches = list(build_train_loader(scenes, config, 0, 1))
    # An empty tensor has no memory to pin.
    assert all(value.is_pinned() for batch in batches for value in batch[:5] if value.numel())
    assert images_of(batches) == images_of(one_rank)
