"""Typed documents: round trip, older formats, newer formats, damage."""

from typing import Any, ClassVar

import pytest

from pipeline.errors import UserError
from pipeline.storage.document import Document, DocumentError


class Note(Document):
    FORMAT_VERSION: ClassVar[int] = 2

    text: str
    count: int = 0

    @classmethod
    def upgrade(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        content["text"] = content.pop("message")
        return content


def test_document_survives_a_round_trip():
    note = Note(text="a", count=3)
    assert note.format_version == 2
    assert Note.parse(note.encode(), "note.json") == note


@pytest.mark.parametrize("content", ['{"message": "a"}', '{"format_version": 1, "message": "a"}'])
def test_older_document_is_upgraded(content):
    assert Note.parse(content, "note.json") == Note(text="a")


def test_newer_document_is_rejected_by_name():
    with pytest.raises(UserError, match=r"note.json has format 3, written by a newer version"):
        Note.parse('{"format_version": 3, "text": "a"}', "note.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"format_version": "x", "text": "a"}', "format_version is 'x'"),
        ('{"format_version": 2}', "text: field required"),
        ('{"format_version": 2, "text": "a", "other": 1}', "other: extra inputs"),
        ('{"format_version": 2, "text": 1}', "text: input should be a valid string"),
    ],
)
def test_error_names_the_document_and_the_field(content, reason):
    with pytest.raises(DocumentError, match=f"note.json: {reason}"):
        Note.parse(content, "note.json")
