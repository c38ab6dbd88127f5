"""Who does what next."""

from qzhou.evaluation.judge.model_specs import ModelSpec
from qzhou.evaluation.judge.task_scores import EvalTask
from qzhou.evaluation.judge.work_queue import WorkQueue

MODELS = [ModelSpec("bm25"), ModelSpec("backbone"), ModelSpec("stage2", "training/stage2/model", trained=True)]


def task(name, chars, kind="Retrieval", documents=10):
    return EvalTask(name, kind, "d", "retrieval", chars, documents, True)


def drained(queue, workers=("a", "b")):
    done = []
    while queue:
        for worker in workers:
            work = queue.take(worker)
            if work is not None:
                done.append((worker, work))
                queue.finished(work)
    return done


def test_every_model_is_judged_on_every_task_and_bm25_on_retrieval_alone():
    queue = WorkQueue(MODELS, [task("long", 9_000_000), task("pairs", 5_000, "STS")], 20_000)
    expected = len(queue)

    done = [(work.method, work.model.name, work.task.name) for _, work in drained(queue)]

    judged = [(model, task) for method, model, task in done if method == "score"]
    retrieval = {(model, "long") for model in ("bm25", "backbone", "stage2")}
    assert sorted(judged) == sorted(retrieval | {("backbone", "pairs"), ("stage2", "pairs")})
    assert sorted(model for method, model, _ in done if method == "embedding_health") == ["backbone", "stage2"]
    assert len(done) == expected


def test_the_longest_comes_first_and_a_worker_keeps_its_model():
    done = drained(WorkQueue(MODELS, [task("short", 1_000_000), task("long", 9_000_000)], 20_000))

    for worker in ("a", "b"):
        models = {work.model.name for one, work in done if one == worker} - {"bm25"}
        assert len(models) == 1
    judged = [work.task.name for _, work in done if work.method == "score" and work.model.name == "stage2"]
    assert judged == ["long", "short"]


def test_a_large_corpus_is_encoded_in_parts_before_it_is_judged():
    queue = WorkQueue(MODELS[2:], [task("large", 9_000_000, documents=45_000)], 20_000)
    taken = [queue.take("a"), queue.take("b"), queue.take("c"), queue.take("d")]

    parts = sorted((work.start, work.count) for work in taken if work.method == "encode")
    assert parts == [(0, 20_000), (20_000, 20_000), (40_000, 5_000)]
    assert queue.take("a") is None, "judging waits for the parts"
    for work in taken:
        assert queue
        queue.finished(work)
    assert queue.take("b").method == "score"
    assert not queue
