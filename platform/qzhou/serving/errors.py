"""What the endpoint refuses with, in OpenAI's shape."""

import math

from qzhou.errors import QzhouError

# OpenAI's families of errors; every other status is of the request
TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class RequestError(QzhouError):
    """A request that is not answered with embeddings.

    Attributes:
        status: HTTP status; OpenAI's clients pick their exception by it.
        type: OpenAI's family of errors, which follows from the status.
        param: The field of the request that is to blame, if one is.
        code: Short name for programs, e.g. ``model_not_found``.
        retry_after_s: When it may be tried again, where that is known.
        row: Which of the texts is too long, where that is what is wrong.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        row: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.row = row
        self.type = TYPES.get(status, "invalid_request_error")

    def headers(self) -> dict[str, str]:
        """``Retry-After`` in whole seconds, where waiting may help."""
        if self.status not in {429, 503}:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s or 1)))}

    def body(self) -> dict[str, object]:
        """The JSON body that OpenAI's clients parse."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}
