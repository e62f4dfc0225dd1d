"""The data of a training: the same from its first start to its last evaluation, and what it is."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.checkpoints.meta import CheckpointMeta, DataFingerprints
from pipeline.config import Config
from pipeline.data import Manifest, load_manifest, require_classes
from pipeline.distributed.world import World
from pipeline.errors import UserError
from pipeline.registry.model_card import DataSummary


def content_hashes(config: Config, manifest: Manifest, world: World) -> dict[str, str]:
    """Return the content hashes that rank 0 finds for ``data.train``, ``val`` and ``test``, by use.

    Raises UserError if another rank has opened other training data.
    """

    def find() -> dict[str, str]:
        uris = {use: getattr(config.data, use) for use in ("val", "test")}
        retries = config.data.retries
        held_out = {
            use: load_manifest(uri, retries).content_hash for use, uri in uris.items() if uri
        }
        return {"train": manifest.content_hash, **held_out}

    content = world.on_main(find)
    check_same_content(str(config.data.train), manifest, content["train"], world)
    return content


def check_same_content(uri: str, manifest: Manifest, content: str, world: World) -> None:
    """Raise UserError on every rank if one of them has opened a set with other content."""
    found = world.gather(manifest.content_hash) or []
    other = world.broadcast(next((one for one in found if one != content), None))
    if other:
        raise UserError(
            f"{uri} was replaced during the training, or differs between nodes (content "
            f"{other[:12]}, was {content[:12]}); restore it, then resume the run by its name"
        )


def check_data_unchanged(
    config: Config, manifest: Manifest, data: DataFingerprints, meta: CheckpointMeta
) -> None:
    """Raise UserError if a checkpoint was made on other data.

    Its position in the sample order, or its score on ``data.val``, would be meaningless.
    """
    train = str(config.data.train)
    require_classes(train, manifest, meta.classes, "the checkpoint to resume from")
    for uri, now, before in (
        (train, data.train, meta.data.train),
        (config.data.val, data.val or "", meta.data.val),
    ):
        if before is not None and now != before:  # old checkpoints have no hash of data.val
            raise UserError(
                f"{uri} is not the data that this run was started with (content {now[:12]}, was "
                f"{before[:12]}); restore it, or choose another --run name"
            )


def summarize_data(manifests: Mapping[str, Manifest]) -> list[DataSummary]:
    """Describe the sets of a training, with the trained classes that an evaluation set lacks."""
    trained = manifests["train"].boxes_per_class
    return [
        DataSummary(
            use=use,
            name=manifest.name,
            content_hash=manifest.content_hash,
            images=manifest.samples,
            objects=manifest.boxes,
            lacking=[
                name
                for name in manifest.classes
                if trained.get(name) and not manifest.boxes_per_class.get(name)
            ],
        )
        for use, manifest in manifests.items()
    ]
