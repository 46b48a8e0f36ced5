"""What a call can fail with. Every exception's message is the server's own sentence, for a person to act on."""

from __future__ import annotations

import re

import grpc
from tritonclient.utils import InferenceServerException


class TritonVoiceError(Exception):
    """Base of the SDK's exceptions."""


class InvalidInput(TritonVoiceError):
    """The server refused the request and will refuse it again; the message says what is allowed."""


class ServerFull(TritonVoiceError):
    """The server has no room at present: try again later."""


class ServerGone(TritonVoiceError):
    """The server cannot be reached, is stopping, or went away in the middle of the call."""


class ServerSilent(ServerGone):
    """The server is connected, and a model has sent nothing for as long as the caller was ready to wait.

    It may hang, or have more work than it can do. The request is cancelled.
    """

    @classmethod
    def after(cls, model: str, seconds: float) -> ServerSilent:
        """Returns it with its sentence.

        Args:
            model: Who was asked.
            seconds: How long nothing came.
        """
        return cls(f"the model {model} has sent nothing for {round(seconds, 1):g} s: it hangs, or has too much to do")


class ModelNotReady(TritonVoiceError):
    """The server runs, the model does not."""


class UnknownModel(ModelNotReady):
    """The server has no model of that name."""


class SequenceLost(TritonVoiceError):
    """The server no longer holds the stream (it was silent for too long, or the server restarted): begin again."""


class ServerFault(TritonVoiceError):
    """The model failed while it worked on the request."""


_TRANSPORT = re.compile(
    r"failed to connect|connection (?:refused|reset)|socket closed|goaway|keepalive|endpoint read failed|"
    r"channel (?:is )?clos|stream removed|connection attempt timed out|name resolution|recvmsg|broken pipe",
    re.IGNORECASE,
)


_NOT_READY = ("unknown model", "is not ready", "is not healthy", "no version", "is being unloaded")


_NAMED_STATUS = re.compile(r"^(INVALID_ARGUMENT|UNAVAILABLE|NOT_FOUND|CANCELLED|INTERNAL): (.*)", re.DOTALL)
"""How our decoupled models word an error. A gRPC stream of Triton carries no status codes (there is a header that asks
for them, `triton_grpc_error`, and with it Triton 2.51 crashes when a stream ends in an error)."""


_REFUSED_BY_TRITON = re.compile(
    r"unexpected inference input|expected (?:\d+ inputs|number of inputs between \d+ and \d+) but got", re.IGNORECASE
)
"""How Triton itself words what a model's inputs do not allow; on a stream that has no status either."""


def from_triton(error: InferenceServerException | grpc.RpcError) -> TritonVoiceError:
    """Returns the SDK's exception for one of tritonclient's, or of gRPC's, which its streams let through."""
    if isinstance(error, grpc.RpcError):
        status, message = error.code().name, (error.details() or "").strip()
    else:
        status, message = (error.status() or "").removeprefix("StatusCode."), (error.message() or str(error)).strip()
    if not status and (found := _NAMED_STATUS.match(message)):
        status, message = found.groups()
    lower = message.lower()
    if "unknown model" in lower and lower.endswith("is not found"):
        return UnknownModel(message)
    if (
        "must specify the start flag" in lower or status == "NOT_FOUND"
    ):  # Triton's sentence, and the recogniser's status
        return SequenceLost(message)
    if any(words in lower for words in _NOT_READY):
        return ModelNotReady(message)
    if _REFUSED_BY_TRITON.search(message):
        return InvalidInput(message)
    if status == "UNAVAILABLE" or not status:
        if _TRANSPORT.search(message) or "server is stopping" in lower:
            return ServerGone(message)
        if status == "UNAVAILABLE":
            return ServerFull(message)
    if status == "RESOURCE_EXHAUSTED":
        return ServerFull(message)
    if status == "INVALID_ARGUMENT":
        return InvalidInput(message)
    if status in ("CANCELLED", "DEADLINE_EXCEEDED"):
        return ServerGone(message)
    return ServerFault(message)
