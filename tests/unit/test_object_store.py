"""A folder on S3, which is moto's server: what is asked of it, counted."""

import socket

import pytest
import requests

from bench.object_store import KEYS, store
from qzhou.data.storage import Folder
from qzhou.errors import StorageError
from qzhou.training.node_copies import folder_of_node


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket, and the server that counts."""
    with store() as (url, server), pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}.items():
            patch.setenv(name, value)
        requests.put(f"{url}/bucket", timeout=10).raise_for_status()
        yield "s3://bucket", server


@pytest.mark.parametrize(
    ("work", "most"),
    [
        (lambda folder: folder.create(), 0),
        (lambda folder: folder.write_bytes("new", b"content"), 1),
        (lambda folder: folder.write_bytes("deep/er/new", b"content"), 1),
        (lambda folder: folder.exists("known"), 1),
        (lambda folder: folder.read_bytes("known"), 2),
        (lambda folder: folder.files(recursive=True), 1),
        (lambda folder: folder.copy_to(folder.parent / "copied"), 5),  # two files
        (lambda folder: folder.link_to(folder.parent / "linked"), 4),
    ],
    ids=["create", "write", "write deep", "exists", "read", "list", "copy", "link"],
)
def test_an_operation_asks_no_more_than_it_must(bucket, request, work, most):
    uri, server = bucket
    folder = Folder.open(f"{uri}/{request.node.callspec.id.replace(' ', '-')}")
    folder.write_bytes("known", b"content")
    folder.write_bytes("below/known", b"content")
    server.by_folder.clear()

    work(folder)

    assert server.by_folder.total() <= most


def test_no_marker_of_a_folder_is_left(bucket):
    uri, _ = bucket
    folder = Folder.open(f"{uri}/markers")
    (folder / "a").create().write_bytes("b/c", b"content")
    (folder / "a").copy_to(folder / "d")
    (folder / "a").link_to(folder / "e")

    assert folder.files(recursive=True) == ["a/b/c", "d/b/c", "e/b/c"]
    assert (folder / "e").read_bytes("b/c") == b"content"
    assert not any(name.endswith("/") for name in folder.files(recursive=True))


def test_a_file_that_is_there_stays_and_deleting_twice_is_no_error(bucket):
    uri, _ = bucket
    folder, other = Folder.open(f"{uri}/from"), Folder.open(f"{uri}/to")
    for name in ("kept", "new"):
        folder.write_bytes(name, b"from here")
    other.write_bytes("kept", b"was there")

    folder.link_to(other)
    folder.delete()
    folder.delete()

    assert [other.read_bytes(name) for name in ("kept", "new")] == [b"was there", b"from here"]
    assert not folder.exists()


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_said_when_it_is_written():
    with pytest.raises(StorageError, match=r"s3://another/run/recipe\.json' cannot be written.*bucket"):
        Folder.open("s3://another/run").create().write_json("recipe.json", {})


def test_the_ranks_of_a_node_copy_a_model_once_in_large_parts(bucket, tmp_path):
    """Each rank had a copy of its own: 113 GB of a 7B model on a node of eight, by 14,000 requests each."""
    uri, server = bucket
    model = Folder.open(f"{uri}/model")
    content = {"config.json": b"{}", "weights/model.safetensors": bytes(20 * 2**20)}
    for name, one in content.items():
        model.write_bytes(name, one)
    server.by_folder.clear()
    place = tmp_path / "node" / "model"

    with folder_of_node(model, place, removes=False) as one, folder_of_node(model, place, removes=True) as other:
        assert one == other == place.with_name(f"model@{socket.gethostname()}")
        assert {name: (one / name).read_bytes() for name in content} == content

    assert server.by_folder.total() <= 8  # 66 of Arrow's own parts of 1 MiB
    assert not one.exists()
