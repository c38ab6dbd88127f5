import numpy as np
import pytest

from qzhou.config.recipe import parse_recipe
from qzhou.data.records import Document
from qzhou.data.storage import Folder, write_records
from qzhou.encoder import load_encoder
from qzhou.serving.index import EncodePart, Part, SearchIndex, assemble, read_part
from qzhou.serving.loading import PROBES, Settings, load, lowest_cosine
from tests.ray.served import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("served") / "model"
    write_model(place, seed=1)
    return str(place)


@pytest.mark.parametrize(("precision", "lowest"), [("float32", None), ("bfloat16", 0.99), ("int8", 0.95)])
def test_a_precision_says_how_near_it_is_to_float32(model, precision, lowest):
    exact = load_encoder(model, max_tokens=16, dtype="float32", device="cpu").encode(PROBES)

    encoder, served = load(model, "m", Settings(max_tokens=16, precision=precision, device="cpu"))

    measured = lowest_cosine(exact, encoder.encode(PROBES))
    assert served.precision == precision
    if lowest is None:
        assert served.cosine_to_float32 is None
        assert measured == pytest.approx(1)
    else:
        assert served.cosine_to_float32 == pytest.approx(measured, abs=1e-6)
        assert lowest < measured < 1


def test_int8_is_another_model_than_float32(model):
    (_, plain), (_, small) = (
        load(model, "m", Settings(max_tokens=16, precision=one, device="cpu", measured=False))
        for one in ("float32", "int8")
    )

    assert small.fingerprint == f"{plain.fingerprint}-int8"
    assert small.cosine_to_float32 is None


def test_what_is_served_says_its_limits(model):
    _, served = load(model, "m", Settings(max_tokens=99, precision="float32", device="cpu"))

    assert served.max_tokens == 24  # where the model's folder truncates
    assert served.offered_dimensions == [8, 16, 32]
    assert served.vocabulary > 40


def test_token_ids_get_the_special_tokens_they_lack(model):
    encoder, _ = load(model, "m", Settings(max_tokens=5, precision="float32", device="cpu"))
    [whole] = encoder.tokenizer(["sort list"])["input_ids"]

    found, truncated = encoder.with_special_tokens([whole, whole[1:-1], [9] * 9, [whole[0]]])

    assert found == [whole, whole, [whole[0], 9, 9, 9, whole[-1]], [whole[0], whole[0], whole[-1]]]
    assert truncated == [False, False, True, False]


def test_an_index_finds_what_brute_force_finds_and_holds_a_text_once(model, tmp_path):
    folder = Folder.open(str(tmp_path))
    recipe = parse_recipe(
        {
            "run": {"name": "r", "storage": str(tmp_path)},
            "model": {"backbone": model, "max_document_tokens": 16, "dtype": "float32"},
            "datasets": [{"name": "d", "reader": "jsonl", "rule": "title_body", "paths": ["x"]}],
            "training": {
                "stage1": {"steps": 1, "learning_rate": 1e-4},
                "stage2": {"steps": 1, "learning_rate": 1e-4},
            },
        },
        place="test",
    )
    words = ["sort", "list", "open", "file", "read", "lines", "map", "key", "value", "tree"]
    texts = [f"{one} {other}" for one in words for other in words]
    for name, some in (("a", texts[:60]), ("b", texts[40:])):
        write_records(
            folder / name, [Document(id=f"{name}{n}", text=text) for n, text in enumerate(some)], Document
        )
    parts = [Part(folder / name, file, "") for name in "ab" for file in (folder / name).files(".parquet")]
    encode = EncodePart(recipe, model, folder / "encoded")
    files = [encode(table)["files"][0].as_py() for one in enumerate(parts) for table in read_part(None, one)]

    count = assemble(parts, files, folder / "encoded", (folder / "index").create())
    index = SearchIndex(tmp_path / "index")

    assert count == len(index) == len(texts)
    encoder = load_encoder(model, max_tokens=16, dtype="float32", device="cpu")
    query = encoder.encode(["sort the tree"])[0]
    exact = encoder.encode(texts) @ query
    found = index.search(query, 5)
    assert found[0][1] == texts[int(np.argmax(exact))]
    np.testing.assert_allclose([score for *_, score in found], np.sort(exact)[::-1][:5], atol=2e-3)
    assert len(index.search(query, 1000)) == len(texts)
    by_words = [text for _, text, _ in index.search_words("sort tree", 3)]
    assert set(by_words[:2]) <= {"sort tree", "tree sort"}
    assert {text for _, text, _ in index.search_both(query, "sort tree", 4)} >= {found[0][1]}
    assert len(index.search_words("nowhere", 3)) == 0
