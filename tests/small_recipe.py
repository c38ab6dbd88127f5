"""A recipe of one dataset and four steps a stage, whose ``folder`` and ``backbone`` are filled in."""

RECIPE = """
[run]
name = "checked"
storage = "{folder}/runs"

[model]
backbone = "{backbone}"

[[datasets]]
name = "tickets"
reader = "jsonl"
rule = "question_answer"
paths = ["{folder}/rows.jsonl"]
eval_fraction = 0.2

[training.stage1]
steps = 4
learning_rate = 1e-4

[training.stage2]
steps = 4
learning_rate = 1e-4
"""
