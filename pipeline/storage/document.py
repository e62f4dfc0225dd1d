"""Typed JSON documents with a format version, which one process writes for another to read.

A document is one file that is read as a whole. Records of a stream (samples, spooled metrics) are
``msgspec`` structs instead, which cost less per record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError


class DocumentError(ValueError):
    """The content is not the expected document."""


class Document(BaseModel):
    """Base of all documents: typed, versioned, without unknown keys.

    A subclass sets its ``FORMAT_VERSION``, and overrides `upgrade` if it also reads older ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    FORMAT_VERSION: ClassVar[int] = 1

    format_version: int = Field(default=0, description="format of this document")

    def model_post_init(self, context: Any) -> None:
        """Set the version of a new document to the one that this code writes."""
        if not self.format_version:
            object.__setattr__(self, "format_version", self.FORMAT_VERSION)

    @classmethod
    def upgrade(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Convert the content of an older ``version`` to the current one."""
        return content

    @classmethod
    def parse(cls, data: bytes | str, name: str) -> Self:
        """Read a document. Error messages begin with its ``name``, for example its path.

        Raises DocumentError if the data is not such a document, UserError if a newer version of
        this software wrote it.
        """
        try:
            content = json.loads(data)
        except ValueError as error:
            raise DocumentError(f"{name}: not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise DocumentError(f"{name}: expected a JSON object")
        return cls.from_content(content, name)

    @classmethod
    def from_content(cls, content: Mapping[str, Any], name: str) -> Self:
        """Read a document from parsed JSON. Raises as `parse`."""
        version = content.get("format_version", 1)  # the first formats had no number
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise DocumentError(f"{name}: format_version is {version!r}")
        if version > cls.FORMAT_VERSION:
            raise UserError(
                f"{name} has format {version}, written by a newer version of this software; this "
                f"one reads up to {cls.FORMAT_VERSION}; update it"
            )
        current = dict(content)
        if version < cls.FORMAT_VERSION:
            current = cls.upgrade(current, version)
        try:
            return cls.model_validate({**current, "format_version": cls.FORMAT_VERSION})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DocumentError(f"{name}: {where}: {first['msg'].lower()}") from None

    def encode(self, indent: int | None = 1) -> bytes:
        """Return the document as UTF-8 JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=indent).encode()
