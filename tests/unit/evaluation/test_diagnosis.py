"""Each sign of trouble is planted and found alone; a healthy run shows none; what is missing is said."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from qzhou.config.recipe import load_recipe
from qzhou.config.transform import ContaminationSection
from qzhou.data.overlap import Overlap, overlap_rows
from qzhou.data.prompts import Prompt
from qzhou.data.records import LabeledExample, PairExample, RetrievalExample
from qzhou.data.storage import table_of
from qzhou.encoder import load_encoder
from qzhou.evaluation.diagnosis import Facts, diagnose, diagnosis_text
from qzhou.evaluation.diagnosis.checks import CHECKS
from qzhou.evaluation.intervals import Interval, mean, mean_decrease, mean_of, share, widened, worst_case_interval
from qzhou.evaluation.judge.mteb_models import embedding_health
from qzhou.evaluation.judge.per_example_scores import Part, PerExampleScores, paired_difference
from qzhou.run.files import RunFiles
from qzhou.run.run import Run
from qzhou.training.batch_plan import BatchPlan, DatasetSize
from qzhou.training.examples import TrainingSet
from qzhou.training.loader import TrainingStage
from qzhou.training.loop import train_stage
from qzhou.transform.contamination.index_builder import IndexBuilder
from tests.conftest import WORDS
from tests.ranks.problem import FakeRecorder, model_of
from tests.torch_engine import TorchEngine
from tests.unit.evaluation.healthy import (
    DATASETS,
    HEALTH,
    differences,
    healthy,
    mined,
    overlap,
    quickstart,
    retrieval,
    rows,
    stage1,
    stage2,
    step,
    transformed,
    written,
)

RECIPES = Path(__file__).parents[3] / "recipes"


NAMES = [check.__name__ for check in CHECKS]


def findings(facts):
    return diagnose(facts).findings


def signs(facts):
    return [one.check for one in findings(facts)]


def skipped(facts):
    return {one.check for one in diagnose(facts).skipped}


def text(facts):
    return diagnosis_text(dataclasses.asdict(diagnose(facts)))


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_shows_no_sign_and_all_were_looked_for(make_recipe, seed):
    facts = healthy(
        make_recipe,
        steps={"stage1": stage1(seed), "stage2": stage2(seed)},
        mining={"docs_search": mined(seed=seed)},
        synthesis=written(seed=seed),
    )

    assert (findings(facts), skipped(facts)) == ([], set())
    assert text(facts) == f"Diagnosis: 0 of {len(CHECKS)} signs of trouble are there"


def test_a_quickstart_that_was_run_shows_no_sign():
    facts = quickstart(load_recipe(RECIPES / "quickstart.toml").model_dump(mode="json"))

    assert findings(facts) == []
    assert skipped(facts) == {"cosent_unstable"}, "two steps of pairs are too few"
    assert findings(dataclasses.replace(facts, rows=[], differences=[])) == []


def vector_health(mean_cosine=0.12, effective_rank=253.6):
    return HEALTH | {"stage2": HEALTH["stage2"] | {"mean_cosine": mean_cosine, "effective_rank": effective_rank}}


def losses_of_pairs(of):
    """Stage 2 with other losses of its pairs; ``of`` takes the number of the step among them."""
    steps, pairs = stage2(), 0
    for number, one in enumerate(steps):
        if one["task"] == "pair":
            steps[number] = one | {"loss": of(pairs)}
            pairs += 1
    return {"stage1": stage1(), "stage2": steps}


def fallen(**scores):
    found = rows(**scores)
    return {"rows": found, "differences": differences(found)}


def gaining(by, **scores):
    """Other scores, with differences that are known to ``by`` above and below."""
    found = fallen(**scores)
    sure = [
        dataclasses.replace(one, low=one.difference - by, high=one.difference + by) for one in found["differences"]
    ]
    return found | {"differences": sure}


def in_stages(one=None, two=None):
    return {"steps": {"stage1": one or stage1(), "stage2": two or stage2()}}


FLAT = {**in_stages(stage1(start=2.1, end=2.1)), **fallen(docs_search=[0.558, 0.556, 0.557])}
LONG = [retrieval(n, 2.1 + 0.3 * np.sin(n)) for n in range(400)]
ALL_MASKED = [retrieval(n, 2.1 - 0.04 * n, masked=0.4 + 0.01 * (n % 3)) for n in range(24)]
PLANTED = {
    "retrieval_fell": fallen(docs_search=[0.558, 0.6123, 0.562]),
    "below_backbone at retrieval": fallen(docs_search=[0.558, 0.500, 0.505]),
    "below_backbone at pairs": fallen(docs_siblings=[0.503, 0.505, 0.420]),
    "classification_poor": fallen(docs_package=[0.3767, 0.3770, 0.3420]),
    "collapsed by cosine": {"health": vector_health(mean_cosine=0.96)},
    "collapsed by rank": {"health": vector_health(effective_rank=12.5)},
    "collapsed to nothing": {"health": vector_health(mean_cosine=0.0, effective_rank=0.0)},
    "collapsed to no numbers": {"health": {**HEALTH, "stage2": HEALTH["stage2"] | {"not_numbers": 600}}},
    "loss_flat while scores rise by nearly nothing": {
        **in_stages(stage1(start=2.1, end=2.1)),
        **gaining(docs_search=[0.558, 0.559, 0.559], by=0.0005),
    },
    "labels_inverted in training": in_stages(two=stage2(agreement=0.24)),
    "labels_inverted held out": fallen(docs_siblings=[-0.44, -0.43, -0.31]),
    "loss_flat": FLAT,
    "loss_flat over many steps, without scores": {**in_stages(LONG), "rows": [], "differences": []},
    "cosent_unstable, rising": {"steps": losses_of_pairs(lambda n: 9.0 + 0.7 * n)},
    "cosent_unstable, swinging": {"steps": losses_of_pairs(lambda n: 14.0 if n % 2 else 2.0)},
    "false_negatives_many by label": in_stages(two=stage2(labels_masked=0.92)),
    "false_negatives_many by margin": in_stages(
        ALL_MASKED, [one for one in stage2() if one["task"] != "retrieval"]
    ),
    "negatives_easy in training": in_stages(stage1(hardness=0.55)),
    "negatives_easy when mined": {"mining": {"docs_search": mined(positive=0.6, negative=0.1)}},
    "negatives_close": {"mining": {"docs_search": mined(positive=0.45, negative=0.55)}},
    "negatives_close, hidden": {"mining": {"docs_search": mined(hidden=(200, 150))}},
    "synthetic_drifted": {"synthesis": written(rewrite=0.35)},
    "synthetic_drifted in its answers": {"synthesis": written(positive=0.15)},
    "synthetic_drifted without mining": {"synthesis": written(rewrite=0.35), "mining": {}},
    "contaminated": {"transform": transformed([overlap("docs_search", 600, 400, 4000)])},
    "contaminated for mteb": {
        "rows": [*rows(), *(dataclasses.replace(row, task="SciFact") for row in rows()[:3])],
        "transform": transformed([overlap("SciFact", 600, 500, 4000, asked=40)]),
    },
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_sign_is_found_and_no_other(planted, make_recipe):
    facts = healthy(make_recipe, **PLANTED[planted])

    (found,) = findings(facts)

    assert found.check == re.match(r"\w+", planted)[0]
    assert found.message.endswith(".")
    assert re.search(r"(comparison|report)\.json|metrics\.jsonl", found.evidence)
    assert re.search(r"\d", found.evidence)
    named = re.findall(r"(?:training|mining|synthesis|transform|datasets)\.[a-z_0-9.]+\b", found.setting)
    assert named
    for name in named:
        assert name in ("datasets.columns", "datasets.labels", "datasets.rule") or facts.setting(name), name


SIZES = "queries by number of negatives"
HARMLESS = {
    "a fall that may be chance": fallen(docs_search=[0.558, 0.6123, 0.605]),
    "classification that may have lost": fallen(docs_package=[0.3767, 0.3770, 0.3690]),
    "cosines as E5 has them": {"health": vector_health(mean_cosine=0.78)},
    "a backbone that is collapsed, and a model that is not": {
        "health": HEALTH | {"backbone": HEALTH["backbone"] | {"mean_cosine": 0.97, "effective_rank": 8.0}}
    },
    "pairs that words mislead": {**fallen(docs_siblings=[0.02, 0.01, 0.3]), **in_stages(two=stage2(agreement=0.48))},
    "a loss that does not fall while scores rise": in_stages(stage1(start=1.2, end=1.2)),
    "a loss that falls too little to tell, while scores may have risen": {
        **in_stages(stage1(start=1.2, end=1.15)),
        "rows": rows(docs_search=[0.558, 0.567, 0.567]),
        "differences": [],
    },
    "a loss that has nowhere to fall": {
        **fallen(docs_search=[0.558, 0.556, 0.557]), **in_stages([retrieval(n, 0.01) for n in range(24)])
    },
    "agreements of rare labels, far apart": in_stages(two=stage2(agreement=lambda n: 0.43 + 0.3 * (-1) ** n)),
    "two classes of equal size": in_stages(two=stage2(labels_masked=0.48)),
    "negatives that the model has pushed away": in_stages([
        *stage1()[:8], *(retrieval(n, 1.5 - 0.02 * n, hardness=0.6) for n in range(8, 24))
    ]),
    "cosines of a teacher that has all close together": {
        "mining": {"docs_search": mined(positive=0.88, negative=0.82, spread=0.3)},
        "synthesis": written(rewrite=0.95, positive=0.87, spread=0.3),
    },
    "a teacher that rates nothing highly": {"mining": {"docs_search": mined(positive=-0.18, negative=-0.2)}},
    "negatives of the few queries whose positives are good": {
        "mining": {"docs_search": mined(positive=0.25, negative=0.33) | {SIZES: {"0": 21, "2": 9}}}
    },
    "answers of which no mining says what is usual": {"mining": {}, "synthesis": written(positive=0.4)},
    "what a filter has dropped": {"synthesis": written(rewrite=0.35, positive=0.1, filters=(0.5, 0.5))},
    "a few records that are far": {"synthesis": written(records=4, positive=0.25)},
    "what was dropped": {"transform": transformed([overlap("docs_search", 600, 400, 4000)], action="drop")},
    "documents that mteb's corpora share": {"transform": transformed([overlap("NQ", 900, 800, 4000)])},
    "two stock phrases": {"transform": transformed([overlap("docs_search", 2, 2, 4000)], held_out=40)},
}  # fmt: skip


@pytest.mark.parametrize("harmless", HARMLESS)
def test_what_only_looks_like_a_sign_is_none(harmless, make_recipe):
    assert findings(healthy(make_recipe, **HARMLESS[harmless])) == []


def test_official_splits_may_share_texts(make_recipe):
    facts = healthy(make_recipe, transform=transformed([overlap("docs_search", 600, 400, 4000)]))
    shared = [one | {"allow_overlap": one["name"] == "docs_search"} for one in facts.settings["datasets"]]

    assert signs(facts) == ["contaminated"]
    assert signs(dataclasses.replace(facts, settings=facts.settings | {"datasets": shared})) == []


def test_many_small_falls_together_are_a_fall_and_one_of_many_tasks_may_fall_by_chance(make_recipe):
    def tasks(*falls):
        found = [
            dataclasses.replace(row, task=f"t{n}", score=0.6 - mean_decrease * (row.model == "stage2"))
            for n, mean_decrease in enumerate(falls)
            for row in rows()
            if row.task == "docs_search"
        ]
        return healthy(make_recipe, rows=found)

    (together,) = (one for one in findings(tasks(*[0.007] * 15)) if one.check == "retrieval_fell")
    assert "over 15 tasks together" in together.message
    assert "mean of 15 tasks -0.0070 (95 %: -0.0096 to -0.0044)" in together.evidence
    assert "retrieval_fell" not in signs(tasks(0.011, *[-0.001] * 14)), "its own interval leaves out zero"
    (alone,) = (one for one in findings(tasks(0.05, *[-0.01] * 14)) if one.check == "retrieval_fell")
    assert "on 1 of 15 tasks" in alone.message
    assert "t0 ndcg_at_10 0.6000 -> 0.5500 (-0.0500, 95 %: -0.0600 to -0.0400)" in alone.evidence


def test_settings_fit_the_run(make_recipe):
    def setting(training, **planted):
        (found,) = findings(healthy(make_recipe, training, **planted))
        return found.setting

    fell = PLANTED["retrieval_fell"]
    assert setting({}, **fell).startswith(
        "raise training.stage2.retrieval_share (now 0.72), or lower training.stage2."
    )
    alone = {"stage2": {"steps": 60, "learning_rate": 2e-5, "retrieval_share": 1.0}}
    assert setting(alone, **fell) == "lower training.stage2.learning_rate (now 2e-05)"
    lost = {1: [0.503, 0.420, 0.425], 2: [0.503, 0.505, 0.420]}
    assert setting({}, **fallen(docs_siblings=lost[1])).startswith(
        "stage 1 lost it: lower training.stage1.learning"
    )
    assert setting({}, **fallen(docs_siblings=lost[2])).startswith(
        "stage 2 lost it: lower training.stage2.learning"
    )
    early = fallen(docs_package=[0.3767, 0.3400, 0.3410])
    assert setting({"loss": {}}, **early).startswith(
        "stage 1 lost it: set training.loss.false_negative_margin (now off) to 0.1 or less"
    )
    assert setting({}, **PLANTED["classification_poor"]).startswith(
        "lower training.stage2.retrieval_share (now 0.72)"
    )


def test_nothing_is_said_of_what_is_missing(make_recipe):
    facts = healthy(make_recipe)
    nothing = Facts(settings=facts.settings)

    assert findings(nothing) == []
    assert skipped(nothing) == set(NAMES)
    assert text(nothing).startswith(
        "Diagnosis: 0 of 0 signs of trouble are there\n  not checked: contaminated (there is no "
    )

    def without(**parts):
        return skipped(dataclasses.replace(facts, **parts))

    assert without(rows=(), differences=(), health={}) == {
        *("collapsed", "retrieval_fell", "below_backbone", "classification_poor")
    }
    assert without(steps={}) == {"loss_flat", "false_negatives_many", "cosent_unstable"}
    assert without(mining={}) == {"negatives_close"}
    assert without(synthesis={}) == {"synthetic_drifted"}
    assert without(transform={}) == without(transform=transformed(action="off")) == {"contaminated"}
    short = {"stage1": stage1()[:4], "stage2": [step(0, "pair", "p", 9.0), step(1, "mixed", "mixed", 3.0)]}
    assert without(steps=short) == {"loss_flat", "cosent_unstable"}


def test_a_run_folder_is_read(make_recipe):
    facts = healthy(make_recipe, **PLANTED["retrieval_fell"])
    run = Run.open(make_recipe(datasets=DATASETS))
    comparison = {
        name: [dataclasses.asdict(one) for one in getattr(facts, name)] for name in ("rows", "differences")
    }
    evaluate, train = run.folder / "evaluation", run.folder / "training" / "stage1"
    evaluate.create().write_json("comparison.json", comparison | {"health": HEALTH})
    train.create().write_bytes("metrics.jsonl", "\n".join(map(json.dumps, stage1())).encode() + b"\n")
    (run.folder / "mining").create().write_json("report.json", facts.mining)

    found = Facts.of(RunFiles(run.folder))

    assert (found.rows, found.differences, found.health) == (facts.rows, facts.differences, HEALTH)
    assert (found.steps, found.mining, found.transform) == ({"stage1": stage1()}, facts.mining, {})
    assert signs(found) == ["retrieval_fell"]
    assert skipped(found) == {"contaminated", "cosent_unstable", "synthetic_drifted"}
    assert "retrieval_fell: Retrieval fell in stage 2 on 1 of 1 tasks, beyond chance" in text(found)


def test_without_intervals_a_fall_must_be_larger_than_so_few_values_can_show_by_chance(make_recipe):
    fallen_rows = PLANTED["retrieval_fell"]["rows"]
    assert signs(healthy(make_recipe, rows=fallen_rows, differences=[])) == [], (
        "0.05 of 300 queries may be chance, as far as their number tells"
    )
    far = [
        dataclasses.replace(row, score=row.score - 0.2 * (row.model == "stage2" and row.type == "Retrieval"))
        for row in fallen_rows
    ]
    found = signs(healthy(make_recipe, rows=far, differences=[]))
    assert found == ["retrieval_fell", "below_backbone"]


def test_noise_alone_makes_no_loss_of_pairs_unstable(make_recipe):
    """Ten datasets, each looked at: without a correction a third of such runs would show the sign."""

    def shown(seed):
        draw = np.random.default_rng(seed)
        steps = [step(n, "pair", f"p{n % 10}", 3 + 0.9 * draw.standard_normal()) for n in range(60)]
        return "cosent_unstable" in signs(healthy(make_recipe, steps={"stage1": stage1(), "stage2": steps}))

    assert sum(map(shown, range(60))) <= 10


def test_vectors_of_zeros_and_of_no_numbers_have_a_health_that_json_can_tell():
    some = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    broken = some.copy()
    broken[:3] = np.nan

    assert embedding_health(np.zeros((50, 8), np.float32)) | {"dimensions": 0, "texts": 0} == {
        "mean_cosine": 0.0, "effective_rank": 0.0, "not_numbers": 0, "dimensions": 0, "texts": 0
    }  # fmt: skip
    assert embedding_health(broken)["not_numbers"] == 3
    assert "NaN" not in json.dumps(embedding_health(broken))
    assert embedding_health(some)["not_numbers"] == 0


def test_intervals_are_those_of_the_formulas():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=7), generator.normal(0.5, 4.0, size=12)
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert [mean_decrease(one, other).low, mean_decrease(one, other).high] == pytest.approx(
        [expected.low, expected.high]
    )
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.995)
    assert mean_decrease(one, other, comparisons=10).high == pytest.approx(expected.high)
    assert mean_decrease([2.0, 2.0], [1.0, 1.0]).low == 1
    values = generator.normal(5, 2, 12).tolist()
    # Student's t with 11 degrees
    by_hand = np.mean(values) - 2.200985 * np.std(values, ddof=1) / np.sqrt(12)
    assert mean(values).low == pytest.approx(by_hand, rel=1e-6)
    assert mean_decrease([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]).value == 2
    assert mean_decrease([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]).low == pytest.approx(
        2 - 2.776445 * np.sqrt(2 / 3), rel=1e-6
    )
    assert (share(0, 10).low, share(10, 10).high) == pytest.approx((0, 1))
    assert share(5, 10).low == pytest.approx(0.2366, abs=1e-4)
    assert widened(Interval(0.0, -1.0, 2.0), 1) == Interval(0.0, -1.0, 2.0)
    assert widened(Interval(0.0, -1.0, 2.0), 10).high == pytest.approx(2 * 2.807034 / 1.959964, rel=1e-6)
    together = mean_of([Interval(1.0, 0.0, 3.0), Interval(3.0, 2.0, 5.0)])
    assert (together.value, together.low, together.high) == pytest.approx((2, 2 - 0.5**0.5, 2 + 2 * 0.5**0.5))


def test_what_is_known_of_n_alone_is_wider_than_the_paired_bootstrap():
    generator = np.random.default_rng(0)
    one = generator.random(300).round()  # as far apart as values from 0 to 1 can be
    other = np.where(generator.random(300) < 0.5, one, generator.random(300).round())
    items = [PerExampleScores("mean", (Part("p", tuple(values)),)) for values in (one, other)]

    found = paired_difference(*items, seed=0)

    bound = worst_case_interval(found.value, 300)
    assert bound.low < found.low
    assert found.high < bound.high
    assert bound.high - bound.value < 2.5 * (found.high - found.value), "and not by an order"


def sentences(count, seed, words=30):
    draw = np.random.default_rng(seed)
    return [" ".join(f"w{n}" for n in draw.integers(0, 10**6, words)) for _ in range(count)]


def test_copies_in_real_rows_are_a_contamination(make_recipe):
    """Forty classified texts come back with a word changed at either end, among two hundred of their own."""
    held_out, own = sentences(400, seed=1), sentences(200, seed=2)
    builder = IndexBuilder(ContaminationSection())
    builder.add_texts("docs_package", held_out)

    def reported(texts):
        examples = [
            LabeledExample(id=str(n), dataset="docs_package", text=text, label="a") for n, text in enumerate(texts)
        ]
        found = Overlap("docs_package")
        found.compare(table_of(examples, LabeledExample), "classification", builder.index())
        return transformed(overlap_rows({"docs_package": found}), held_out=400)

    copies = [f"so {text.rpartition(' ')[0]} it" for text in held_out[:40]]
    phrases = [f"{' '.join(text.split()[:15])} {new}" for text, new in zip(held_out, own, strict=False)]

    (found,) = findings(healthy(make_recipe, transform=reported(own + copies)))

    assert (found.check, "'docs_package' is contaminated" in found.message) == ("contaminated", True)
    assert "copies of docs_package, which has 400 examples: 40 of 240 examples of docs_package" in found.evidence
    assert findings(healthy(make_recipe, transform=reported(own + phrases))) == [], (
        "half a sentence in common is no copy"
    )


def test_a_model_that_gives_all_texts_one_vector_has_collapsed(make_recipe, tiny_qwen2):
    texts = [" ".join(np.random.default_rng(n).choice(WORDS, 6)) for n in range(200)]
    encoder = load_encoder(str(tiny_qwen2), max_tokens=32, dtype="float32")
    before = embedding_health(encoder.encode(texts))
    weights = encoder.model.backbone.get_input_embeddings().weight
    with torch.no_grad():
        weights.copy_(weights[:1] + 0.05 * (weights - weights[:1]))
    after = embedding_health(encoder.encode(texts))

    (found,) = findings(healthy(make_recipe, health={"backbone": before, "stage2": after}))

    assert (found.check, found.setting[:37]) == ("collapsed", "lower training.stage2.learning_rate (")
    assert findings(healthy(make_recipe, health={"backbone": before, "stage2": before})) == []


def test_vectors_in_few_directions_have_collapsed(make_recipe):
    generator = np.random.default_rng(0)
    narrow = generator.normal(size=(500, 3)) @ generator.normal(size=(3, 64))
    vectors = (narrow / np.linalg.norm(narrow, axis=1, keepdims=True)).astype(np.float32)

    (found,) = findings(healthy(make_recipe, health={"stage2": embedding_health(vectors)}))

    assert found.message == "The embeddings of stage2 have collapsed: vectors lie in few directions."


def trained(make_recipe, folder, score_of, learning_rate):
    """Metrics of the real loop: 24 steps of retrieval, then 12 of pairs, of words that two texts share."""
    draw = np.random.default_rng(0)
    drawn = [draw.choice(WORDS, 4, replace=False).tolist() for _ in range(96)]
    pairs = [
        PairExample(
            id=str(n),
            dataset="p",
            text_a=" ".join(words),
            text_b=" ".join(words[:same] + draw.choice(WORDS, 4 - same).tolist()),
            score=score_of(same),
        )
        for n, words in enumerate(drawn)
        for same in [n % 4 + 1]
    ]
    asked = [
        RetrievalExample(id=str(n), dataset="r", query=" ".join(words), positives=(" ".join(reversed(words[:3])),))
        for n, words in enumerate(drawn)
    ]
    data = {"r": TrainingSet.of("r", Prompt(), asked), "p": TrainingSet.of("p", Prompt(), pairs)}
    shared = {"learning_rate": learning_rate, "warmup_steps": 1, "batch_size": 24, "cosent_batch_size": 48}
    recipe = make_recipe(
        datasets=[
            {"name": "r", "reader": "jsonl", "rule": "title_body", "paths": ["x"]},
            {"name": "p", "reader": "jsonl", "rule": "scored_pair", "paths": ["x"]},
        ],
        training={"stage1": {"steps": 24, **shared}, "stage2": {"steps": 12, "retrieval_share": 0.0, **shared}},
    )
    found = model_of(folder)
    steps = {}
    for stage, sizes in (("stage1", {"r": "retrieval"}), ("stage2", {"p": "pair"})):
        plan = BatchPlan(
            [DatasetSize(name, task, 96) for name, task in sizes.items()],
            getattr(recipe.training, stage), alpha=0.5, seed=1,
        )  # fmt: skip
        notes = FakeRecorder()
        engine = TorchEngine(found.model, found.tokenizer, recipe.training)
        train_stage(TrainingStage(stage, plan, data, recipe, found.tokenizer), engine, notes, first_step=0)
        steps[stage] = notes.metrics
    return Facts(settings=recipe.model_dump(mode="json"), steps=steps)


@pytest.mark.slow
def test_a_training_that_learns_shows_no_sign(make_recipe, tiny_bert):
    facts = trained(make_recipe, tiny_bert, float, learning_rate=1e-3)

    assert findings(facts) == []
    assert not {"labels_inverted", "loss_flat", "cosent_unstable"} & skipped(facts)


@pytest.mark.slow
def test_inverted_labels_are_found_in_the_first_steps(make_recipe, tiny_bert):
    facts = trained(make_recipe, tiny_bert, lambda same: 4.0 - same, learning_rate=1e-3)

    (found,) = (one for one in findings(facts) if one.check == "labels_inverted")

    assert (
        found.message
        == "The labels of 'p' are inverted, or its pairs mislead: those with higher scores have lower cosines."
    )
    assert found.evidence.startswith("training/stage2/metrics.jsonl: order_agreement 0.")


@pytest.mark.slow
def test_a_learning_rate_of_nearly_nothing_leaves_the_loss_flat(make_recipe, tiny_bert):
    facts = trained(make_recipe, tiny_bert, float, learning_rate=1e-9)
    judged = dataclasses.replace(facts, **fallen(docs_search=[0.558] * 3, docs_siblings=[0.503] * 3))

    assert findings(facts) == [], "so few steps do not tell, without scores"
    assert [(one.check, one.setting.split(" (")[0]) for one in findings(judged)] == [
        ("loss_flat", "raise training.stage1.learning_rate"), ("loss_flat", "raise training.stage2.learning_rate"),
    ]  # fmt: skip
