import pytest

from qzhou.cluster.spot import aws_seconds, drain_command, gcp_seconds, main, watch
from tests.metadata import metadata_server


def test_aws_says_when_the_instance_goes():
    with metadata_server() as (metadata, url):
        assert aws_seconds(url) is None
        metadata.notice = True
        assert 95 <= aws_seconds(url) <= 100


def test_a_notice_whose_time_has_passed_leaves_no_second():
    with metadata_server() as (metadata, url):
        metadata.notice, metadata.seconds = True, -5
        assert aws_seconds(url) == 0


def test_google_says_that_the_instance_goes():
    with metadata_server() as (metadata, url):
        assert gcp_seconds(url) is None
        metadata.notice = True
        assert gcp_seconds(url) == 30


@pytest.mark.parametrize("seconds", [aws_seconds, gcp_seconds])
def test_a_metadata_server_that_does_not_answer_is_no_notice(seconds, capsys):
    assert seconds("http://127.0.0.1:1") is None
    assert "spot: http://127.0.0.1:1" in capsys.readouterr().err


def test_the_node_is_drained_once_and_only_after_a_notice():
    answers, drained = iter([None, None, 97]), []

    watch(lambda: next(answers), drained.append, every_s=0)

    assert drained == [97]


def test_ray_knows_the_command_and_its_options():
    """The command is hidden in ``ray --help``, so its words are compared with what Ray defines."""
    from ray.scripts.scripts import drain_node

    command = drain_command(90, node="ab", address="10.0.0.1:6379")
    parsed = drain_node.make_context("drain-node", command[command.index("drain-node") + 1 :]).params

    assert parsed["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert parsed["deadline_remaining_seconds"] == 90
    assert (parsed["node_id"], parsed["address"]) == ("ab", "10.0.0.1:6379")


def test_a_provider_that_is_not_known_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--provider", "azure"])

    assert end.value.code == 2
    assert "'aws', 'gcp'" in capsys.readouterr().err
