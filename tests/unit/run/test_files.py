"""The files of a run folder, as every reader of it gets them."""

from qzhou.data.storage import Folder
from qzhou.run.files import METRICS, RunFiles


def test_half_a_line_at_the_end_of_the_metrics_is_left_out(tmp_path):
    """A killed training leaves one, and one at work has not finished its last."""
    run = Folder.open(str(tmp_path))
    for stage, content in (("stage1", '{"step": 0}\n{"step": 1, "lo'), ("stage2", '{"step"')):
        (run / METRICS[stage].rpartition("/")[0]).create()
        run.write_bytes(METRICS[stage], content.encode())

    assert RunFiles(run).metrics == {"stage1": [{"step": 0}]}
