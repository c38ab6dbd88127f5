"""A run is a folder; a stage that is finished and unchanged is skipped.

A stage's fingerprint covers its settings, its code (:mod:`qzhou.run.code`) and the
fingerprints of its inputs. An equal fingerprint skips the stage with one line. Otherwise
its old output moves to ``stale/`` and is never mixed with the new. A stage that died starts
again with what it had finished.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from qzhou.config.loading import nearest
from qzhou.config.recipe import Recipe
from qzhou.data.records import Manifest, digest
from qzhou.data.storage import Folder
from qzhou.errors import DataError, RecipeError, StorageError
from qzhou.run.code import code_of_stage
from qzhou.run.files import COMMANDS, EXPORT, MANIFEST, RECIPE
from qzhou.run.fingerprint import FingerprintInputs, changes, duration
from qzhou.run.lock import is_owned, run_lock
from qzhou.run.sharing import finished_elsewhere, reuse_cache, reuse_stage, stage_lock
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import recorded

UPLOADED = "working_dir_files"  # where Ray keeps the working directories that jobs bring with them
STARTED, STALE = "started.json", "stale"

Work = Callable[[Folder], Mapping[str, int]]

_accepted: set[str] = set()


def accept_stages(names: Iterable[str]) -> None:
    """Accept finished stages as they are in this process, whatever has changed since.

    Args:
        names: Stage folders (``training/stage1``), or ``training`` for both stages and
            ``export`` for the model.

    Raises:
        RecipeError: There is no such stage.
    """
    _accepted.clear()
    for name in names:
        place = EXPORT if name == "export" else name
        found = [stage for stage in COMMANDS if place in (stage, stage.partition("/")[0])]
        if not found:
            known = nearest(name, ["training", "export", *COMMANDS])
            raise RecipeError(f"command line: --keep {name}: there is no such stage{known}")
        _accepted.update(found)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one stage of a run is made of.

    Attributes:
        name: Folder of the stage in the run.
        settings: Those settings of the recipe that its output depends on.
        inputs: Name -> fingerprint of what it reads: other stages, raw files.
        code_of: Modules that do its work.
        without: Modules that these import and that have no part in its output.
        persistent: Folders that stay valid when the rest of the stage is stale: their
            entries are keyed by content: paid LLM answers, embeddings.
        shared: Those of them that other runs use too, with ``run.share_stages``.
    """

    name: str
    settings: Mapping[str, object]
    inputs: Mapping[str, str]
    code_of: Sequence[str]
    without: Sequence[str] = ()
    persistent: Sequence[str] = ()
    shared: Sequence[str] = ()

    def parts(self) -> FingerprintInputs:
        """All that its fingerprint covers."""
        code = code_of_stage(self.code_of, without=self.without)
        return FingerprintInputs(settings=self.settings, inputs=self.inputs, code=code)


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """The folder ``<storage>/<run name>`` and the recipe that fills it."""

    recipe: Recipe
    folder: Folder

    @classmethod
    def at(cls, recipe: Recipe) -> Run:
        """The run where the recipe says it is, there or not; writes nothing."""
        return cls(recipe, Folder.open(recipe.run.storage) / recipe.run.name)

    @staticmethod
    def address(recipe: Recipe) -> str:
        """The run folder's URI. Nothing is opened, so no access to storage is needed."""
        storage = recipe.run.storage
        if "://" not in storage or storage.startswith("file:"):
            return Run.at(recipe).folder.uri
        return f"{storage.partition('?')[0].rstrip('/')}/{recipe.run.name}"

    @classmethod
    def open(cls, recipe: Recipe) -> Run:
        """Make the run's folder and write the resolved recipe into it.

        Raises:
            StorageError: The storage path cannot be written, or would be lost with the job.
        """
        if UPLOADED in Path.cwd().parts:
            refuse_what_would_be_lost(recipe)
        run = cls.at(recipe)
        run.folder.create()
        if not is_owned(run.folder):  # it may belong to another process, with another recipe
            run.write_recipe()
        return run

    def write_recipe(self) -> None:
        """Write the resolved recipe into the run's folder."""
        self.folder.write_json(RECIPE, self.recipe.model_dump(mode="json"))

    @classmethod
    def find(cls, recipe: Recipe) -> Run:
        """A run that was begun before; its folder stays as it is.

        Raises:
            DataError: There is none.
        """
        run = cls.at(recipe)
        if not run.folder.exists(RECIPE):
            raise DataError(
                f"{run.folder.uri} has no {RECIPE}: there is no run of that name. Run `qzhou run` with "
                "this recipe first, or name its place with --run.storage and --run.name."
            )
        return run

    def manifest(self, stage: str) -> Manifest:
        """The manifest of a finished stage.

        Raises:
            DataError: The stage has not finished; says which command to run.
        """
        folder = self.folder / stage
        if not folder.exists(MANIFEST):
            raise DataError(
                f"{folder.uri} has no {MANIFEST}: the stage '{stage}' has not finished. "
                f"Run `qzhou {COMMANDS.get(stage, stage)}` with this recipe first, or `qzhou run` for all stages."
            )
        return Manifest(**folder.read_json(MANIFEST))

    def stage(self, stage: Stage, work: Work) -> Manifest:
        """Do the work of a stage, unless it is finished and unchanged.

        Args:
            stage: What its fingerprint covers.
            work: Fills the stage's folder and returns what it made: name -> rows.

        Raises:
            StorageError: Another process works on this run.
            DataError: The stage shall be kept as it is, and has not finished.
        """
        parts = stage.parts()
        fingerprint = parts.fingerprint
        folder = self.folder / stage.name
        if stage.name in _accepted:
            return self._accepted(folder, stage.name, parts)
        finished = Manifest(**folder.read_json(MANIFEST)) if folder.exists(MANIFEST) else None
        if finished and finished.is_valid_for(fingerprint):
            line = f"{stage.name}: unchanged since {finished.finished_at}, skipped ({_counts(finished.outputs)})"
            log_event(line, "stage_skipped", outputs=finished.outputs)
            return finished
        shares = self.recipe.run.share_stages
        lock = stage_lock(self.folder, stage.name, fingerprint) if shares else nullcontext()
        with run_lock(self.folder, stage.name), lock:
            self.write_recipe()
            self._make_room(folder, stage, parts, finished)
            folder.create().write_json(STARTED, {"fingerprint": fingerprint})
            if shares:
                if other := finished_elsewhere(self.folder, stage.name, fingerprint):
                    return self._reused(other, stage)
                reuse_cache(self.folder, stage.name, stage.shared)
            return _finished(stage, parts, folder, work)

    def _accepted(self, folder: Folder, name: str, parts: FingerprintInputs) -> Manifest:
        """Keep a finished stage as it is; its manifest says what it was accepted for."""
        if not folder.exists(MANIFEST):
            self._take_back(folder, name)
        manifest = self.manifest(name)
        if manifest.is_valid_for(parts.fingerprint):
            return manifest
        changed = changes(FingerprintInputs.of(manifest), parts)
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}"
        accepted = {"fingerprint": parts.fingerprint, "at": now, "changed": changed}
        manifest = dataclasses.replace(manifest, accepted=[*manifest.accepted, accepted])
        folder.write_json(MANIFEST, dataclasses.asdict(manifest))
        line = f"{name}: kept as it is, although {'; '.join(changed)} (--keep)"
        log_event(line, "stage_kept", changed=changed)
        return manifest

    def _take_back(self, folder: Folder, name: str) -> None:
        """Move a stage's newest finished output back from ``stale/``, if there is one."""
        stale = self.folder / STALE
        prefix = f"{name.replace('/', '-')}-"
        aside = sorted(one for one in stale.folders() if one.startswith(prefix)) if stale.exists() else []
        finished = [one for one in aside if (stale / one).exists(MANIFEST)]
        if finished:
            if folder.exists():
                folder.move_to(self._place_aside(name))
            (stale / finished[-1]).move_to(folder)
            log_event(f"{name}: taken back from {(stale / finished[-1]).uri}", "stage_taken_back")

    def _reused(self, other: Folder, stage: Stage) -> Manifest:
        reuse_stage(other, self.folder, stage.name, keep=(*stage.persistent, STARTED))
        manifest = self.manifest(stage.name)
        line = f"{stage.name}: taken over from {other.name} ({_counts(manifest.outputs)})"
        log_event(line, "stage_taken_over", run=other.name, outputs=manifest.outputs)
        return manifest

    def _place_aside(self, name: str) -> Folder:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        return self.folder / STALE / f"{name.replace('/', '-')}-{stamp}"

    def _make_room(self, folder: Folder, stage: Stage, parts: FingerprintInputs, finished: Manifest | None) -> None:
        """Move a stale folder aside; leave one that the same work has begun."""
        if not folder.exists():
            return
        begun = folder.read_json(STARTED)["fingerprint"] if folder.exists(STARTED) else None
        if begun == parts.fingerprint and not finished:
            log_event(f"{stage.name}: resumed with what an earlier attempt had finished", "stage_resumed")
            return
        aside = self._place_aside(stage.name)
        if finished:
            changed = changes(FingerprintInputs.of(finished), parts)
            line = (
                f"{stage.name}: runs again, because {'; '.join(changed)}. The finished output, which took "
                f"{duration(finished.wall_s)}, moves to {aside.uri}; --keep {stage.name} takes it back"
            )
        else:
            changed = []
            line = f"{stage.name}: an unfinished attempt with other settings, code or inputs moves to {aside.uri}"
        log_event(line, "stage_stale", kept_in=aside.uri, changed=changed)
        folder.move_to(aside)
        for name in stage.persistent:
            if (aside / name).exists():
                (aside / name).move_to(folder / name)


def refuse_what_would_be_lost(recipe: Recipe) -> None:
    """Refuse to write a run below the uploaded working directory of a job.

    Raises:
        StorageError: The recipe's storage path is relative.
    """
    if not Path(recipe.run.storage).expanduser().is_absolute() and "://" not in recipe.run.storage:
        raise StorageError(
            f"run.storage is '{recipe.run.storage}', a path below the copy of the project that travels with a "
            "submitted job (`--working-dir`), and goes with it. Name an absolute path or a URI (s3://...) that all "
            "nodes reach, in the recipe or with --run.storage."
        )


def _finished(stage: Stage, parts: FingerprintInputs, folder: Folder, work: Work) -> Manifest:
    """Do the work of a stage and write its manifest, the mark of a finished stage."""
    log_event(f"{stage.name}: started", "stage_started")
    started = time.monotonic()
    with recorded() as phases:
        outputs = work(folder)
    manifest = Manifest(
        stage=stage.name,
        fingerprint=parts.fingerprint,
        inputs=dict(parts.inputs),
        outputs=dict(outputs),
        settings=dict(parts.settings),
        code_version=digest(parts.code),
        code=dict(parts.code),
        finished_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        wall_s=round(time.monotonic() - started, 3),
        phases=[dataclasses.asdict(one) for one in phases],
    )
    folder.write_json(MANIFEST, dataclasses.asdict(manifest))
    line = f"{stage.name}: done in {manifest.wall_s:.1f} s ({_counts(outputs)})"
    log_event(line, "stage_done", wall_s=manifest.wall_s, outputs=manifest.outputs)
    return manifest


def _counts(outputs: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in outputs.items()) or "nothing made"
