"""Reasons to refuse a request. Each dialect has its own status and body for a reason.

Where in the flow: raised anywhere between the socket and the engine, rendered by `endpoint`.
"""

from enum import Enum


class Reason(Enum):
    """Why a request is refused; the value is its label in metrics."""

    NOT_JSON = "not_json"
    INVALID = "invalid"
    EMPTY = "empty"
    TOO_LONG = "too_long"
    UNKNOWN_MODEL = "unknown_model"
    WRONG_TASK = "wrong_task"
    UNSUPPORTED = "unsupported"
    UNAUTHORIZED = "unauthorized"
    FINGERPRINT = "fingerprint"
    BODY_SIZE = "body_size"
    ANSWER_SIZE = "answer_size"
    QUEUE_SIZE = "queue_size"
    CONTENT_TYPE = "content_type"
    QUEUE_FULL = "queue_full"
    LOADING = "loading"
    STOPPING = "stopping"
    DEADLINE = "deadline"
    NOT_FOUND = "not_found"
    METHOD = "method"
    INTERNAL = "internal"


# Statuses of a dialect that has no own one for a reason.
STATUS = {
    Reason.NOT_JSON: 400,
    Reason.INVALID: 400,
    Reason.EMPTY: 400,
    Reason.TOO_LONG: 400,
    Reason.UNKNOWN_MODEL: 404,
    Reason.WRONG_TASK: 400,
    Reason.UNSUPPORTED: 501,
    Reason.UNAUTHORIZED: 401,
    Reason.FINGERPRINT: 412,
    Reason.BODY_SIZE: 413,
    Reason.ANSWER_SIZE: 413,
    Reason.QUEUE_SIZE: 413,
    Reason.CONTENT_TYPE: 415,
    Reason.QUEUE_FULL: 429,
    Reason.LOADING: 503,
    Reason.STOPPING: 503,
    Reason.DEADLINE: 503,
    Reason.NOT_FOUND: 404,
    Reason.METHOD: 405,
    Reason.INTERNAL: 500,
}


# Characters of a message: it may quote a value of any length.
LONGEST_MESSAGE = 1000


class Problem(Exception):
    """A request is refused.

    Attributes:
        reason: why.
        message: for the client; says what to do.
        param: the field of the body that is at fault, or None.
        retry_after: seconds after which another try makes sense, or None.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """See the attributes."""
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]}..."
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after = retry_after


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""
