"""A run is a folder; a stage that is finished and unchanged is skipped.

A stage's fingerprint covers its settings, the code of its rooms and what its inputs were. Equal
fingerprint: skipped with one line. Unequal: the stale output is moved to ``stale/``, never mixed
with the new. A stage that died is entered again with what it had finished still in its folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from qzhou.config.recipe import Recipe
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.errors import DataError, StorageError
from qzhou.run.lock import at_work
from qzhou.run.sharing import MANIFEST as MANIFEST
from qzhou.run.sharing import reuse_cache, finished_beside, reuse_stage, stage_lock
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import recorded

# stages not named like their job
JOBS = {"training/stage1": "training", "training/stage2": "training", "model": "export"}
UPLOADED = "working_dir_files"  # where Ray keeps the working directories that jobs bring with them
STARTED, RECIPE = "started.json", "recipe.json"
SHARED_CODE = ("data",)  # what every stage's output depends on


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """The folder ``<storage>/<run name>`` and the recipe that fills it."""

    recipe: Recipe
    folder: Folder

    @classmethod
    def at(cls, recipe: Recipe) -> Run:
        """The run where the recipe says it is, whether it is there or not; writes nothing."""
        return cls(recipe, Folder.open(recipe.run.storage) / recipe.run.name)

    @staticmethod
    def address(recipe: Recipe) -> str:
        """The URI of the run's folder, for whoever has no access to its storage: nothing is opened."""
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
        run.folder.create().write_json(RECIPE, recipe.model_dump(mode="json"))
        return run

    @classmethod
    def find(cls, recipe: Recipe) -> Run:
        """A run that was begun before; its folder stays as it is.

        Raises:
            DataError: There is none.
        """
        run = cls.at(recipe)
        if not run.folder.exists(RECIPE):
            raise DataError(
                f"{run.folder.uri} has no {RECIPE}: there is no run of that name. Run python jobs/pipeline.py with "
                "this recipe first, or name its place with --run.storage and --run.name."
            )
        return run

    def manifest(self, stage: str) -> Manifest:
        """The manifest of a finished stage.

        Raises:
            DataError: The stage has not finished; says which job to run.
        """
        folder = self.folder / stage
        if not folder.exists(MANIFEST):
            job = JOBS.get(stage, stage)
            raise DataError(
                f"{folder.uri} has no {MANIFEST}: the stage '{stage}' has not finished. "
                f"Run python jobs/{job}.py with this recipe first, or jobs/pipeline.py for all of it."
            )
        return Manifest(**folder.read_json(MANIFEST))

    def stage(
        self,
        name: str,
        work: Callable[[Folder], Mapping[str, int]],
        *,
        settings: Mapping[str, object],
        inputs: Mapping[str, str],
        rooms: Sequence[str],
        keep: Sequence[str] = (),
        lend: Sequence[str] = (),
    ) -> Manifest:
        """Do the work of a stage unless it is done already.

        Args:
            name: The stage's folder in the run.
            work: Fills the folder and returns what it made: name -> rows.
            settings: What of the recipe the output depends on.
            inputs: Name -> fingerprint of what is read (other stages, raw files).
            rooms: Packages of ``qzhou`` whose code the output depends on.
            keep: Folders inside the stage that stay valid when the rest is stale, because their
                entries are keyed by content (paid LLM answers, embeddings).
            lend: Those of them that are of use to every run that shares its stages (``run.share_stages``).

        Raises:
            StorageError: Another process is at work on this run.
        """
        code = code_version(*rooms)
        fingerprint = digest({"settings": settings, "inputs": inputs, "code": code})
        folder = self.folder / name
        finished = Manifest(**folder.read_json(MANIFEST)) if folder.exists(MANIFEST) else None
        if finished and finished.fingerprint == fingerprint:
            line = f"{name}: unchanged since {finished.finished_at}, skipped ({_counts(finished.outputs)})"
            log_event(line, "stage_skipped", outputs=finished.outputs)
            return finished
        shares = self.recipe.run.share_stages
        with (
            at_work(self.folder, name),
            stage_lock(self.folder, name, fingerprint) if shares else nullcontext(),
        ):
            self._make_room(folder, name, fingerprint, keep)
            folder.create().write_json(STARTED, {"fingerprint": fingerprint})
            if shares:
                if other := finished_beside(self.folder, name, fingerprint):
                    return self._taken_over(other, name, keep)
                reuse_cache(self.folder, name, lend)
            begun = Manifest(
                stage=name,
                fingerprint=fingerprint,
                inputs=dict(inputs),
                outputs={},
                settings=dict(settings),
                code_version=code,
                finished_at="",
                wall_s=0.0,
            )
            return _finished(begun, folder, work)

    def _taken_over(self, other: Folder, name: str, keep: Sequence[str]) -> Manifest:
        reuse_stage(other, self.folder, name, keep=(*keep, STARTED))
        manifest = self.manifest(name)
        line = f"{name}: taken over from {other.name} ({_counts(manifest.outputs)})"
        log_event(line, "stage_taken_over", run=other.name, outputs=manifest.outputs)
        return manifest

    def _make_room(self, folder: Folder, name: str, fingerprint: str, keep: Sequence[str]) -> None:
        """Move a stale folder aside; leave one that this very work had begun."""
        if not folder.exists():
            return
        begun = folder.read_json(STARTED)["fingerprint"] if folder.exists(STARTED) else None
        if begun == fingerprint and not folder.exists(MANIFEST):
            log_event(f"{name}: resumed with what an earlier attempt had finished", "stage_resumed")
            return
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = self.folder / "stale" / f"{name.replace('/', '-')}-{stamp}"
        folder.move_to(aside)
        line = f"{name}: settings, code or inputs changed; the stale output is kept in {aside.uri}"
        log_event(line, "stage_stale", kept_in=aside.uri)
        for kept in keep:
            if (aside / kept).exists():
                (aside / kept).move_to(folder / kept)


def refuse_what_would_be_lost(recipe: Recipe) -> None:
    """For jobs that run from an uploaded directory.

    Raises:
        StorageError: The run would be written below it.
    """
    if not Path(recipe.run.storage).expanduser().is_absolute() and "://" not in recipe.run.storage:
        raise StorageError(
            f"run.storage is '{recipe.run.storage}', a path below the copy of the project that travels with a "
            "submitted job (`--working-dir`), and goes with it. Name an absolute path or a URI (s3://...) that all "
            "nodes reach, in the recipe or with --run.storage."
        )


def _finished(
    begun: Manifest, folder: Folder, work: Callable[[Folder], Mapping[str, int]]
) -> Manifest:
    """Do the work of a stage and write its manifest, which says that it is whole."""
    log_event(f"{begun.stage}: started", "stage_started")
    started = time.monotonic()
    with recorded() as phases:
        outputs = work(folder)
    manifest = dataclasses.replace(
        begun,
        outputs=dict(outputs),
        finished_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        wall_s=round(time.monotonic() - started, 3),
        phases=[dataclasses.asdict(one) for one in phases],
    )
    folder.write_json(MANIFEST, dataclasses.asdict(manifest))
    line = f"{begun.stage}: done in {manifest.wall_s:.1f} s ({_counts(outputs)})"
    log_event(line, "stage_done", wall_s=manifest.wall_s, outputs=manifest.outputs)
    return manifest


def digest(content: object) -> str:
    """16 hex digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]


def code_version(*rooms: str) -> str:
    """Digest of the source of some rooms and of what all rooms share."""
    package = Path(__file__).parents[1]
    files: list[Path] = []
    for room in (*SHARED_CODE, *rooms):
        files += [
            path
            for path in sorted((package / room).rglob("*"))
            if path.suffix in {".py", ".md", ".txt", ".j2"}
        ]
    return digest([[str(path.relative_to(package)), path.read_text("utf-8")] for path in files])


def file_fingerprint(paths: Sequence[str]) -> str:
    """Digest of local files by name, size and time of change; cheap for any size."""
    return digest(
        [[path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns] for path in sorted(paths)]
    )


def _counts(outputs: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in outputs.items()) or "nothing made"
