"""Who does what next."""

from qzhou.evaluation.messages import Candidate, Planned
from qzhou.evaluation.queue import Queue

MODELS = [
    Candidate("bm25"),
    Candidate("backbone"),
    Candidate("stage2", "training/stage2/model", trained=True),
]


def plan(name, chars, kind="Retrieval", documents=10):
    return Planned(name, kind, "d", "retrieval", chars, documents, True)


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
    queue = Queue(MODELS, [plan("long", 9_000_000), plan("pairs", 5_000, "STS")], 20_000)
    expected = len(queue)

    done = [(work.method, work.candidate.name, work.plan.name) for _, work in drained(queue)]

    judged = [(model, task) for method, model, task in done if method == "judge"]
    retrieval = {(model, "long") for model in ("bm25", "backbone", "stage2")}
    assert sorted(judged) == sorted(retrieval | {("backbone", "pairs"), ("stage2", "pairs")})
    assert sorted(model for method, model, _ in done if method == "health") == [
        "backbone",
        "stage2",
    ]
    assert len(done) == expected


def test_the_longest_comes_first_and_a_worker_keeps_its_model():
    done = drained(Queue(MODELS, [plan("short", 1_000_000), plan("long", 9_000_000)], 20_000))

    for worker in ("a", "b"):
        models = {work.candidate.name for one, work in done if one == worker} - {"bm25"}
        assert len(models) == 1
    judged = [
        work.plan.name
        for _, work in done
        if work.method == "judge" and work.candidate.name == "stage2"
    ]
    assert judged == ["long", "short"]


def test_a_large_corpus_is_encoded_in_parts_before_it_is_judged():
    queue = Queue(MODELS[2:], [plan("large", 9_000_000, documents=45_000)], 20_000)
    taken = [queue.take("a"), queue.take("b"), queue.take("c"), queue.take("d")]

    parts = sorted((work.start, work.count) for work in taken if work.method == "encode")
    assert parts == [(0, 20_000), (20_000, 20_000), (40_000, 5_000)]
    assert queue.take("a") is None, "judging waits for the parts"
    for work in taken:
        assert queue
        queue.finished(work)
    assert queue.take("b").method == "judge"
    assert not queue
