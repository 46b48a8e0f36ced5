"""How often a reply that streams sends a response.

The tokens of a fast engine cost less than the responses that carry them: a response takes `RESPONSE_CPU_S` of processor
time, from vLLM's chunk through Triton's two processes to a client on the same machine. Where tokens come so fast that
one response for each would take more than `RESPONSES_SHARE` of the processors, a reply waits a little after each
response, and tokens that come meanwhile ride in the next. The first response waits for nothing, and no reply waits when
one of them has just ended. A model that needs 10 ms or more for a step is hardly ever waited for on a big machine.
"""

from __future__ import annotations

import asyncio

#: Processor time of one response in seconds, measured on a 2-core EPYC: vLLM's chunk 0.1 to 0.2 ms, the sending process
#: 0.15, tritonserver 0.15 to 0.2, the client 0.2.
RESPONSE_CPU_S = 0.0006
#: The part of the processors that responses may take: a twentieth is what chat may cost, and prompts take some of it.
RESPONSES_SHARE = 0.04
#: The longest wait: nobody sees or hears it.
LONGEST_S = 0.025


class Pace:
    """Spaces the responses of all replies. Used in the engine's event loop only.

    Args:
        cores: Processors that Triton and the engine share.
    """

    def __init__(self, cores: int):
        self._per_reply_s = RESPONSE_CPU_S / (RESPONSES_SHARE * cores)
        self._waiting: set[asyncio.Future[None]] = set()

    def gap_s(self, replies: int) -> float:
        """The time between two responses of one reply while so many stream."""
        return min(LONGEST_S, replies * self._per_reply_s)

    async def wait(self, sent: float, replies: int) -> None:
        """Wait until the next response may be made.

        Args:
            sent: When the one before was sent, in the event loop's time.
            replies: How many stream.
        """
        loop = asyncio.get_running_loop()
        left = sent + self.gap_s(replies) - loop.time()
        if left <= 0:
            return
        waiter = loop.create_future()
        self._waiting.add(waiter)
        timer = loop.call_later(left, _settle, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiting.discard(waiter)

    def hurry(self) -> None:
        """Let all go on: a reply has ended, and this does not know which."""
        for waiter in self._waiting:
            _settle(waiter)


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
