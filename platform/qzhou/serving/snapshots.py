"""The models that endpoints serve, kept apart from the model of the run.

A run that is trained again replaces its model, and is without one for hours. A replica that
starts in the meantime must load what its endpoint serves and nothing else: two models under
one name would be two spaces of vectors. So what is served lies below ``served/`` in the run
folder, under its fingerprint, as hard links where the filesystem has them.
"""

from collections.abc import Collection
from pathlib import Path

from qzhou.data.records import digest
from qzhou.errors import SetupError, StorageError
from qzhou.run.files import EXPORT, MANIFEST
from qzhou.run.models import weights_fingerprint
from qzhou.run.run import Run
from qzhou.telemetry.events import log_event

SERVED, PIN = "served", "pinned.json"
KEPT = 3  # models that finished last; endpoints may serve an earlier one


def snapshot_of(run: Run) -> str:
    """The folder in which the run's finished model is kept as it is now, or an earlier one after :func:`roll_back`.

    It is the model's own folder where the run cannot be written; a line says so.

    Raises:
        DataError: The run has no finished model.
        SetupError: The earlier model has been removed.
    """
    if pinned := _pinned(run):
        finished = _kept(run).get(pinned)
        if finished is None:
            raise SetupError(
                f"{(run.folder / SERVED / pinned).uri} was to be served (`qzhou serve --rollback`) and is not there. "
                "`qzhou serve RECIPE --newest` serves the run's own model again."
            )
        log_event(f"serve: the model of {finished} is served, by --rollback; --newest ends that", "pinned")
        return (run.folder / SERVED / pinned).uri
    manifest, model = run.manifest(EXPORT), run.folder / EXPORT
    # files may be replaced by hand; object stores are only asked for the manifest
    remote = digest([manifest.fingerprint, manifest.finished_at])
    key = weights_fingerprint(model.path) if model.is_local else remote
    kept = run.folder / SERVED / key
    try:
        if not kept.exists(MANIFEST):
            model.link_to(kept, last=MANIFEST)
    except (StorageError, OSError) as error:
        line = f"serve: {kept.uri} cannot be written ({error}); replicas that start later load {model.uri} as it is"
        log_event(line, "not_kept", level="warning", place=kept.uri)
        return model.uri
    return kept.uri


def roll_back(run: Run) -> str:
    """Let endpoints of the run serve the model before the one that they serve now; when that was finished.

    Raises:
        SetupError: No earlier model is kept.
    """
    kept = _kept(run)
    order = sorted(kept, key=lambda name: (kept[name], name))
    now = _pinned(run) or (order[-1] if order else "")
    earlier = order[: order.index(now)] if now in order else []
    if not earlier:
        raise SetupError(
            f"{(run.folder / SERVED).uri} keeps no model that is earlier than the one that is served; the last "
            f"{KEPT} that an endpoint has served are kept."
        )
    (run.folder / SERVED).write_json(PIN, {"model": earlier[-1]})
    return kept[earlier[-1]]


def serve_newest(run: Run) -> bool:
    """End what :func:`roll_back` began; False where nothing was."""
    if not _pinned(run):
        return False
    (run.folder / SERVED).remove(PIN)
    return True


def _pinned(run: Run) -> str:
    """The name of the model that was gone back to; empty if there is none."""
    folder = run.folder / SERVED
    return str(folder.read_json(PIN)["model"]) if folder.exists(PIN) else ""


def _kept(run: Run) -> dict[str, str]:
    """The models that are kept whole: name -> when they were finished."""
    folder = run.folder / SERVED
    return {
        name: str(folder.read_json(f"{name}/{MANIFEST}")["finished_at"])
        for name in folder.folders()
        if folder.exists(f"{name}/{MANIFEST}")
    }


def is_snapshot(place: str, run: Run) -> bool:
    """Whether a place is one of the run's models that are kept for endpoints."""
    return place.startswith((run.folder / SERVED).uri + "/")


def refuse_changed(place: str) -> None:
    """Refuse a kept model (:func:`is_snapshot`) whose files are not those that it was kept for.

    Raises:
        SetupError: Says so.
    """
    if "://" in place:
        return
    if weights_fingerprint(place) != Path(place).name:
        raise SetupError(
            f"{place}: files were changed in place while an endpoint serves them. Put another model into the run by "
            "`qzhou export`, or replace its files by new ones; then send the endpoint SIGHUP."
        )


def forget_old_ones(run: Run, served: Collection[str]) -> None:
    """Remove the models that were kept for endpoints, but for those in ``served`` and the last ``KEPT`` ones.

    To be called when a new one has been taken into service: one that cannot be served must
    not drive out the one that is.
    """
    folder, finished, pinned = run.folder / SERVED, _kept(run), _pinned(run)
    for name in sorted(finished, key=lambda one: finished[one])[:-KEPT]:
        if (folder / name).uri not in served and name != pinned:
            (folder / name).delete()
