"""The head that the documents start on one machine is not reachable from the network."""

import ipaddress
import re
import subprocess
import time

import pytest

from tests.conftest import ROOT
from tests.jobs.head import BIN, environment, listening_addresses, ray_head

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

JOB = "import ray; ray.init(); print('result', ray.get(ray.remote(lambda: 7).remote()))"


def documented_head(path):
    """Return the commands of a document that start a head on this machine, up to that one."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / path).read_text("utf-8"), re.M | re.S)
    (block,) = (block for block in blocks if "ray start --head" in block)
    before, command, _ = block.partition("ray start --head")
    return before + command


@pytest.mark.parametrize("path", ["README.md", "infra/README.md"])
def test_documented_head_listens_on_loopback_only(path):
    with ray_head(cpus=1, script=documented_head(path)) as head:
        until = time.monotonic() + 60
        while not head.ports <= {port for _, port in listening_addresses(head.pid)}:
            assert time.monotonic() < until, listening_addresses(head.pid)
            time.sleep(0.5)
        submit = [BIN / "ray", "job", "submit", "--address", head.address, "--"]
        job = subprocess.Popen(
            [*submit, "python", "-c", JOB], env=environment(), stdout=subprocess.PIPE, text=True
        )
        found = set()
        while job.poll() is None:
            found |= listening_addresses(head.pid)
            time.sleep(0.2)
        assert job.returncode == 0 and "result 7" in job.stdout.read()
    assert len(found) > len(head.ports)
    assert [one for one in found if not ipaddress.ip_address(one[0]).is_loopback] == []
