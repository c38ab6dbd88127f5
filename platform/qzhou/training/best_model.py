"""The best weights of a stage by validation, kept in its folder while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.distributed as dist
from torch import Tensor

from qzhou.config.training import TrainingSection
from qzhou.data.storage import Folder
from qzhou.telemetry.events import log_event
from qzhou.training.engine import Engine
from qzhou.training.stages import BEST
from qzhou.training.validation import overall

Write = Callable[[dict[str, Tensor], Folder], None]  # weights by name to a model's folder
MODELS = "best"


class BestModel:
    """Keeps the model of the highest validation score; of equal ones the first.

    Every rank calls each method, at the same step. Rank 0 decides for all, since the others
    may round otherwise. What an earlier attempt at the stage found counts.

    Attributes:
        step: Finished steps at the best validation; 0: the weights that the stage starts with.
        score: Its score (:func:`qzhou.training.validation.overall`); None before the first.
    """

    def __init__(self, name: str, folder: Folder, training: TrainingSection, write: Write) -> None:
        """Begin where an earlier attempt at the stage ended.

        Args:
            name: Of the stage, for messages.
            folder: Of the stage.
            training: How often is validated, and how long without a better score.
            write: Writes a model; without weights, the one that the stage starts with.
        """
        self._name, self._folder, self._write = name, folder, write
        self._wait = training.patience * training.validate_every_steps
        found = folder.read_json(BEST) if folder.exists(BEST) else {}
        self.step = int(found.get("step", 0))
        self.score: float | None = found.get("score")
        self._trained = int(found.get("trained", 0))
        self._is_kept = bool(found.get("is_kept", False))

    def offer(self, step: int, scores: Mapping[str, float], engine: Engine) -> None:
        """Keep the engine's weights if these validation scores after ``step`` steps are the best so far."""
        self._trained = step
        score = _of_rank_0(overall(scores), engine)
        is_best = self.score is None or score > self.score
        before = self.step
        if is_best:
            self.step, self.score = step, score
            state = engine.full_state() if step else {}  # every rank takes part
            if step and not engine.rank:
                self._write(state, self._model(step))
        if engine.rank:
            return
        self._note()
        if is_best:
            if before != step:
                self._model(before).delete()
            line = f"training: {self._name}: validation {score:.4f} at step {step:,}, the best so far"
            log_event(line, "best_so_far", step=step, score=score)

    def is_final(self, step: int) -> bool:
        """Whether the stage ends after so many steps, because too many validations brought nothing better."""
        return bool(self._wait) and step - self.step >= self._wait

    def keep(self, target: Folder, finish: Callable[[Folder, Folder], None] | None = None) -> None:
        """Make the best weights the stage's model; rank 0 alone.

        A job that is killed here does it again; what says that it is done is written when the
        model is whole.

        Args:
            target: Of the model.
            finish: Writes ``target`` from the folder of the best weights; default: they are moved there.
        """
        if self._is_kept:
            return
        source = self._model(self.step)
        self._say()
        if not self.step:
            self._write({}, source)
        if finish is not None:
            finish(source, target)
        elif source.is_local:
            # in one piece: where the source has gone, an earlier attempt got as far as here
            if source.exists():
                target.delete()
                source.move_to(target)
        else:
            target.delete()
            source.copy_to(target)
        self._is_kept = True
        self._note()
        (self._folder / MODELS).delete()

    def _say(self) -> None:
        shown = f"(validation {self.score:.4f})"
        if self._wait and self.is_final(self._trained):
            line = (
                f"training: {self._name}: ended after {self._trained:,} steps, since no later validation was better"
            )
            log_event(line, "ended_early", steps=self._trained)
        if self.step:
            line = f"training: {self._name}: the weights of step {self.step:,} are kept {shown}"
            log_event(line, "best_kept", step=self.step, score=self.score)
            return
        line = (
            f"training: {self._name}: WARNING: no validation is better than that of the weights that the stage "
            f"starts with, and they are kept {shown}. Lower its learning_rate, or see metrics.jsonl"
        )
        log_event(line, "nothing_better", level="warning", score=self.score)

    def _note(self) -> None:
        content = {"step": self.step, "score": self.score, "trained": self._trained, "is_kept": self._is_kept}
        self._folder.write_json(BEST, content)

    def _model(self, step: int) -> Folder:
        return self._folder / MODELS / f"step_{step:06d}"


def _of_rank_0(score: float, engine: Engine) -> float:
    if engine.world == 1:
        return score
    box = [score]
    dist.broadcast_object_list(box, src=0)
    return box[0]
