"""Search: whatever the shards and blocks, the ranks of brute force; an approximate index is measured."""

import faiss
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qzhou.data.storage import Folder
from qzhou.errors import RecipeError
from qzhou.mining.prefilter import prefilter
from qzhou.mining.shard import (
    MAPPED_FILES,
    ExactSearch,
    QueryBlock,
    SearchResult,
    Shard,
    VectorFile,
    divided,
    recall,
    training_rows,
    vectors_at,
)


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def written(folder, vectors: np.ndarray, rows_per_file: int) -> tuple[Folder, list[VectorFile]]:
    place, files = Folder.open(str(folder)), []
    for start in range(0, len(vectors), rows_per_file):
        part = vectors[start : start + rows_per_file]
        files.append(VectorFile(f"part-{start:06d}.npy", start, len(part)))
        place.write_array(files[-1].name, part)
    return place, files


def block_of(query: np.ndarray, positive: np.ndarray | None = None, owner=()) -> QueryBlock:
    return QueryBlock(query, query[:0] if positive is None else positive, np.array(owner, dtype=np.int64))


def brute_force(query: np.ndarray, document: np.ndarray, count: int) -> np.ndarray:
    score = np.einsum("qd,md->qm", query, document)
    return np.stack([np.lexsort((np.arange(len(document)), -row))[:count] for row in score])


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 300),
    per_file=st.integers(1, 90),
    shards=st.integers(1, 5),
    count=st.integers(1, 40),
    copies=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_any_number_of_shards_equals_one_and_equals_brute_force(
    tmp_path_factory, rows, per_file, shards, count, copies, seed
):
    query, document = (np.round(64 * one) / 64 for one in (unit(7, 12, seed), unit(rows, 12, seed + 1)))
    # products of 64ths are exact on every machine
    document = np.concatenate([document, *[document[:1]] * copies])
    folder, files = written(tmp_path_factory.mktemp("vectors"), document, per_file)
    block = block_of(query)

    alone = Shard(folder, files).search(block, count)
    together = SearchResult.merged(
        [Shard(folder, part).search(block, count) for part in divided(files, shards)], count
    )

    expected = brute_force(query, document, count)
    assert (alone.row_NK == expected).all()
    assert (together.row_NK == expected).all()
    assert (together.score_NK == alone.score_NK).all()
    assert sum(one.rows for part in divided(files, shards) for one in part) == len(document)


def test_blocks_of_documents_change_nothing(tmp_path):
    query, document = unit(50, 16, 0), unit(900, 16, 1)
    folder, files = written(tmp_path, document, 64)
    positive, owner = document[[3, 5, 8, 900 - 1]], [0, 0, 7, 49]
    whole = Shard(folder, files).search(block_of(query, positive, owner), 30)

    one_file = ExactSearch(block_bytes=1)
    small = Shard(folder, files, exact=one_file).search(block_of(query, positive, owner), 30)

    assert all((getattr(whole, name) == getattr(small, name)).all() for name in ("score_NK", "row_NK"))
    assert (whole.positive_cosine_NK == small.positive_cosine_NK).all()
    near = np.maximum(document[whole.row_NK[0]] @ positive[0], document[whole.row_NK[0]] @ positive[1])
    assert whole.positive_cosine_NK[0] == pytest.approx(near, abs=1e-6)
    assert (whole.positive_cosine_NK[1] == -np.inf).all()  # it has no positive


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 400),
    count=st.integers(1, 30),
    spare=st.integers(0, 40),
    # the closer the documents, the less bfloat16 proves
    spread=st.sampled_from([1.0, 0.05, 0.001]),
    seed=st.integers(0, 99),
)
def test_a_search_by_way_of_bfloat16_finds_what_float32_finds(tmp_path_factory, rows, count, spare, spread, seed):
    generator = np.random.default_rng(seed)
    document = (np.eye(1, 12) + spread * generator.normal(size=(rows, 12))).astype(np.float32)
    document /= np.linalg.norm(document, axis=1, keepdims=True)
    query = unit(9, 12, seed + 1)
    folder, files = written(tmp_path_factory.mktemp("vectors"), document, 60)
    block = block_of(query, document[[0, rows - 1]], [3, 8])
    plain = ExactSearch(prefilters=False)
    expected = Shard(folder, files, exact=plain).search(block, count)

    prefiltered = ExactSearch(prefilters=True, least_products=0, spare=spare, queries_at_once=4)
    found = Shard(folder, files, exact=prefiltered).search(block, count)

    assert (found.row_NK == expected.row_NK).all()
    assert (found.score_NK == expected.score_NK).all()
    assert (found.positive_cosine_NK == expected.positive_cosine_NK).all()


def test_the_prefilter_names_a_bound_that_holds_and_most_queries_need_no_second_search():
    query, document = unit(200, 64, 0), unit(5000, 64, 1)

    found = prefilter(query, [(np.arange(3000), document[:3000]), (np.arange(3000, 5000), document[3000:])], 80)

    score = query @ document.T
    np.put_along_axis(score, found.row_NC, -1.0, axis=1)
    assert (score.max(axis=1) <= found.outside_N).all()
    best = np.sort(query @ document.T, axis=1)[:, -30]
    assert (best > found.outside_N).mean() > 0.9


@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat"])
@pytest.mark.parametrize("prefilters", [False, True])
def test_copies_are_not_searched(tmp_path, index, prefilters):
    query, document = unit(5, 8, 0), unit(60, 8, 1)
    folder, files = written(tmp_path, document, 17)
    copies = np.array([0, 16, 17, 18, 40, 59])
    exact = ExactSearch(prefilters=prefilters, least_products=0)

    one = Shard(folder, files, index, "nprobe=4" if index != "Flat" else "", copies, exact)

    left = np.setdiff1d(np.arange(60), copies)
    expected = left[brute_force(query, document[left], 54)]
    assert one.rows == 54
    assert (one.search(block_of(query), 99).row_NK == expected).all()
    # their vectors are there: one may be a positive
    assert (one.vectors(copies) == document[copies]).all()


def test_vectors_of_any_rows_come_in_the_order_asked_for(tmp_path):
    document = unit(100, 4, 0)
    folder, files = written(tmp_path, document, 30)
    rows = np.array([99, 31, 31, 60, 35])

    assert (Shard(folder, files[1:]).vectors(rows) == document[rows]).all()


def test_an_approximate_index_is_measured_and_its_scores_are_exact(tmp_path):
    query, document = unit(50, 16, 0), unit(2000, 16, 1)
    folder, files = written(tmp_path, document, 500)

    few = Shard(folder, files, "IVF50,PQ4x4", "nprobe=2")
    every = Shard(folder, files, "IVF50,Flat", "nprobe=50")

    exact = few.search(block_of(query), 20, exactly=True)
    found = few.search(block_of(query), 20)
    assert (exact.row_NK == brute_force(query, document, 20)).all()
    shared = [
        len(set(ours) & set(best)) for ours, best in zip(found.row_NK.tolist(), exact.row_NK.tolist(), strict=True)
    ]
    assert recall(found.row_NK, exact.row_NK) == pytest.approx(sum(shared) / 1000)
    assert 0.02 < recall(found.row_NK, exact.row_NK) < 0.9
    assert recall(every.search(block_of(query), 20).row_NK, exact.row_NK) == 1.0
    there = found.score_NK > -np.inf
    true = np.einsum("nkd,nd->nk", document[found.row_NK], query)
    assert found.score_NK[there] == pytest.approx(true[there], abs=1e-6)


def test_what_an_approximate_index_does_not_find_is_not_there(tmp_path):
    folder, files = written(tmp_path, np.eye(8, dtype=np.float32), 8)

    found = Shard(folder, files, "IVF8,Flat", "nprobe=1").search(block_of(np.eye(8, dtype=np.float32)[:1]), 8)

    assert found.score_NK[0, 0] == 1.0
    assert (found.score_NK[0, 1:] == -np.inf).all()
    assert found.row_NK.min() >= 0


def test_an_index_that_faiss_does_not_know_is_refused_by_name(tmp_path):
    folder, files = written(tmp_path, np.eye(3, dtype=np.float32), 3)

    with pytest.raises(
        RecipeError, match=r"mining.index 'Flatt' .* 3 documents of 3 dimensions: .*'Flat' always does"
    ):
        Shard(folder, files, "Flatt")


def test_files_are_divided_into_runs_of_about_equal_rows():
    files = [VectorFile(str(n), 10 * n, 10) for n in range(7)]

    assert [[one.name for one in part] for part in divided(files, 3)] == [["0", "1", "2"], ["3", "4"], ["5", "6"]]
    assert len(divided(files[:2], 5)) == 2


def test_a_shard_of_many_files_keeps_few_of_them_open(tmp_path):
    """A process may have 1,024 files open, and a million documents are a thousand files of vectors."""
    document = unit(MAPPED_FILES + 300, 4, 0)
    shard = Shard(*written(tmp_path, document, 1))
    before = psutil.Process().num_fds()

    found = shard.search(block_of(document), 1)

    assert np.array_equal(found.row_NK[:, 0], np.arange(len(document)))
    assert np.array_equal(shard.vectors(np.arange(len(document))), document)
    assert psutil.Process().num_fds() - before <= MAPPED_FILES


def test_some_vectors_are_read_from_the_files_that_hold_them(tmp_path):
    document = unit(50, 4, 0)
    folder, files = written(tmp_path, document, 10)
    (tmp_path / files[1].name).unlink()
    rows = np.array([49, 3, 3, 25, 0])

    assert np.array_equal(vectors_at(folder, files, rows), document[rows])


@pytest.mark.parametrize(
    ("factory", "rows"), [("IVF16,Flat", 200_000), ("IVF65536,Flat", 64 * 65_536), ("PQ4x4", 200_000)]
)
def test_an_index_learns_its_cells_from_enough_vectors(factory, rows):
    assert training_rows(faiss.index_factory(8, factory)) == rows
