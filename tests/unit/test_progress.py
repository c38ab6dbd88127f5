"""What is noted of long work: how much was done, how long it took, and when the first of it was there."""

import time

from qzhou.telemetry.progress import progress, recorded


def test_phases_are_recorded_with_the_time_to_their_first_units():
    with recorded() as phases:
        with progress("first", total=5, unit="texts") as bar:
            time.sleep(0.05)
            bar.advance(2)
            time.sleep(0.02)
            bar.advance(3)
            bar.add_worker_seconds(1.5)
            bar.add_worker_seconds(2.25)
        with progress("nothing", total=None, unit="rows"):
            pass

    first, nothing = phases
    assert (first.label, first.unit, first.done, first.first_done, first.advances) == ("first", "texts", 5, 2, 2)
    assert (first.worker_s, nothing.worker_s) == (3.75, 0.0)
    assert 0.05 <= first.first_s < first.seconds
    assert (nothing.done, nothing.first_s, nothing.advances) == (0, 0.0, 0)


def test_nothing_is_recorded_where_nobody_asks():
    with progress("alone", total=1, unit="texts") as bar:
        bar.advance(1)
    with recorded() as phases:
        pass

    assert not phases


def test_a_stage_keeps_its_phases_in_its_manifest(make_recipe):
    from qzhou.run.run import Run, Stage

    def work(_):
        with progress("part", total=3, unit="rows") as bar:
            bar.advance(3)
        return {"rows": 3}

    run = Run.open(make_recipe())
    run.stage(Stage(name="transform", settings={}, inputs={}, code_of=("qzhou.data.records",)), work)

    (phase,) = run.manifest("transform").phases
    assert (phase["label"], phase["done"], phase["unit"]) == ("part", 3, "rows")
