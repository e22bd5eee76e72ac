"""What stands before every request: the token, the queue, the size and the pace of the upload; and counts them all."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from s2clip.serving.limits import Limits, Refused
from s2clip.serving.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
OPEN = ("/health",)
"""What needs no token: load balancers have none."""
PATIENCE = 2.0
"""Seconds that a refused upload is read on for."""


class Gate:
    """ASGI middleware. path: what is limited and counted; token: None for no need of one."""

    def __init__(self, app: Callable, *, path: str, limits: Limits, token: str | None = None) -> None:
        self.app, self.path, self.limits, self.token = app, path, limits, token
        self.metrics = Metrics()
        self.inside = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif not self._known(scope):
            refused = Refused(401, "expected the header 'Authorization: Bearer TOKEN' with this service's token")
            await _refuse(send, refused, {"www-authenticate": "Bearer"})
        elif scope["path"] == "/metrics" and scope["method"] == "GET":
            await _respond(send, 200, generate_latest(self.metrics.registry), {"content-type": CONTENT_TYPE_LATEST})
        elif scope["path"] == self.path:
            await self._counted(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _known(self, scope: Message) -> bool:
        if self.token is None or scope["path"] in OPEN:
            return True
        sent = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(sent, b"Bearer " + self.token.encode())

    async def _counted(self, scope: Message, receive: Receive, send: Send) -> None:
        start, status, said = time.perf_counter(), 499, {}  # 499: the asker left first

        async def noted(message: Message) -> None:
            nonlocal status, said
            if message["type"] == "http.response.start":
                status = message["status"]
                said = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            await send(message)

        try:
            await self._bounded(scope, receive, noted)
        finally:
            self.metrics.answered(status, time.perf_counter() - start, said)

    async def _bounded(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            if self.inside >= self.limits.max_queue:
                raise Refused(503, f"{self.limits.max_queue} requests wait already; come back in a second")
            self._count(1)
            try:
                await self._admitted(scope, receive, send)
            finally:
                self._count(-1)
        except Refused as refused:
            if refused.status != 408:
                await self._discard(scope, receive)
            headers = {"connection": "close"} | ({"retry-after": "1"} if refused.status == 503 else {})
            await _refuse(send, refused, headers)

    def _count(self, more: int) -> None:
        self.inside += more
        self.metrics.queue.set(self.inside)

    async def _admitted(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await self._whole_body(scope, receive)
        if body is None:
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        await self.app(scope, replay, send)

    async def _discard(self, scope: Message, receive: Receive) -> None:
        """Read on for a while and keep nothing: who is still sending when a connection ends never sees the answer."""
        if b"expect" in dict(scope["headers"]):  # waits for our word before it sends
            return
        size, message = 0, await self._soon(receive, PATIENCE)
        end = time.monotonic() + PATIENCE
        while message.get("more_body") and size < 4 * self.limits.max_bytes and time.monotonic() < end:
            size += len(message.get("body", b""))
            message = await self._soon(receive, PATIENCE)

    @staticmethod
    async def _soon(receive: Receive, seconds: float) -> Message:
        try:
            return await asyncio.wait_for(receive(), seconds)
        except TimeoutError:
            return {}

    async def _whole_body(self, scope: Message, receive: Receive) -> bytes | None:
        """The body, within its bounds; None where the asker left."""
        most, seconds = self.limits.max_bytes, self.limits.max_seconds
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            raise Refused(413, f"body: expected at most {most} bytes, received {int(declared)}")
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise Refused(413, f"body: expected at most {most} bytes, received more")
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refused(408, f"body: expected within {seconds:g} s, received {len(body)} bytes of it") from None


async def _refuse(send: Send, refused: Refused, headers: dict[str, str]) -> None:
    content = json.dumps({"detail": str(refused)}).encode()
    await _respond(send, refused.status, content, {"content-type": "application/json", **headers})


async def _respond(send: Send, status: int, content: bytes, headers: dict[str, str]) -> None:
    lines = {**headers, "content-length": str(len(content))}
    encoded = [(name.encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
