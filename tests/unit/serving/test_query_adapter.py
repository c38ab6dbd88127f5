"""A layer that turns a new model's vectors into an old one's space: the formula, what it finds, what is written."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sentence_transformers import SentenceTransformer
from torch import nn

from qzhou.cli.main import main
from qzhou.encoder import load_encoder
from qzhou.encoder.backbone import EmbeddingModel, load_backbone
from qzhou.encoder.export import save_sentence_transformer
from qzhou.errors import DataError, StorageError
from qzhou.serving.batch_texts import TextInput
from qzhou.serving.query_adapter import RANKS, Side, adapt, measured, orthogonal_map, sampled

GENERATOR = np.random.default_rng(0)


def unit(*shape):
    found = GENERATOR.normal(size=shape)
    return (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)


def test_the_map_is_that_of_procrustes():
    new, old = unit(500, 12), unit(500, 12)

    assert orthogonal_map(new, old) == pytest.approx(orthogonal_procrustes(new, old)[0], abs=1e-5)


@pytest.mark.parametrize(("width", "old_width"), [(8, 8), (8, 20), (20, 8)])
def test_a_turned_space_is_turned_back_and_nothing_is_stretched(width, old_width):
    turn = np.linalg.qr(GENERATOR.normal(size=(max(width, old_width), max(width, old_width))))[0]
    old = unit(300, old_width)
    new = (np.pad(old, ((0, 0), (0, max(0, width - old_width)))) @ turn)[:, :width].astype(np.float32)

    found = orthogonal_map(new, old)

    short = found @ found.T if width <= old_width else found.T @ found
    assert short == pytest.approx(np.eye(min(width, old_width)), abs=1e-5)
    if width >= old_width:
        assert new @ found == pytest.approx(old, abs=1e-5)


def test_what_is_measured_is_the_share_of_the_new_models_first_documents_in_loops():
    """Neither the documents that are searched nor the queries that search are fitted on."""
    old = Side(unit(50, 6), unit(400, 6))
    noise = Side(old.query_QD + 0.3 * unit(50, 6), old.document_MD + 0.3 * unit(400, 6))
    turn = np.linalg.qr(GENERATOR.normal(size=(6, 6)))[0].astype(np.float32)
    new = Side(noise.query_QD @ turn, noise.document_MD @ turn)

    found = measured(new, old)

    left_out = list(range(0, 50, 5))
    fitted = [n for n in range(50) if n not in left_out]
    back = orthogonal_map(
        np.concatenate([new.query_QD[fitted], new.document_MD[::2]]),
        np.concatenate([old.query_QD[fitted], old.document_MD[::2]]),
    )
    for name, queries in (("adapted", new.query_QD @ back), ("old", old.query_QD)):
        shares = []
        for n in left_out:
            wanted = sorted(range(1, 400, 2), key=lambda m, n=n: -float(new.query_QD[n] @ new.document_MD[m]))
            got = sorted(range(1, 400, 2), key=lambda m, n=n: -float(queries[n] @ old.document_MD[m]))
            shares.append(len(set(wanted[:RANKS]) & set(got[:RANKS])) / RANKS)
        assert found[name].mean == pytest.approx(np.mean(shares), abs=1e-4)
        assert found[name].within == pytest.approx(1.96 * np.std(shares, ddof=1) / np.sqrt(10), abs=1e-4)


@pytest.fixture
def texts(tmp_path):
    """Documents and queries as JSON lines; some stand twice or are empty."""
    words = ["red", "blue", "green", "tree", "sea", "paris", "london", "word", "list", "sum", "query"]
    found = []
    for name, rows in (
        ("documents", [f"the {a} {b} is a {c}" for a in words for b in words for c in words[:3]]),
        ("queries", [f"what is {a} {b}" for a in words for b in words[:4]]),
    ):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps({'text': text})}\n" for text in [*rows, rows[0], " "]))
        found.append(file)
    return found


def turned(folder, tiny):
    """The tiny model in a turned space of 40 dimensions."""
    found = load_backbone(str(tiny), attention="bidirectional", pooling="mean", dtype=torch.float32)
    layer = nn.Linear(32, 40, bias=False)
    layer.load_state_dict({"weight": torch.from_numpy(np.linalg.qr(GENERATOR.normal(size=(40, 32)))[0]).float()})
    model = EmbeddingModel(found.model.backbone, found.model.pooling, [nn.Sequential(layer, nn.Identity())])
    prompts = {"query": "ask: ", "document": ""}
    save_sentence_transformer(model, found.tokenizer, folder, max_tokens=32, prompts=prompts)
    return folder


def plain(folder, tiny):
    found = load_backbone(str(tiny), attention="bidirectional", pooling="mean", dtype=torch.float32)
    prompts = {"query": "ask: ", "document": ""}
    save_sentence_transformer(found.model, found.tokenizer, folder, max_tokens=32, prompts=prompts)
    return folder


def test_a_model_of_another_width_searches_the_old_models_index(tiny_qwen2, tmp_path, texts, capfd):
    """Between two models that differ by a turn nothing is lost, and readers of the format load the result."""
    new, old = turned(tmp_path / "new", tiny_qwen2), plain(tmp_path / "old", tiny_qwen2)
    words = ["--documents", str(texts[0]), "--queries", str(texts[1]), "--into", str(tmp_path / "adapted")]

    main(["adapt", str(new), str(old), *words])

    said = " ".join(capfd.readouterr().out.split())
    assert "the new model finds 100.0% (95 %: +- 0.0%) in the old one's index" in said
    content = json.loads((tmp_path / "adapted" / "adapter.json").read_text())
    assert (content["queries"], content["documents"]) == (44, 363)
    assert content["found"]["adapted"]["mean"] == 1.0
    asked = ["ask: what is red sea", "a text"]
    expected = load_encoder(str(old), max_tokens=32, dtype="float32").encode(asked)
    assert load_encoder(str(tmp_path / "adapted"), max_tokens=32, dtype="float32").encode(asked) == pytest.approx(
        expected, abs=1e-4
    )
    theirs = SentenceTransformer(str(tmp_path / "adapted"), device="cpu")
    assert theirs.encode(["what is red sea"], prompt_name="query")[0] == pytest.approx(expected[0], abs=1e-4)


def test_too_few_texts_to_fit_or_to_measure_are_refused(tiny_qwen2, tmp_path, texts):
    old = plain(tmp_path / "old", tiny_qwen2)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(texts[0].read_text().splitlines(keepends=True)[:60]))
    one = tmp_path / "one.jsonl"
    one.write_text('{"text": "what is red"}\n')
    found = {name: TextInput.find(str(file)) for name, file in {"few": few, "one": one, "many": texts[0]}.items()}

    with pytest.raises(DataError, match=r"gives 60 different documents, and it takes 64"):
        adapt(str(old), str(old), found["few"], found["many"], str(tmp_path / "a"))
    with pytest.raises(DataError, match=r"gives 1 different queries, and it takes 10"):
        adapt(str(old), str(old), found["many"], found["one"], str(tmp_path / "b"))
    with pytest.raises(StorageError, match=r"--into is .*there are files in it"):
        adapt(str(old), str(old), found["many"], found["many"], str(old))
    assert not list(tmp_path.glob("[ab]/*"))


def test_a_sample_is_spread_over_all_files(tmp_path):
    for name, rows in {"a": 300, "b": 1, "c": 1, "d": 300}.items():
        lines = [json.dumps({"text": f"{name}{n}"}) for n in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    texts = TextInput.find(str(tmp_path))

    found = sampled(texts, 100)

    assert len(set(found)) == len(found) == 100
    # from the whole of each file, in proportion to its rows
    assert 30 < sum(text.startswith("a") for text in found) < 70
    assert sum(int(text[1:]) >= 150 for text in found) > 30
    assert found == sampled(texts, 100)
    # small files beside a large one give no few texts
    assert len(sampled(texts, 10_000)) == 602
