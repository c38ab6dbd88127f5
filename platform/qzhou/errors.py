"""Every error that the platform raises on purpose.

    QzhouError              exit status 1
    ├── UserError           exit status 2: something the user can mend
    │   ├── RecipeError     the recipe file: unknown key, wrong type, settings that contradict
    │   ├── DataError       input data: missing file, empty dataset, wrong columns, nothing survives
    │   ├── ModelError      a backbone, teacher or model folder that cannot be loaded
    │   │   └── HubError    files are missing on this machine, and the model hub cannot be asked
    │   ├── StorageError    a storage path that cannot be read or written
    │   └── SetupError      the machine: busy port, missing package, missing compiler
    ├── EndpointError       an LLM endpoint that does not answer or refuses
    ├── TrainingError       a training run that cannot go on
    └── RegressionError     a model that does not reach what --fail-below or --no-worse-than ask for

The message is for a person: the place, the values that clash, and the way out. Errors cross
process boundaries in Ray, so each holds its message and nothing else, and pickles.
"""

import json


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def with_body(text: str, error: BaseException) -> str:
    """An error's ``text``; of an HTTP refusal also the body, of which an SDK shows known forms alone."""
    is_refusal = (getattr(error, "status_code", None) or 0) >= 400
    body = str(getattr(error, "body", None) or "") if is_refusal else ""
    return text if body in text else f"{text} {body}"


class QzhouError(Exception):
    """Root of the tree; ``exit_status`` is what a job script ends with."""

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message  # Ray Data writes advice of its own into ``args``

    def __str__(self) -> str:
        return self.message


class UserError(QzhouError):
    """The user asked for something impossible and can mend it."""

    exit_status = 2


class RecipeError(UserError):
    """The recipe cannot be read, has an unknown key or wrong type, or contradicts itself."""


class DataError(UserError):
    """Input data is missing, empty, malformed, or nothing of it survives the rules."""


class ModelError(UserError):
    """A backbone, teacher or model folder cannot be loaded."""


class HubError(ModelError):
    """Files of a model are missing on this machine, and the hub cannot be asked for them."""


class StorageError(UserError):
    """A storage path cannot be read or written."""


class SetupError(UserError):
    """The machine lacks something: a free port, a package, a compiler."""


class EndpointError(QzhouError):
    """An LLM endpoint is down or refuses; what was answered before is kept."""


class TrainingError(QzhouError):
    """Training cannot go on: a non-finite loss, or a checkpoint that does not fit."""


class RegressionError(QzhouError):
    """A model is worse than it has to be; what was measured is kept."""


def kind_of(error: QzhouError) -> type[QzhouError]:
    """The class of the tree above that an error belongs to; Ray derives classes of its own from it."""
    return next(
        kind for kind in type(error).__mro__ if issubclass(kind, QzhouError) and kind.__module__ == __name__
    )


def to_json(error: QzhouError) -> str:
    """An error as a value: Ray Data wraps an exception until only its text is left."""
    return json.dumps([kind_of(error).__name__, str(error)])


def from_json(text: str) -> QzhouError:
    """What :func:`to_json` was given, without what a derived class adds."""
    name, message = json.loads(text)
    kind: type[QzhouError] = globals()[name]
    return kind(message)
