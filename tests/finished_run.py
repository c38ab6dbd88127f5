"""A run folder as a finished run leaves it, filled by hand: what ``report.html`` is made of, in the stages' formats."""

import json
import math
import random

from qzhou.run.run import Run

DATASETS = {
    "docs_search": "retrieval",
    "forum": "retrieval",
    "docs_siblings": "pair",
    "docs_package": "classification",
}
RULES = {"retrieval": "title_body", "pair": "scored_pair", "classification": "labeled"}
FIELDS = {"retrieval": ("query", "positives"), "pair": ("text_a", "text_b"), "classification": ("text",)}
STAGES = ("transform", "synthesis", "mining", "training/stage1", "training/stage2", "model", "evaluation")
EDGES = [round(-0.2 + 0.03 * place, 3) for place in range(41)]
MODELS = {"bm25": 0.0, "backbone": 0.02, "stage1": 0.05, "stage2": 0.08}
TASKS = {
    "docs_search": ("Retrieval", "ndcg_at_10", 300, 0.55),
    "forum": ("Retrieval", "ndcg_at_10", 1204, 0.41),
    "docs_siblings": ("STS", "cosine_spearman", 1000, 0.48),
    "docs_package": ("Classification", "accuracy", 498, 0.36),
}


def fill(run: Run, *, steps: int = 120) -> None:
    """Write all files of all stages."""
    chance = random.Random(7)
    folder = run.folder
    (folder / "transform").create().write_json("report.json", transform_report(chance))
    place = (folder / "synthesis").create()
    place.write_json("report.json", synthesis_report(chance))
    place.write_json("ledger.json", ledger())
    (folder / "mining").create().write_json("report.json", mining_report(chance))
    for number, stage in enumerate(("stage1", "stage2")):
        lines = [json.dumps(metrics(chance, number, step, steps)) for step in range(steps)]
        (folder / "training" / stage).create().write_bytes("metrics.jsonl", ("\n".join(lines) + "\n").encode())
    place = (folder / "evaluation").create()
    place.write_json("comparison.json", comparison())
    place.write_json("diagnosis.json", diagnosis())
    for number, stage in enumerate(STAGES):
        (folder / stage).create().write_json("manifest.json", manifest(stage, number))


def transform_report(chance: random.Random) -> dict:
    datasets = {}
    for number, (name, task) in enumerate(DATASETS.items(), 1):
        read = 9000 * number
        dropped = {"blank_positive": 310 * number, "short_positive": 40 * number, "near_duplicate": 7}
        held_out = read // 10
        datasets[name] = {
            "task": task, "rule": RULES[task], "encodings": {}, "dataset": name, "read": read,
            "kept": read - held_out - sum(dropped.values()), "held_out": held_out, "sampled_out": 0,
            "dropped": dropped, "parts": {"blank_negative": 3} if task == "retrieval" else {},
            "examples": {"blank_positive": [["'body' is blank", '{"summary": "Return the sum.", "body": ""}']]},
            "languages": {"en": 90, "zh": 8, "de": 2}, "written": {"examples": read - held_out, "held_out": held_out},
            "lengths": {field: lengths(chance, 4 + place) for place, field in enumerate(FIELDS[task])},
        }  # fmt: skip
    overlap = {"dataset": "forum", "task": "docs_search", "examples": 12, "compared": 18000, "percent": 0.067}
    overlap |= {"copied": 5, "asked": 4}
    contamination = {"action": "report", "ngram_words": 13, "ngram_chars": 20, "one_ngram_kept_of": 1}
    overlaps = [{**overlap, "shown": ["a text that stands on both sides of the divide, word for word"]}]
    return {"datasets": datasets, "contamination": {**contamination, "overlaps": overlaps}}


def lengths(chance: random.Random, power: int) -> dict:
    return {str(2 ** (power + step)): chance.randint(100, 900) * (4 - abs(step - 2)) for step in range(5)}


def bell(chance: random.Random, middle: float, width: float, total: int) -> list:
    counts = [0] * (len(EDGES) - 1)
    for _ in range(total):
        value = min(max(chance.gauss(middle, width), EDGES[0]), EDGES[-1] - 1e-9)
        counts[int((value - EDGES[0]) / (EDGES[1] - EDGES[0]))] += 1
    return counts


def synthesis_report(chance: random.Random) -> dict:
    sample = {
        "dataset": "docs_search", "model": "builtin-rules", "scores": {"rewrite": 0.871},
        "original": {"query": "Return the sum of the elements.", "positive": "sum(iterable, start=0)\nAdds them up."},
        "written": {"query": "Give back what the elements add up to.", "positive": "sum(iterable, start=0)"},
    }  # fmt: skip
    refused = {"empty": [{"detail": "'query' says nothing", "record": '{"answer": "{}"}'}]}
    techniques = {
        "hard_negative": {
            "made": 176, "dropped": {"above_positive": 20, "copied": 4}, "examples": {}, "samples": [],
            "scores": {"negative": bell(chance, 0.55, 0.12, 400), "margin": bell(chance, 0.15, 0.1, 400)},
        },
        "paraphrase": {
            "made": 232, "dropped": {"too_far": 60, "empty": 12}, "examples": refused, "samples": [sample] * 3,
            "scores": {"rewrite": bell(chance, 0.8, 0.1, 500), "positive": bell(chance, 0.6, 0.14, 300)},
        },
    }  # fmt: skip
    filters = {"min_rewrite_cosine": 0.6, "max_rewrite_cosine": 0.98, "min_positive_score": None}
    return {"techniques": techniques, "score_edges": EDGES, "filters": filters, "cost": ledger()["total"]}


def ledger() -> dict:
    names = ("requests", "answered", "refused", "reused", "prompt_tokens", "completion_tokens")
    names += ("cost", "reused_tokens", "reused_cost")
    bought = {"paraphrase": (304, 300, 72, 11, 41200, 9800, 0.0214, 1100, 0.0006)}
    bought["hard_negative"] = (204, 200, 24, 0, 36100, 7400, 0.0183, 0, 0.0)
    model = {"model": "a-model", "answered_as": ["a-model-2026"], "dataset": "docs_search"}
    rows = [{**model, "technique": name, **dict(zip(names, found, strict=True))} for name, found in bought.items()]
    total = {name: round(sum(row[name] for row in rows), 6) for name in names}
    return {"total": total, "rows": rows}


def mining_report(chance: random.Random) -> dict:
    example = {"query": "Return the sum of the elements.", "positive": "Adds up the items of an iterable."}
    negatives = [{"text": "Returns the largest element.", "origin": "mined", "score": 0.553}]
    negatives += [{"text": "Subtracts the elements.", "origin": "synthetic", "score": None}]
    return {
        name: {
            "queries": 4100 * number, "inconsistent": 12, "negatives": {"mined": 6015, "synthetic": 195 * number},
            "queries by number of negatives": {"0": 300, "1": 800 * number, "2": 4100 * number - 300 - 800 * number},
            "rejected": {"is a positive": 4000, "too close to the positive": 24787 // number, "not drawn": 90},
            "mean positive score": 0.6412, "mean mined score": 0.4377 + number / 50,
            "hidden positives": {"hidden": 400 * (number - 1), "admitted": 31 * (number - 1)},
            "scores": {"positive": bell(chance, 0.64, 0.13, 4100), "mined": bell(chance, 0.45, 0.09, 6015)},
            "score_edges": EDGES, "examples": [{**example, "negatives": negatives}] * 2,
        }
        for number, name in enumerate(("docs_search", "forum"), 1)
    }  # fmt: skip


def metrics(chance: random.Random, stage: int, step: int, steps: int) -> dict:
    names = ("docs_search", "forum") if stage == 0 else tuple(DATASETS)
    dataset = names[step % len(names)]
    scale = {"retrieval": 1.6, "pair": 4.0, "classification": 2.2}[DATASETS[dataset]]
    done = (step + steps * stage) / (2 * steps)
    found = {
        "step": step, "task": DATASETS[dataset], "dataset": dataset, "rows": 64,
        "loss": scale * (0.35 + 0.65 * math.exp(-3 * done)) * chance.uniform(0.9, 1.1),
        "positive_cosine": 0.55 + 0.2 * done, "gradient_norm": 3 * chance.uniform(0.5, 1.5),
        "learning_rate": (5e-5, 2e-5)[stage] * min((step + 1) / 10, 1 - step / steps),
        "tokens": chance.randint(5500, 6500), "tokens_per_s": 3000 * chance.uniform(0.85, 1.1),
        "padding_share": 0.06, "gradient_cache_share": 0.0, "loader_wait_share": 0.002,
        "memory_gb": 1.9, "seconds": 2.0,
    }  # fmt: skip
    if found["task"] == "pair":
        found |= {"order_agreement": 0.71}
    else:
        found |= {"masked_share": 0.031, "negative_hardness": 0.883}
        found |= {"negative_cosine": 0.5 - 0.1 * done, "accuracy": min(1.0, 0.4 + 0.5 * done)}
    if (step + 1) % 20 == 0:
        found |= {"validation_ndcg_at_10": 0.55 + 0.08 * done, "validation_accuracy": 0.4 + 0.1 * done}
    return found


def comparison() -> dict:
    rows, differences = [], []
    for task, (kind, metric, n, base) in TASKS.items():
        sign = -0.4 if kind == "Classification" else 1
        for model, gain in MODELS.items():
            if model == "bm25" and kind != "Retrieval":
                continue
            score = round(base + sign * gain, 6)
            half = round(1 / math.sqrt(n), 6)
            limits = {"low": round(score - half, 6), "high": round(score + half, 6)}
            rows.append({"task": task, "type": kind, "metric": metric, "model": model, "score": score, "n": n})
            rows[-1] |= {**limits, "seen": task != "forum", "seconds": 3.2}
        gained = round(sign * 0.06, 6)
        pair = {"task": task, "model": "stage2", "against": "backbone", "difference": gained}
        differences.append({**pair, "low": round(gained - 0.03, 6), "high": round(gained + 0.03, 6)})
    spread = {"effective_rank": 212.7, "dimensions": 384, "texts": 2000}
    health = {"backbone": {"mean_cosine": 0.113, **spread}, "stage2": {"mean_cosine": 0.087, **spread}}
    seen = [{"model": "stage2", "seen": True, "tasks": 3, "mean": 50.6}]
    types = ["Retrieval", "STS"]
    models = [{"model": "stage2", "ours": True, "types": {"STS": 71.2}, "mean_task": 68.1, "mean_type": 67.0}]
    models += [
        {"model": "published-1", "ours": False, "types": {"STS": 77.0}, "mean_task": 76.9, "mean_type": 78.5}
    ]
    benchmark = {"benchmark": "MTEB(cmn, v1)", "tasks": 31, "judged": 31, "types": types, "models": models}
    not_judged = {"forum_reranking": "no query has a negative"}
    query = {"query": "how to sort <b>?", "before": 0.25, "after": 1.0, "positive": "Sorts a list."}
    query |= {"found_before": "Opens a file.", "found_after": "Sorts a list."}
    counts = {
        "task": "docs_search",
        "model": "stage2",
        "against": "backbone",
        "better": 143,
        "worse": 61,
        "same": 96,
    }
    changes = [{**counts, "gained": [query], "lost": []}]
    found = {"rows": rows, "differences": differences, "changes": changes, "benchmarks": [benchmark]}
    published = [{"task": "STSB", "type": "STS", "stage2": 64.12, "published": {"QZhou-Embedding": 91.4}}]
    return {**found, "published": published, "seen": seen, "health": health, "not_judged": not_judged}


def diagnosis() -> dict:
    finding = {
        "check": "classification_poor",
        "message": "Stage 2 is worse than the untouched backbone on docs_package.",
        "evidence": "evaluation/comparison.json: stage2 - backbone = -0.0240, 95 % from -0.0540 to +0.0060",
        "setting": "lower training.stage2.retrieval_share (now 0.72)",
    }
    skipped = {"check": "cosent_unstable", "reason": "there are fewer than 6 steps"}
    return {"findings": [finding], "skipped": [skipped]}


def manifest(stage: str, number: int) -> dict:
    inputs = {
        "training/stage2": {"mining": "print-2", "stage1": "an-older-one"},
        "mining": {"transform": "print-0"},
    }
    outputs = {"transform": {"retrieval examples": 22000, "pair examples": 21000, "held-out examples": 9000}}
    outputs["synthesis"] = {"examples": 43232, "by paraphrase": 232, "dropped": 96}
    return {
        "stage": stage, "fingerprint": f"print-{number}", "inputs": inputs.get(stage, {}),
        "outputs": outputs.get(stage, {"steps": 120}), "settings": {}, "code_version": f"code-{number}",
        "finished_at": "2026-11-20 10:00:00 UTC", "wall_s": 20.5 + 30 * number,
    }  # fmt: skip
