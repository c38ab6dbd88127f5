"""The best weights of a stage: which are kept, when it ends, what a restart finds."""

import copy
import dataclasses
from pathlib import Path

import pytest

from qzhou.config.recipe import load_recipe
from qzhou.data.storage import Folder
from qzhou.errors import RecipeError
from qzhou.training.best_model import BestModel
from qzhou.training.stages import learning_settings, made
from tests.ranks.problem import model_of, run, stage_plan, three_tasks
from tests.torch_engine import TorchEngine

QUICKSTART = Path(__file__).parents[3] / "recipes" / "quickstart.toml"


def fingerprint(state):
    return float(sum(one.double().abs().sum() for one in state.values()))


class Stage:
    """A stage of six steps that validates after each and gets the scores that a test wants."""

    def __init__(self, make_recipe, backbone, place, scores, patience=0):
        self.recipe = three_tasks(make_recipe, select="best", validate_every_steps=1, patience=patience)
        self.folder, self.start = Folder.open(str(place)).create(), model_of(backbone)
        self.scores, self.seen = dict(enumerate(scores)), {}

    def train(self, first_step=0, last_step=None, checkpoint=None, saves=True):
        engine = TorchEngine(copy.deepcopy(self.start.model), self.start.tokenizer, self.recipe.training)
        self.step = first_step or -1
        if first_step:
            engine.load(checkpoint)

        def validate():
            self.step += 1
            self.seen[self.step] = fingerprint(engine.full_state()) if self.step else 0.0
            return {"ndcg_at_10": self.scores[self.step], "accuracy": 0.0}

        self.best = BestModel("stage2", self.folder, self.recipe.training, self.write)
        plan, tokenizer = stage_plan(self.recipe), self.start.tokenizer
        wanted = {"first_step": first_step, "last_step": last_step, "validate": validate, "best": self.best}
        losses = run(engine, self.recipe, plan, tokenizer, **wanted)
        if checkpoint is not None and saves:
            engine.save(checkpoint, first_step + len(losses))
        return len(losses)

    @staticmethod
    def write(state, target):
        target.create().write_json("config.json", {"weights": fingerprint(state)})

    def kept(self):
        """The fingerprint of the stage's model, of a job that is killed after keeping it, and is started again."""
        self.best.keep(self.folder / "model")
        again = BestModel("stage2", self.folder, self.recipe.training, self.write)
        again.keep(self.folder / "model")
        assert not (self.folder / "best").exists()
        return (self.folder / "model").read_json("config.json")["weights"]


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ((0.1, 0.2, 0.6, 0.3, 0.6, 0.5, 0.4), 2),  # of equal ones the first
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 6),
        ((0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 0),  # nothing is handed over: the model is written as it was
    ],
)
def test_the_weights_of_the_best_validation_are_the_model(make_recipe, tiny_bert, tmp_path, capfd, scores, step):
    stage = Stage(make_recipe, tiny_bert, tmp_path, scores)

    assert stage.train() == 6

    assert (stage.best.step, stage.best.score) == (step, max(scores))
    assert stage.kept() == stage.seen[step]
    assert made(stage.folder, stage.recipe, "stage2") == {"steps": 6, "of them in the kept weights": step}
    assert len(set(stage.seen.values())) == 7
    assert ("no validation is better" in capfd.readouterr().out) == (not step)
    # one model at a time is there
    assert not (stage.folder / "best").exists() or not (stage.folder / "best").folders()


@pytest.mark.parametrize("scheme", ["", "mock://"])
def test_half_a_model_that_a_kill_has_left_is_never_the_stages_model(make_recipe, tiny_bert, tmp_path, scheme):
    """On an object store a move is many copies and removals, and a kill may fall between them."""
    stage = Stage(make_recipe, tiny_bert, tmp_path, (0.1, 0.6, 0.2, 0.3, 0.4, 0.5, 0.3))
    stage.folder = dataclasses.replace(stage.folder, scheme=scheme)
    stage.train()
    model, source = stage.folder / "model", stage.folder / "best" / "step_000001"
    model.create().write_json("half.json", {})  # copied, and the rest was not

    assert stage.kept() == stage.seen[1]
    assert model.files() == ["config.json"]

    source.create().write_json("half.json", {})  # removed but for this
    BestModel("stage2", stage.folder, stage.recipe.training, stage.write).keep(model)
    assert model.files() == ["config.json"]


@pytest.mark.parametrize("scores", [(0.1, 0.6, 0.2, 0.3, 0.4, 0.5, 0.3), (0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)])
def test_what_finishes_the_model_starts_from_the_best_weights_also_after_a_kill(
    make_recipe, tiny_bert, tmp_path, scores
):
    stage = Stage(make_recipe, tiny_bert, tmp_path, scores)
    stage.train()
    finished = []

    def finish(source, target):
        finished.append(source.read_json("config.json")["weights"])
        if len(finished) == 1:
            raise KeyboardInterrupt
        target.create().write_json("config.json", {"weights": "finished"})

    with pytest.raises(KeyboardInterrupt):
        stage.best.keep(stage.folder / "model", finish)
    for _ in range(2):  # and once more, where it is done
        BestModel("stage2", stage.folder, stage.recipe.training, stage.write).keep(stage.folder / "model", finish)

    assert finished == [stage.seen[stage.best.step]] * 2
    assert (stage.folder / "model").read_json("config.json")["weights"] == "finished"


@pytest.mark.parametrize(
    ("patience", "scores", "steps", "best"),
    [
        (1, (0.5, 0.4), 1, 0),
        (2, (0.1, 0.5, 0.4, 0.3), 3, 1),
        (2, (0.1, 0.5, 0.4, 0.6, 0.5, 0.5), 5, 3),
        (3, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 6, 6),
    ],
)
def test_a_stage_ends_where_nothing_gets_better(make_recipe, tiny_bert, tmp_path, patience, scores, steps, best):
    stage = Stage(make_recipe, tiny_bert, tmp_path, scores, patience)

    assert stage.train() == steps
    assert (stage.best.step, stage.kept()) == (best, stage.seen[best])
    assert made(stage.folder, stage.recipe, "stage2") == {"steps": steps, "of them in the kept weights": best}


@pytest.mark.parametrize("scores", [(0.1, 0.6, 0.2, 0.3, 0.4, 0.5, 0.3), (0.1, 0.2, 0.2, 0.3, 0.4, 0.6, 0.3)])
def test_a_stage_that_is_killed_keeps_what_an_undisturbed_one_does(make_recipe, tiny_bert, tmp_path, scores):
    """Its best weights may be older than its last checkpoint, or newer."""
    calm = Stage(make_recipe, tiny_bert, tmp_path / "calm", scores, patience=4)
    calm_steps = calm.train()
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()

    killed = Stage(make_recipe, tiny_bert, tmp_path / "killed", scores, patience=4)
    assert killed.train(last_step=3, checkpoint=checkpoint) == 3
    killed.train(
        first_step=3, checkpoint=checkpoint, saves=False
    )  # gets further than its last checkpoint, and dies
    assert killed.train(first_step=3, checkpoint=checkpoint) == calm_steps - 3

    assert (killed.best.step, killed.best.score) == (calm.best.step, calm.best.score)
    assert killed.kept() == pytest.approx(calm.kept(), rel=1e-12)
    # where it had ended for want of patience, it does not go on
    assert killed.train(first_step=calm_steps, checkpoint=checkpoint) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training.select", "best"], "select is 'best' and validate_every_steps 0"),
        (["--training.patience", "2"], "patience is 2 and select 'last'"),
        (
            ["--training.stage2.backbone_shares", "[0.0, 0.5]"],
            "backbone_shares has 2 shares to choose from and select",
        ),
        (
            [
                "--training.select",
                "best",
                "--training.validate_every_steps",
                "5",
                "--training.stage2.backbone_share",
                "0.3",
            ],
            r"would choose by the score of other weights; set stage2.backbone_shares = \[0.3\]",
        ),
    ],
)
def test_what_would_choose_nothing_is_refused(words, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(QUICKSTART, words)


def test_how_often_is_validated_counts_where_weights_are_chosen_by_it():
    """It is no part of what a stage learns elsewhere."""

    def settings(*words):
        return learning_settings(load_recipe(QUICKSTART, words), "stage2")

    assert settings() == settings("--training.validate_every_steps", "5")
    best = ("--training.select", "best", "--training.validate_every_steps")
    assert settings(*best, "5") != settings(*best, "6")
