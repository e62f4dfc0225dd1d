"""Put a YOLO data set together: names and splits, images, label files, and what is unused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from pipeline.data.sources.files import FileError, Files, open_files
from pipeline.data.sources.record import (
    Images,
    Source,
    SourceImage,
    skipped_image,
)
from pipeline.data.sources.yolo.description import YAML_SUFFIXES, Description, find_description
from pipeline.data.sources.yolo.keypoints import find_keypoints
from pipeline.data.sources.yolo.label_files import (
    LabelFiles,
    label_path,
    unused_label_files,
)
from pipeline.data.sources.yolo.labels import YoloImage
from pipeline.data.sources.yolo.splits import (
    SplitImages,
    list_images,
    named_splits,
    split_images,
)
from pipeline.errors import UserError

DESCRIPTION_SUFFIXES = (*YAML_SUFFIXES, ".data")


def yolo_source(
    root: Path,
    split: str | None,
    classes: list[str] | None = None,
    *,
    allow_no_labels: bool = False,
) -> Source:
    """Return the images of one split, or of all splits if ``split`` is None.

    ``root`` is a folder, a tar or a zip, or a folder inside one, with a YAML that has ``names``, or
    that YAML itself. obj.data, obj.names and classes.txt are read, too. Without any of them,
    ``classes`` gives the names, and a split is a folder of that name. Raises UserError, also if no
    image has a label file, unless ``allow_no_labels``.
    """
    files, about, root = _open(root, classes)
    all_images = list_images(files)
    images = split_images(files, all_images, about, split, root)
    existing = [name for name in images.names if name not in images.missing]
    labels = LabelFiles(files, existing)
    used = [name for image in existing if (name := labels.get(image))]
    if not used and not allow_no_labels:
        raise UserError(
            f"--root {root}: none of {len(existing)} images has a label file; the first one "
            f"expected is {label_path(existing[0])}"
        )
    keypoints = about.keypoints
    if keypoints is None:
        keypoints = find_keypoints(files, used, about)
    unused = unused_label_files(files, existing, all_images, labels)
    found = about.problems + images.problems + labels.problems
    return Source(
        kind="yolo",
        name=files.name,
        classes=list(dict.fromkeys(about.names[number] for number in sorted(about.names))),
        images=Images(lambda: _source_images(files, images, labels, about.names, keypoints)),
        total=len(images.names),
        problems=[*files.problems(), *found, *unused],
        boxes_are="upright",
    )


def yolo_splits(root: Path, classes: list[str] | None = None) -> list[str]:
    """Return the splits that the description of a data set states, else those of its folders.

    Raises as `yolo_source` does.
    """
    files, about, _ = _open(root, classes)
    return list(about.splits) or sorted(named_splits(files, list_images(files)))


def _open(root: Path, classes: Sequence[str] | None) -> tuple[Files, Description, Path]:
    """Return the files of the data set, its description, and the folder or archive of the files."""
    only = None
    if root.suffix.lower() in DESCRIPTION_SUFFIXES and not root.is_dir():
        root, only = root.parent, root.name
    files = open_files(root, "--root")
    if only is not None and only not in files:
        raise UserError(f"--root {root / only}: no such file")
    about = find_description(files, root, only, classes)
    if about.describes_folder and list_images(below := files.subfolder(about.folder)):
        about.file = PurePosixPath(about.file).name
        files = below
    if only is not None and not list_images(files):
        return _open_above(root, about)
    return files, about, root


def _open_above(root: Path, about: Description) -> tuple[Files, Description, Path]:
    """Open the folder around that of a YAML without images, if its ``path`` is that folder."""
    levels = about.path.rstrip("/").split("/")
    folder = root.absolute()
    if set(levels) != {".."} or len(levels) >= len(folder.parents) or not root.is_dir():
        raise UserError(
            f"--root {root / about.file}: no images in {root}, and path is {about.path!r}; "
            "move the YAML to the folder of the data set"
        )
    above = folder.parents[len(levels) - 1]
    about.file = (folder.relative_to(above) / about.file).as_posix()
    return open_files(above, "--root"), about, above


def _source_images(
    files: Files,
    images: SplitImages,
    labels: LabelFiles,
    names: Mapping[int, str],
    keypoints: bool,
) -> Iterator[SourceImage]:
    table = tuple(sorted(names.items()))
    first: dict[str, str] = {}  # image of each label file
    for image in images.names:
        if image in images.missing:
            yield skipped_image(image, image, images.missing[image])
            continue
        stem, label_name = PurePosixPath(image).with_suffix("").as_posix(), labels.get(image)
        if label_name and first.setdefault(label_name, image) != image:
            reason = (
                f"shares the label file {label_name} with {first[label_name]}, which is kept; "
                "rename or remove one of the images"
            )
            yield skipped_image(stem, image, reason)
            continue
        try:
            file = files.file(image)
            text = files.file(label_name) if label_name else None
        except FileError as error:
            yield skipped_image(image, image, f"{error} in {files.location}")
            continue
        yield YoloImage(stem, image, file, label_name or label_path(image), text, table, keypoints)
