"""Redaction of secrets in text that leaves the process: logs, errors, records."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(\w[\w+.-]*://)([^/\s:@]*)(:[^/\s]+)?@")
_SECRET_QUERY = re.compile(
    r"([?&][\w-]*(?:password|token|secret|key|signature|sig|credential)[\w-]*=)[^&\s'\"]+", re.I
)


def mask(text: str) -> str:
    """The text with the secrets of all URIs in it replaced by ``***``."""
    text = _USER_INFO.sub(
        lambda m: f"{m[1]}{m[2] if m[3] else '***'}{':***' if m[3] else ''}@", text
    )
    return _SECRET_QUERY.sub(r"\1***", text)
