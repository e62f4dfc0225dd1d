"""The cluster launcher file passes the schema and the checks that ship with Ray."""

import copy
import shlex

import jsonschema
import pytest
import yaml

from pipeline.distributed.ray_private_api import validate_launcher
from tests.conftest import ROOT

LAUNCHER = ROOT / "infra" / "ray" / "cluster.yaml"


@pytest.fixture
def launcher():
    return yaml.safe_load(LAUNCHER.read_text("utf-8"))


def test_ray_accepts_launcher_file(launcher):
    prepared = validate_launcher(copy.deepcopy(launcher))
    assert prepared["max_workers"] == len(launcher["provider"]["worker_ips"])


def test_ray_rejects_misspelt_key(launcher):
    launcher["set_up_commands"] = launcher.pop("setup_commands")
    with pytest.raises(jsonschema.ValidationError, match="set_up_commands"):
        validate_launcher(launcher)


def test_nodes_get_files_needed_for_installation(launcher):
    sources = {v for v in launcher["file_mounts"].values() if not v.startswith("~")}
    assert {"pyproject.toml", "constraints.txt", "Makefile", "model", "pipeline", "jobs"} <= sources
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_requires_token(launcher, key):
    (start,) = (command for command in launcher[key] if " start " in command)
    assert "RAY_AUTH_MODE=token" in shlex.split(start)
    assert "--dashboard-host" not in start
