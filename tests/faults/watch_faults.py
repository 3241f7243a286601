"""What may happen to a stream of watch events on its way to the operator.

Each fault is put on a proxy before the operator's streams begin, strikes so many times, and then lets all pass.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from faults.proxy import Call, InjectedResetError


@dataclass(kw_only=True)
class WatchFault:
    """Counts how often it strikes.

    Args:
        resource: whose streams; several with a comma between them.
        times: how many events or streams at most.
    """

    resource: str
    times: int = 1_000
    injected: int = 0

    def strikes(self, call: Call) -> bool:
        """Count one more, if it is not enough yet and the stream is meant."""
        if call.resource not in self.resource.split(",") or self.injected >= self.times:
            return False
        self.injected += 1
        return True

    async def __call__(self, call: Call, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass a stream's events on."""
        async for line in lines:
            async for event in self.pass_on(call, line):
                yield event

    async def pass_on(self, call: Call, line: bytes) -> AsyncIterator[bytes]:
        """Yield what becomes of one event."""
        yield line


@dataclass(kw_only=True)
class Duplicated(WatchFault):
    """Each event arrives twice, and after it the first that was seen of its object: long since outdated."""

    first: dict[str, bytes] = field(default_factory=dict)

    async def pass_on(self, call: Call, line: bytes) -> AsyncIterator[bytes]:
        yield line
        event = json.loads(line)
        if event["type"] != "BOOKMARK" and self.strikes(call):
            yield line
            yield self.first.setdefault(event["object"]["metadata"]["name"], line)


@dataclass(kw_only=True)
class Dropped(WatchFault):
    """Events do not arrive, a share of them."""

    share: float = 1.0
    seed: int = 20

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def pass_on(self, call: Call, line: bytes) -> AsyncIterator[bytes]:
        if self._random.random() >= self.share or not self.strikes(call):
            yield line


@dataclass(kw_only=True)
class Late(WatchFault):
    """Every event arrives seconds late, and the ones after it too: a cache that is behind."""

    seconds: float = 1.0

    async def pass_on(self, call: Call, line: bytes) -> AsyncIterator[bytes]:
        if self.strikes(call):
            await asyncio.sleep(self.seconds)
        yield line


@dataclass(kw_only=True)
class Frozen(WatchFault):
    """A stream stays open, and from its second event on nothing arrives any more."""

    async def __call__(self, call: Call, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        if not self.strikes(call):
            async for line in lines:
                yield line
            return
        yield await anext(lines)
        await asyncio.Event().wait()


@dataclass(kw_only=True)
class Cut(WatchFault):
    """A stream is reset in the middle of an event."""

    async def pass_on(self, call: Call, line: bytes) -> AsyncIterator[bytes]:
        if self.strikes(call):
            yield line[: len(line) // 2]
            raise InjectedResetError
        yield line


@dataclass(kw_only=True)
class Ended(WatchFault):
    """A stream ends cleanly in the middle of an event."""

    async def __call__(self, call: Call, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for line in lines:
            if self.strikes(call):
                yield line[: len(line) // 2]
                return
            yield line


@dataclass(kw_only=True)
class Failing(WatchFault):
    """A stream reports an error instead of an event, and ends."""

    code: int = 410
    reason: str = "Expired"

    async def __call__(self, call: Call, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for line in lines:
            if self.strikes(call):
                status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "injected fault"}
                error = {"type": "ERROR", "object": {**status, "code": self.code, "reason": self.reason}}
                yield json.dumps(error).encode() + b"\n"
                return
            yield line
