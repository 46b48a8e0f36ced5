"""The engine: vLLM's AsyncLLM on an event loop of its own, and the requests that run on it.

Threads: the caller's (submits), the event loop's (tokenises, talks to the engine's process, words the outputs), the
courier's (sends, watches). Each request is one asyncio task; cancelling the task is the one way to stop a request, and
the end of the task, however it came, is the one place where its client is answered for the last time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from pydantic import ValidationError
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import PrometheusStatLogger

from vllm_chat import lora, statistics, text
from vllm_chat.chat import Chat
from vllm_chat.contract import ChatRequest, Response, TextRequest
from vllm_chat.courier import Courier, Parcel, Reply
from vllm_chat.errors import BackendError, Cancelled, EngineFailed, InvalidRequest, LoadFailed, Unavailable
from vllm_chat.observer import Observer
from vllm_chat.pace import Pace

#: How long the engine's process may take to leave before vLLM kills it. It holds nothing worth waiting for by then, and
#: taking Python and torch apart in order can take many seconds on a busy machine.
ENGINE_EXIT_S = 1.0
#: How long running requests may go on when the server is stopping.
STOP_GRACE_S = 2.0
_UNLOADING = "the model is being unloaded"
_STOPPING = "the server is stopping"
_DEAD = "the model is not ready: its engine died, and it must be loaded again"


class Job:
    """One request between its arrival and its last response."""

    def __init__(
        self, request: TextRequest | ChatRequest, reply: Reply, request_id: str, on_gone: Callable[[Job], None]
    ):
        self.request = request
        self.request_id = request_id
        self.parcel = Parcel(reply, lambda: on_gone(self))
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False
        self.finished = False


class LlmEngine:
    """A loaded model that answers requests until `shutdown`.

    Args:
        engine_args: vLLM's engine arguments by name, see `settings.resolve`.
        model_name: The name that chat chunks carry.
        chat_template_kwargs: Defaults of the chat template's switches.
        log: Takes a line for the operator.
        parsers: Names of vLLM's parsers for chat, see `settings.PARSER_ARGS`.
        loras: Folders of LoRA adapters by name.
        observer: Hears what happens.
        with_statistics: Tell the observer what every step did; vLLM collects nothing otherwise, and steps are counted.

    Raises:
        LoadFailed: If vLLM cannot load the model; its cause is vLLM's own exception.
    """

    def __init__(
        self,
        engine_args: dict[str, Any],
        model_name: str,
        chat_template_kwargs: dict[str, Any],
        log: Callable[[str], None],
        parsers: Mapping[str, str] | None = None,
        loras: Mapping[str, str] | None = None,
        observer: Observer | None = None,
        with_statistics: bool = False,
    ):
        self._log = log
        self._observer = observer or Observer()
        self._pace = Pace(len(os.sched_getaffinity(0)))
        self._stat_loggers = [statistics.factory(self._observer, self._pace.hurry)] if with_statistics else []
        self._loras = lora.requests(loras or {})
        self._jobs: set[Job] = set()
        self._closing = ""  # why no more requests are taken
        self._dead = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm-engine", daemon=True)
        self._thread.start()
        self._courier = Courier(log, self._taken)
        try:
            self._llm, self._chat = asyncio.run_coroutine_threadsafe(
                self._load(engine_args, model_name, chat_template_kwargs, parsers or {}), self._loop
            ).result()
        except LoadFailed:
            self._stop_threads()
            raise
        except Exception as error:
            self._stop_threads()
            raise LoadFailed(f"vLLM could not load {engine_args['model']}: {_reason(error)}") from error

    async def _load(
        self,
        engine_args: dict[str, Any],
        model_name: str,
        chat_template_kwargs: dict[str, Any],
        parsers: Mapping[str, str],
    ) -> tuple[AsyncLLM, Chat]:
        # Made inside the loop, because AsyncLLM starts its output task on the running loop.
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args), stat_loggers=self._stat_loggers)
        if llm.logger_manager is not None:
            # vLLM adds a Prometheus registry of its own, which nobody here reads and which costs time in every step.
            loggers = llm.logger_manager.stat_loggers
            loggers[:] = [logger for logger in loggers if not isinstance(logger, PrometheusStatLogger)]
        if not self._stat_loggers:
            statistics.count_steps(llm, self._observer)
        try:
            chat = Chat(llm, model_name, chat_template_kwargs, parsers, self._loras)
            # The first prompt, the first chat template and the first steps cost more than the others; ready means warm.
            warm_up = TextRequest("Hello", False, False, {"max_tokens": 2, "logprobs": 1}, frozenset())
            async for _ in text.generate(llm, warm_up, "warm-up"):
                pass
            with contextlib.suppress(InvalidRequest):  # a model without a chat template still completes prompts
                hello = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
                async for _ in chat.generate(hello, "warm-up-chat"):
                    pass
            assert llm.output_handler is not None
            llm.output_handler.add_done_callback(self._notice_death)
            return llm, chat
        except BaseException:
            llm.shutdown()
            raise

    def submit(self, request: TextRequest | ChatRequest, reply: Reply) -> None:
        """Begin to answer a request; everything, errors too, goes to `reply`. Returns at once, callable anywhere."""
        job = Job(request, reply, uuid.uuid4().hex, self._cancel_soon)
        if not self._call(self._begin, job):
            self._refuse(job, _UNLOADING)

    def reject(self, error: BackendError, reply: Reply) -> None:
        """Answer a request that could not even be read."""
        self._courier.fail(Parcel(reply, lambda: None), error)

    def stop_requests(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuse new requests and end those that outlast a grace period with an error; returns after the last."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it is shut down already
            asyncio.run_coroutine_threadsafe(self._stop_requests(grace_s), self._loop).result()

    def shutdown(self) -> None:
        """Refuse new requests, end the running ones with an error, and leave no thread and no process behind."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop).result()
        self._llm.shutdown(timeout=ENGINE_EXIT_S)
        # Collected now and not while the interpreter ends, which vLLM's destructor does not survive.
        del self._llm, self._chat
        self._stop_threads()

    def _call(self, function: Callable[[Job], None], job: Job) -> bool:
        try:
            self._loop.call_soon_threadsafe(function, job)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _begin(self, job: Job) -> None:
        if self._closing or self._dead:
            self._refuse(job, _DEAD if self._dead else self._closing)
            return
        self._jobs.add(job)
        self._observer.in_flight(len(self._jobs))
        job.task = self._loop.create_task(self._answer(job))
        job.task.add_done_callback(lambda task: self._end(job, task))
        # After the task's first turn, in which a short chat gets as far as the engine: the courier's thread, woken
        # before, would take the interpreter in the midst of it.
        self._loop.call_soon(self._courier.open, job.parcel)
        if job.cancelled:
            job.task.cancel()

    def _refuse(self, job: Job, why: str) -> None:
        self._observer.refused()
        self._courier.fail(job.parcel, Unavailable(why))

    def _cancel_soon(self, job: Job) -> None:
        self._call(self._cancel, job)

    @staticmethod
    def _cancel(job: Job) -> None:
        job.cancelled = True
        if job.task is not None:
            # vLLM aborts the request in its engine when the task that waits for it is cancelled, in prefill too.
            job.task.cancel()

    async def _answer(self, job: Job) -> None:
        async with contextlib.aclosing(self._outputs(job)) as answer:
            async for outputs, final, done in answer:
                job.finished = job.finished or final
                if done:  # nothing is left to join: what remains of the reply must not wait
                    self._courier.send(job.parcel, outputs, final)
                    continue
                # One response of a request at a time: vLLM joins the tokens that it makes until Triton has taken it.
                # When Triton is the slower one, there are fewer responses instead of a queue of them.
                receipt = self._loop.create_future()
                self._courier.send(job.parcel, outputs, final, receipt)
                sent = self._loop.time()
                await receipt
                await self._pace.wait(sent, len(self._jobs))

    def _taken(self, receipts: list[asyncio.Future[None]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(_settle, receipts)

    def _outputs(self, job: Job) -> AsyncGenerator[Response, None]:
        if isinstance(job.request, ChatRequest):
            return self._chat.generate(job.request.body, job.request_id)
        return text.generate(self._llm, job.request, job.request_id, self._loras)

    def _end(self, job: Job, task: asyncio.Task[None]) -> None:
        """Make sure that the client hears the end, whatever it was."""
        self._jobs.discard(job)
        self._observer.in_flight(len(self._jobs))
        if task.cancelled():
            self._courier.fail(job.parcel, Unavailable(self._closing) if self._closing else Cancelled("cancelled"))
        elif (error := task.exception()) is not None:
            self._courier.fail(job.parcel, self._translate(error))
        elif not job.finished:
            self._courier.fail(job.parcel, EngineFailed("the engine ended the reply without a last output"))

    def _notice_death(self, reader: asyncio.Task[None]) -> None:
        """Hear that vLLM's task that reads from the engine has ended; vLLM has failed all running requests by now."""
        if self._closing:
            return
        self._dead = True
        self._log("the engine's process died; requests fail until the model is loaded again")
        self._observer.died()

    def _translate(self, error: BaseException) -> BackendError:
        if isinstance(error, GracefulHTTPError | Unavailable):
            self._observer.refused()
        if isinstance(error, EngineDeadError) or (isinstance(error, EngineFailed) and self._llm.errored):
            return EngineFailed("the engine died while it worked on the request; the server's log tells why")
        if isinstance(error, BackendError):
            return error
        if isinstance(error, VLLMClientError):
            return InvalidRequest(str(error.args[0]) if error.args else str(error))
        if isinstance(error, GracefulHTTPError):
            return Unavailable(error.message)
        self._log(f"a request failed: {type(error).__name__}: {error}")
        return EngineFailed(f"the engine failed: {error or type(error).__name__}")

    async def _stop_requests(self, grace_s: float) -> None:
        self._closing = self._closing or _STOPPING
        running = {job.task for job in self._jobs if job.task is not None}
        if running:
            _, running = await asyncio.wait(running, timeout=grace_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _drain(self) -> None:
        self._closing = self._closing or _UNLOADING
        tasks = [job.task for job in self._jobs if job.task is not None]
        for task in tasks:
            task.cancel()
        # vLLM's task that reads from the engine would take its end for a crash and say so in the log.
        if (reader := self._llm.output_handler) is not None:
            reader.cancel()
            tasks.append(reader)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stop_threads(self) -> None:
        self._courier.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _settle(receipts: list[asyncio.Future[None]]) -> None:
    for receipt in receipts:
        if not receipt.done():  # its request was cancelled
            receipt.set_result(None)


def _reason(error: BaseException) -> str:
    """What vLLM's exception says, without pydantic's wrapping."""
    if isinstance(error, ValidationError):
        return "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
    return f"{error}" or type(error).__name__
