"""Redaction of secrets in text that leaves the process: logs, error messages, records."""

from __future__ import annotations

import re

MAX_LENGTH = 300  # of an error in a message
_USER_INFO = re.compile(r"(\w[\w+.-]*://)([^/\s:@]*)(:[^/\s]+)?@")
_SECRET_PARAMETER = re.compile(
    r"([?&][\w-]*(?:password|token|secret|key|signature|sig|credential)[\w-]*=)[^&\s'\"]+", re.I
)
_QUERY = re.compile(r"\?\S+")


def mask(text: str) -> str:
    """Return the text with the secrets of all URIs in it replaced by ``***``."""
    text = _USER_INFO.sub(
        lambda m: f"{m[1]}{m[2] if m[3] else '***'}{':***' if m[3] else ''}@", text
    )
    return _SECRET_PARAMETER.sub(r"\1***", text)


def error_line(error: object) -> str:
    """Return an error's message as one short line without secrets, not even the query of a URL."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _QUERY.sub("?...", mask(text))[:MAX_LENGTH]


def first_line(error: object) -> str:
    """Return the first line of an error's message, masked and shortened."""
    lines = mask(str(error)).splitlines() or [type(error).__name__]
    return lines[0][:MAX_LENGTH]
