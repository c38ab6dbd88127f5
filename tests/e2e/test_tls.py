"""A cluster whose processes speak TLS to each other, as docs/cluster.md says: who has no certificate stays outside."""

import datetime
import ipaddress
import ssl
from pathlib import Path

import grpc
import pytest
import ray
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qzhou.cluster.ports import free_port
from tests.e2e.clusters import QUIET, asked, head_words, ray_node
from tests.e2e.commands import run


def key_file(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    kind = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*kind))
    return key


def certificate(name: str, key, *, signed_by: x509.Name, with_key, extension) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=signed_by,
        subject_name=named(name),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(hours=1),
        not_valid_after=now + datetime.timedelta(days=1),
    )
    return builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints)).sign(
        with_key, hashes.SHA256()
    )


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> dict[str, str]:
    """Ray's variables, with an authority and a certificate for this node that were made for the test."""
    folder = tmp_path_factory.mktemp("tls")
    authority, own = key_file(folder / "ca.key"), key_file(folder / "tls.key")
    addresses = {"127.0.0.1", ray.util.get_node_ip_address()}
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(one)) for one in sorted(addresses))]
    )
    issued = {"signed_by": named("test authority"), "with_key": authority}
    made = {
        "ca.crt": certificate(
            "test authority", authority, extension=x509.BasicConstraints(ca=True, path_length=0), **issued
        ),
        "tls.crt": certificate("test node", own, extension=names, **issued),
    }
    for name, one in made.items():
        (folder / name).write_bytes(one.public_bytes(serialization.Encoding.PEM))
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / "tls.crt"),
        "RAY_TLS_SERVER_KEY": str(folder / "tls.key"),
        "RAY_TLS_CA_CERT": str(folder / "ca.crt"),
    }


@pytest.fixture(scope="module")
def address(tls, tmp_path_factory):
    port = free_port()
    log = tmp_path_factory.mktemp("head") / "log"
    with ray_node(*head_words(port, cpus=2), log=log, **tls):
        yield f"{ray.util.get_node_ip_address()}:{port}"


def test_a_stage_runs_where_all_speak_tls(address, tls, write_recipe):
    done = run("jobs/transform.py", write_recipe(), RAY_ADDRESS=address, **QUIET, **tls)

    assert done.status == 0, done.text
    assert "transform: done in" in done.out


def test_who_has_no_certificate_stays_outside(address, tls):
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=5)
    assert asked("print(len(ray.nodes()))", RAY_ADDRESS=address, **tls) == "1"


def test_the_cluster_shows_the_certificate_that_it_was_given(address, tls):
    host, port = address.split(":")
    shown = ssl.get_server_certificate((host, int(port)), timeout=300)

    assert x509.load_pem_x509_certificate(shown.encode()) == x509.load_pem_x509_certificate(
        Path(tls["RAY_TLS_SERVER_CERT"]).read_bytes()
    )
