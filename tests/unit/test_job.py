"""Ray's wrapping comes off errors."""

from ray.exceptions import RayTaskError

from qzhou.cluster.session import _worker_env, our_error
from qzhou.errors import DataError, EndpointError, QzhouError


def test_workers_get_no_variable_that_the_job_sets_itself(monkeypatch):
    """Ray refuses to start where both a job's runtime environment and ours set one."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    assert _worker_env()["TOKENIZERS_PARALLELISM"] == "false"

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")

    assert "TOKENIZERS_PARALLELISM" not in _worker_env()


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
