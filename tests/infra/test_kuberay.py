"""The Kubernetes manifests fit KubeRay's definitions and stay unprivileged and private."""

import copy
import shlex

import jsonschema
import pytest
import yaml

from tests.conftest import ROOT
from tests.infra.crd import strict_validator
from tests.infra.pins import image, pinned

KUBERAY = ROOT / "infra" / "kuberay"


def manifests(name):
    return list(yaml.safe_load_all((KUBERAY / name).read_text("utf-8")))


def cluster_spec(name):
    spec = manifests(name)[0]["spec"]
    return spec.get("rayClusterSpec", spec)


def pods():
    """Yield (location, pod spec) of every pod that the manifests create."""
    for name in ("raycluster.yaml", "rayjob.yaml"):
        spec = cluster_spec(name)
        yield f"{name} head", spec["headGroupSpec"]["template"]["spec"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]["spec"]
    yield (
        "rayjob.yaml submitter",
        manifests("rayjob.yaml")[0]["spec"]["submitterPodTemplate"]["spec"],
    )
    for manifest in manifests("mlflow.yaml"):
        if manifest["kind"] == "Deployment":
            yield "mlflow.yaml", manifest["spec"]["template"]["spec"]


PODS = dict(pods())


@pytest.fixture(scope="module")
def definitions(shared):
    folder = shared / "schemas" / "kuberay"
    return {
        "raycluster.yaml": strict_validator(folder / "ray.io_rayclusters.yaml"),
        "rayjob.yaml": strict_validator(folder / "ray.io_rayjobs.yaml"),
    }


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_manifest_fits_kuberay_definition(definitions, name):
    (manifest,) = manifests(name)
    definitions[name].validate(manifest)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "headGroupSpec", "replica"), 1),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "container"), []),
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "two"),
        (("spec", "authOptions", "mode"), "none"),
    ],
)
def test_wrong_field_is_rejected(definitions, path, value):
    broken = copy.deepcopy(manifests("raycluster.yaml")[0])
    parent = broken
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        definitions["raycluster.yaml"].validate(broken)


def test_mlflow_pod_fits_pod_schema(definitions):
    # KubeRay's definition contains the schema of a pod.
    cluster = definitions["raycluster.yaml"]
    head = cluster.schema["properties"]["spec"]["properties"]["headGroupSpec"]
    cluster.evolve(schema=head["properties"]["template"]).validate({"spec": PODS["mlflow.yaml"]})


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_ray_version_is_pinned_version(name):
    assert cluster_spec(name)["rayVersion"] == pinned("ray")


@pytest.mark.parametrize("location", PODS)
def test_pods_run_image_without_privileges(location):
    pod = PODS[location]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["image"] == image()
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_services_are_internal_and_require_token(name):
    spec = cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["enableIngress"] is False
    services = [m for m in manifests("mlflow.yaml") if m["kind"] == "Service"]
    assert [s["spec"]["type"] for s in services] == ["ClusterIP"]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_references_of_pods_exist(name):
    created = {(m["kind"], m["metadata"]["name"]) for m in manifests("prerequisites.yaml")}
    for location, pod in PODS.items():
        if not location.startswith(name):
            continue
        for volume in pod.get("volumes", []):
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert ("PersistentVolumeClaim", claim) in created
        for container in pod["containers"]:
            for source in container.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in created


def test_environment_leaves_retries_and_timeouts_of_mlflow_to_the_code():
    (environment,) = (m for m in manifests("prerequisites.yaml") if m["kind"] == "ConfigMap")
    assert [name for name in environment["data"] if name.startswith("MLFLOW_HTTP_REQUEST")] == []


def test_tracking_uri_names_the_mlflow_service():
    (environment,) = (m for m in manifests("prerequisites.yaml") if m["kind"] == "ConfigMap")
    (service,) = (m for m in manifests("mlflow.yaml") if m["kind"] == "Service")
    port = service["spec"]["ports"][0]["port"]
    uri = environment["data"]["MLFLOW_TRACKING_URI"]
    assert uri == f"http://{service['metadata']['name']}:{port}"
    arguments = PODS["mlflow.yaml"]["containers"][0]["args"]
    (allowed,) = (a for a in arguments if a.startswith("--allowed-hosts="))
    assert uri.removeprefix("http://") in allowed.split("=")[1].split(",")


def test_job_fits_resources_of_its_cluster():
    spec = manifests("rayjob.yaml")[0]["spec"]
    words = shlex.split(spec["entrypoint"])
    options = dict(zip(words[3::2], words[4::2], strict=True))
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert words[:3] == ["python", "-m", "jobs.train"]
    assert int(options["--ray.workers"]) == group["replicas"]
    assert float(options["--ray.cpus_per_worker"]) <= float(limits["cpu"])
    assert options["--ray.storage"].startswith("/storage/")
