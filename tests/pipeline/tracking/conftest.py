"""An empty tracking store, and a run in it."""

import pytest

from pipeline.tracking import connect
from tests.stores import new_store


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return new_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def client(uri):
    return connect(uri)


@pytest.fixture
def run_id(uri, client):
    experiment = client.get_experiment_by_name("points")
    identifier = experiment.experiment_id if experiment else client.create_experiment("points")
    return client.create_run(identifier).info.run_id
