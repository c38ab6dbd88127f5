"""What depends on the head: it is killed and comes back, and its cluster speaks to holders of a certificate alone."""

import contextlib
import datetime
import ipaddress
import shutil
import signal
import subprocess

import psutil
import pytest
import ray

from tests.e2e.clusters import QUIET, asked, free_port, head_words, ray_node
from tests.e2e.commands import run, start

COUNTER = """
class Counter:
    def __init__(self): self.count = 0
    def add(self):
        self.count += 1
        return self.count
"""


@pytest.fixture
def redis(tmp_path):
    """Address of a Redis of this test."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", tmp_path, "--save", ""]
    )
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


def test_a_head_that_is_killed_finds_its_nodes_and_actors_again_with_redis(redis, tmp_path):
    port = free_port()
    gcs = f"{ray.util.get_node_ip_address()}:{port}"
    there, kept = {"RAY_ADDRESS": gcs}, {"RAY_REDIS_ADDRESS": redis, "RAY_external_storage_namespace": "a-test"}
    words = head_words(port)
    make = f"exec({COUNTER!r}); made = ray.remote(num_cpus=1)(Counter).options(name='kept', namespace='n', "
    make += "lifetime='detached', max_restarts=0).remote(); print(ray.get(made.add.remote()))"
    count = "print(ray.get(ray.get_actor('kept', namespace='n').add.remote()))"
    with (
        ray_node(*words, log=tmp_path / "head.log", **kept) as head,
        ray_node("--address", gcs, "--num-cpus", 2, log=tmp_path / "worker.log"),
    ):
        assert asked(make, **there) == "1"
        for one in (*psutil.Process(head.pid).children(recursive=True), head):
            one.send_signal(signal.SIGKILL)
        head.wait(30)
        with ray_node(*words, log=tmp_path / "again.log", **kept):
            assert asked(count, **there) == "2", "the actor has lived on, with what it knew"
            assert asked("print(sum(node['Alive'] for node in ray.nodes()))", **there) == "2"


@pytest.fixture
def certificate(tmp_path):
    """The environment of a process that holds the cluster's certificate, which signs itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a-cluster")])
    addresses = {"127.0.0.1", ray.util.get_node_ip_address()}
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(one)) for one in sorted(addresses))]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    files = {"SERVER_CERT": "tls.crt", "SERVER_KEY": "tls.key", "CA_CERT": "tls.crt"}
    return {"RAY_USE_TLS": "1", **{f"RAY_TLS_{key}": str(tmp_path / file) for key, file in files.items()}}


def test_a_stage_runs_on_an_encrypted_cluster_and_nobody_joins_without_a_certificate(
    certificate, write_recipe, tmp_path
):
    port = free_port()
    gcs = f"{ray.util.get_node_ip_address()}:{port}"
    with ray_node(*head_words(port, cpus=4), log=tmp_path / "head.log", **certificate):
        inside = run("jobs/transform.py", write_recipe(), **QUIET, **certificate, RAY_ADDRESS=gcs)
        outside = start("jobs/transform.py", write_recipe(), **QUIET, RAY_ADDRESS=gcs)
        with contextlib.suppress(subprocess.TimeoutExpired):  # Ray goes on trying
            outside.wait(20)
        outside.kill()
        said = "".join(outside.communicate())

    assert inside.status == 0, inside.text
    assert "transform: done in" in inside.out
    assert outside.returncode != 0
    assert "Failed to get cluster ID from GCS server" in said or "no Ray cluster can be joined" in said
    assert "transform: done in" not in said
