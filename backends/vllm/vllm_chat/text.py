"""Text generation: a rendered prompt in, tensors of the stock contract out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from vllm_chat import lora, sampling
from vllm_chat.contract import Response, TextRequest
from vllm_chat.errors import InvalidRequest

#: The stock backend's words for "not finished" and "no log probabilities asked for".
UNFINISHED = "None"
NO_LOGPROBS = "null"


async def generate(
    llm: AsyncLLM, request: TextRequest, request_id: str, loras: Mapping[str, LoRARequest] | None = None
) -> AsyncGenerator[Response, None]:
    """Run one text request.

    Args:
        llm: The engine.
        request: What to generate.
        request_id: Unique among the running requests.
        loras: Adapters that the sampling parameter `lora_name` may name.

    Yields:
        Outputs by name and whether they are the last. With `stream`, each holds what is new since the one before;
        arrays have one element per completion (`n`), empty text for those that did not move.

    Raises:
        InvalidRequest: If the sampling parameters are wrong or the prompt is too long.
        VLLMClientError: If vLLM refuses the parameters for this model, e.g. token ids outside of its vocabulary.
    """
    given = dict(request.sampling)
    adapter = lora.choose(loras or {}, given.pop(lora.PARAMETER, None), "sampling_parameters")
    params = sampling.build(given)
    params.output_kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
    try:
        # Tokenised in vLLM's thread pool, not in the event loop.
        whole = await _prompt(llm, request)
        (prompt,) = await llm.renderer.render_cmpl_async([parse_model_prompt(llm.model_config, whole)])
    except VLLMClientError as error:
        field = "image" if request.images and "image" in str(error.args[0]) else "text_input"
        raise InvalidRequest(f"{field}: {error.args[0]}") from None
    # A plain prompt has no thoughts: a grammar holds from the first token, whatever reasoning parser chat has.
    answer = llm.generate(prompt, params, request_id, lora_request=adapter, reasoning_ended=True)
    async with contextlib.aclosing(answer):  # a request that is dropped between two outputs is aborted at once, too
        async for output in answer:
            yield Response(_tensors(request, output, params.n), output.finished, output.finished)


async def _prompt(llm: AsyncLLM, request: TextRequest) -> Any:
    """The prompt with its images, if it has any."""
    if not request.images:
        return request.prompt
    if not llm.model_config.is_multimodal_model:
        raise InvalidRequest("image cannot be used: this model reads text only")
    return {
        "prompt": request.prompt,
        "multi_modal_data": {"image": await asyncio.to_thread(_pictures, request.images)},
    }


def _pictures(files: tuple[bytes, ...]) -> list[Image.Image]:
    pictures = []
    for index, data in enumerate(files):
        try:
            pictures.append(Image.open(io.BytesIO(data)).convert("RGB"))
        except UnidentifiedImageError:
            raise InvalidRequest(f"image[{index}] is not an image file of a known kind, such as PNG or JPEG") from None
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"image[{index}] is not an image file that can be read: {error}") from None
    return pictures


def _tensors(request: TextRequest, output: RequestOutput, count: int) -> dict[str, np.ndarray]:
    parts: list[CompletionOutput | None] = [None] * count
    for part in output.outputs:
        parts[part.index] = part
    prefix = request.prompt if request.prepend_prompt else ""
    tensors = {"text_output": _strings(prefix + (part.text if part else "") for part in parts)}
    if "finish_reason" in request.extras:
        tensors["finish_reason"] = _strings((part.finish_reason if part else None) or UNFINISHED for part in parts)
    if "cumulative_logprob" in request.extras:
        sums = [part.cumulative_logprob if part else None for part in parts]
        tensors["cumulative_logprob"] = np.array([np.nan if s is None else s for s in sums], np.float32)
    if "logprobs" in request.extras:
        tensors["logprobs"] = _strings(_logprobs(part) for part in parts)
    if "num_input_tokens" in request.extras:
        tensors["num_input_tokens"] = np.array([len(output.prompt_token_ids or ())], np.uint32)
    if "num_output_tokens" in request.extras:
        tensors["num_output_tokens"] = np.array([len(part.token_ids) if part else 0 for part in parts], np.uint32)
    return tensors


def _logprobs(part: CompletionOutput | None) -> str:
    """JSON: per new token an object of candidates, `{"<token id>": {"logprob", "rank", "decoded_token"}}`."""
    if part is None or part.logprobs is None:
        return NO_LOGPROBS
    return json.dumps(
        [
            {
                token: {"logprob": entry.logprob, "rank": entry.rank, "decoded_token": entry.decoded_token}
                for token, entry in candidates.items()
            }
            for candidates in part.logprobs
        ]
    )


def _strings(values: Any) -> np.ndarray:
    return np.array([value.encode("utf-8", errors="replace") for value in values], dtype=np.object_)
