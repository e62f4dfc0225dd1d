"""Rename or merge the classes of any source, before classes are chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline.data.sources.record import ParsedImage, Record, Source, SourceImage, WrappedImage
from pipeline.errors import UserError


def rename_classes(source: Source, new_names: Mapping[str, str]) -> Source:
    """Return the source with new names for some classes; equal names become one class.

    All names are replaced at once, so that two can be swapped. A merged class has the place and the
    category id of its first one. Raises UserError if the source lacks a class.
    """
    for name in new_names:
        if name not in source.classes:
            raise UserError(
                f"--rename {name}={new_names[name]}: unknown class {name!r}; known: "
                f"{', '.join(source.classes)}"
            )
    names = [new_names.get(name, name) for name in source.classes]
    classes = list(dict.fromkeys(names))
    ids = source.category_ids
    return replace(
        source,
        classes=classes,
        images=_renamed(source.images, dict(new_names)),
        category_ids=None if ids is None else [ids[names.index(name)] for name in classes],
    )


def _renamed(images: Iterable[SourceImage], new_names: dict[str, str]) -> Iterator[SourceImage]:
    for image in images:
        if isinstance(image, ParsedImage):
            yield ParsedImage(_rename(image.record, new_names))
        else:
            yield RenamedImage(image, tuple(new_names.items()))


@dataclass(frozen=True)
class RenamedImage(WrappedImage):
    """An image whose classes are renamed when it is converted."""

    new_names: tuple[tuple[str, str], ...]

    def read_record(self) -> Record:
        """Read the annotations, with the new names."""
        return _rename(self.source.read_record(), dict(self.new_names))


def _rename(record: Record, new_names: Mapping[str, str]) -> Record:
    objects = [
        item._replace(name=new_names[item.name]) if item.name in new_names else item
        for item in record.objects
    ]
    return replace(record, objects=objects)
