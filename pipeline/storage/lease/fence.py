"""The lease of a folder as it is stored, and the check before a write that another may reject."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.errors import LeaseLostError
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.folder import Storage

LEASE_FILE = "lease.json"


class LeaseInfo(Document):
    """``lease.json``: who writes to a folder. It remains after the release."""

    FORMAT_VERSION: ClassVar[int] = 1

    owner: str = Field(description="random token of the holder and its workers")
    holder: str = Field(description="process and host of the holder, for messages")
    process: str = Field(description="`process_identity` of the holder")
    seconds: float = Field(
        gt=0.0, description="time without a new heartbeat after which the lease is expired"
    )
    heartbeat: int = Field(ge=0, description="counts the renewals")
    released: bool = Field(default=False, description="the holder has ended")


def check_lease(storage: Storage, owner: str, subject: str) -> None:
    """Check that a folder is still leased to ``owner``, which may be a worker of the holder.

    A missing lease is not an error: the holder writes it again. ``subject`` begins the message.
    Raises LeaseLostError, or OSError if the lease cannot be read.
    """
    try:
        info = LeaseInfo.parse(storage.read(LEASE_FILE), f"{storage}/{LEASE_FILE}")
    except FileNotFoundError:
        return
    except DocumentError as error:
        raise OSError(str(error)) from None
    if info.owner != owner:
        raise LeaseLostError(lost_text(subject, info))
    if info.released:
        raise LeaseLostError(f"{subject} was released by {info.holder}, which has ended")


def lost_text(subject: str, info: LeaseInfo) -> str:
    """Return the message of the loss of a lease to another holder."""
    return (
        f"{subject} was taken over by {info.holder}, since its lease was not renewed in time; "
        "nothing more is written to it from here"
    )
