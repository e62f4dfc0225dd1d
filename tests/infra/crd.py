"""A KubeRay custom resource definition as a strict JSON schema.

An API server silently removes fields that the definition does not contain, so it ignores a misspelt
field. The schema built here rejects it.
"""

from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def strict_validator(path: Path) -> Draft202012Validator:
    """Return a validator for the stored version's schema that rejects unknown fields.

    ``jsonschema.validate`` would check the schema itself on every call, which takes seconds.
    """
    with path.open("rb") as file:
        definition = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    stored = next(v for v in definition["spec"]["versions"] if v["storage"])
    schema = closed(stored["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = METADATA
    schema["properties"]["kind"] = {"const": definition["spec"]["names"]["kind"]}
    group = definition["spec"]["group"]
    schema["properties"]["apiVersion"] = {"const": f"{group}/{stored['name']}"}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return Draft202012Validator(schema)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with unlisted properties forbidden in every object."""
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {k: closed(v) for k, v in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if "items" in schema:
        result["items"] = closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    return result
