"""Ray's wrapping comes off errors, and its talk out of the log."""

import contextlib
import socket
import sys

import pytest
import ray
from ray._private.parameter import RayParams
from ray.exceptions import RayTaskError

from qzhou.cluster.session import _Quiet, _worker_env, filter_ray_log, local_options, our_error
from qzhou.errors import DataError, EndpointError, QzhouError


def test_workers_get_no_variable_that_the_job_sets_itself(monkeypatch):
    """Ray refuses to start where both a job's runtime environment and ours set one."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    assert _worker_env()["TOKENIZERS_PARALLELISM"] == "false"

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")

    assert "TOKENIZERS_PARALLELISM" not in _worker_env()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("\x1b[36m(RayTrainWorker pid=12)\x1b[0m training: stage1: 1/3 steps", "training: stage1: 1/3 steps"),
        ("\x1b[36m(TrainController pid=1)\x1b[0m [2026 E 1 1] core_worker.cc:2465: Actor with class name", None),
        ("\x1b[36m(PlacementGroupCleaner pid=7)\x1b[0m Traceback (most recent call last):", None),
        ("mining: docs: 4,100 queries", "mining: docs: 4,100 queries"),
    ],
)
def test_people_hear_the_stages_and_not_what_ray_says_to_itself(line, said, capsys):
    assert filter_ray_log(line) == said

    with contextlib.redirect_stdout(_Quiet(sys.stdout)):
        print(line)
        print()

    assert capsys.readouterr().out == (f"{said}\n\n" if said else "\n")


def wrapped(error):
    """As Ray raises it at the driver."""
    return RayTaskError("task", "traceback", error).as_instanceof_cause()


def test_an_error_of_ours_comes_out_of_what_ray_wrapped_around_it():
    error = our_error(wrapped(DataError("no rows")))

    assert type(error) is DataError
    assert str(error) == "no rows"


def test_an_error_inside_another_is_found():
    outer = RuntimeError("the job failed")
    outer.__cause__ = wrapped(wrapped(EndpointError("down")))

    assert isinstance(our_error(outer), EndpointError)


def test_the_failures_of_training_workers_are_looked_through():
    outer = RuntimeError("training failed")
    outer.worker_failures = {1: wrapped(DataError("no rows"))}

    assert isinstance(our_error(outer), DataError)


def test_other_errors_are_not_ours():
    circle = RuntimeError("a")
    circle.__context__ = RuntimeError("b")
    circle.__context__.__context__ = circle

    assert our_error(circle) is None
    assert our_error(wrapped(ValueError("x"))) is None
    assert not isinstance(wrapped(ValueError("x")), QzhouError)


def test_where_another_cluster_has_the_agents_port_ours_takes_another(monkeypatch):
    """Jobs are submitted through the agent: without its port nothing could be, as long as the other one runs."""
    before = RayParams.__init__.__defaults__
    with socket.socket() as other:
        other.bind((ray.util.get_node_ip_address(), 0))
        other.listen()
        monkeypatch.setattr("qzhou.cluster.session.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT", other.getsockname()[1])
        try:
            local_options()
            assert RayParams().dashboard_agent_listen_port == 0
            assert RayParams(num_cpus=3).num_cpus == 3
        finally:
            RayParams.__init__.__defaults__ = before
