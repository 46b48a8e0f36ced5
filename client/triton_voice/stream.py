"""One call of a decoupled model, with the cancellation and the errors that tritonclient leaves to its users."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from triton_voice.errors import ServerSilent, TritonVoiceError, from_triton
from triton_voice.tracing import CallSpan


async def stream_infer(
    client: grpc_aio.InferenceServerClient,
    request: dict[str, Any],
    answer_timeout_s: float | None,
) -> AsyncGenerator[Any, None]:
    """Yields the results of one request to a decoupled model.

    Leaving the iteration early cancels the call for real: `break` out of tritonclient's own iterator leaves the server
    working.

    Args:
        client: The connection.
        request: Arguments of the request, as tritonclient's `infer` names them.
        answer_timeout_s: How long each result may take. The time that the caller spends on one does not count. None
            waits for ever.

    Raises:
        ServerSilent: A result took longer; the call is cancelled.
        TritonVoiceError: The server answered with an error, or went away.
    """

    async def only() -> AsyncGenerator[dict[str, Any], None]:
        yield request

    span = CallSpan(request["model_name"])
    call = client.stream_infer(only(), headers=span.headers())
    ended = False
    failure: TritonVoiceError | None = None
    try:
        while True:
            result, error = await _next(call, request["model_name"], answer_timeout_s)
            if error is not None:
                raise error
            span.mark("first response")
            yield result
    except StopAsyncIteration:
        ended = True
    except ServerSilent as error:
        failure = error
        raise
    except (InferenceServerException, grpc.RpcError) as error:
        ended = True
        failure = from_triton(error)
        raise failure from error
    finally:
        if not ended:
            call.cancel()
            span.tell(cancelled=True)
        span.end(failure)


async def _next(call: Any, model: str, answer_timeout_s: float | None) -> Any:
    began = time.monotonic()
    try:
        async with asyncio.timeout(answer_timeout_s):
            return await anext(call)
    except TimeoutError:
        raise ServerSilent.after(model, time.monotonic() - began) from None
