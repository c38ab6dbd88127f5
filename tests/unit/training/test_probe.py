"""What is refused before days of training: GPUs that cannot be used, unlike machines, a slow network."""

import pytest

from qzhou.errors import SetupError
from qzhou.training.probe import check_environments, check_speed

GOOD = {
    "torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.23.0", "ray": "2.60.0", "CUDA": "13.0",
    "driver": "580.1", "problem": "", "node": "10.0.0.1",
}  # fmt: skip


def test_machines_that_are_alike_may_train_together():
    check_environments([GOOD, GOOD | {"node": "10.0.0.2"}])


@pytest.mark.parametrize("name", ["torch", "deepspeed", "transformers", "ray", "CUDA", "driver"])
def test_machines_with_other_software_are_named_with_both_versions(name):
    with pytest.raises(SetupError, match=rf"10\.0\.0\.2 and 10\.0\.0\.1 have {name} other and {GOOD[name]}"):
        check_environments([GOOD, GOOD, GOOD | {"node": "10.0.0.2", name: "other"}])


def test_a_gpu_that_cannot_be_used_is_said_before_anything_else():
    with pytest.raises(SetupError, match=r"worker 1 on 10\.0\.0\.1: sees no GPU"):
        check_environments([GOOD, GOOD | {"problem": "sees no GPU", "CUDA": "12.8"}])


@pytest.mark.parametrize(("speed", "least", "passes"), [(1.0, 0.0, True), (40.0, 40.0, True), (3.0, 40.0, False)])
def test_a_network_below_the_recipes_bound_is_refused_with_both_numbers(speed, least, passes):
    if passes:
        check_speed(speed, least)
        return
    with pytest.raises(SetupError, match=r"sum 3\.00 GB/s .*min_all_reduce_gb_per_s is 40"):
        check_speed(speed, least)
