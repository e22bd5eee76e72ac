"""The service behind LitServe: a process that speaks HTTP, and one or more for every device that compute."""

import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty
from typing import Annotated, Any, NoReturn

import litserve
from fastapi import Depends
from litserve.loops.simple_loops import BatchedLoop
from starlette.responses import JSONResponse, Response

from s2clip.errors import S2ClipError, WeightsError
from s2clip.serving import requests
from s2clip.serving.answers import MEDIA, body
from s2clip.serving.gate import Gate
from s2clip.serving.limits import Limits, Refused
from s2clip.serving.metrics import CACHE, STAGES
from s2clip.serving.patience import patient

PATH = "/segment"


@dataclass(frozen=True)
class Plan:
    """What a server is started with. models: keywords of `Service.load`; batch: requests that are computed together."""

    models: Mapping[str, Any] = field(default_factory=dict)
    methods: Sequence[str] = ("s2clip",)
    refinements: Sequence[str] = ("none",)
    limits: Limits = field(default_factory=Limits)
    cache: int = 1 << 30
    batch: int = 8
    workers_per_device: int = 1
    token: str | None = None


class _Waiting(BatchedLoop):
    """Takes what waits, up to a batch, as soon as there is something: no request waits for another to come."""

    def get_batch_requests(self, lit_api: litserve.LitAPI, request_queue: Any, transport: Any) -> tuple:
        try:
            first = request_queue.get(timeout=1.0)
        except Empty:
            return [], []
        return super().get_batch_requests(lit_api, _Before(first, request_queue), transport)


class _Before:
    """A queue with one item put back at its head."""

    def __init__(self, first: Any, rest: Any) -> None:
        self.first, self.rest = [first], rest

    def get_nowait(self) -> Any:
        return self.first.pop() if self.first else self.rest.get_nowait()


class SegmentAPI(litserve.LitAPI):
    """What runs in the processes that compute."""

    def __init__(self, plan: Plan) -> None:
        loop = _Waiting() if plan.batch > 1 else "auto"
        super().__init__(max_batch_size=plan.batch, api_path=PATH, loop=loop)
        self.plan = plan

    def setup(self, device: str) -> None:
        from s2clip.serving.service import Service

        logging.getLogger("s2clip").setLevel(logging.ERROR)  # what askers should know is in their answers
        plan = self.plan
        settings = {**plan.models, "device": device, "limits": plan.limits, "cache": plan.cache}
        try:
            self.service = Service.load(plan.methods, plan.refinements, **settings)
        except (S2ClipError, ValueError) as error:  # a line says it all; LitServe would print where it happened
            print(f"Error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            logging.disable(logging.CRITICAL)
            raise
        self.number = os.environ["LITSERVE_WORKER_ID"]

    def decode_request(self, request: Annotated[requests.Asked, Depends(requests.read_request)]) -> requests.Asked:
        return request

    def batch(self, inputs: list) -> list:
        return inputs

    def unbatch(self, output: list) -> list:
        return output

    def predict(self, asked: requests.Asked | list[requests.Asked]) -> Any:
        many = asked if isinstance(asked, list) else [asked]
        answers = self.service.answer([one.query for one in many])
        paired = [(one.form, answer) for one, answer in zip(many, answers, strict=True)]
        return paired if isinstance(asked, list) else paired[0]

    def encode_response(self, output: tuple[str, Any]) -> Response:
        form, answer = output
        if isinstance(answer, Refused):
            return JSONResponse({"detail": str(answer)}, status_code=answer.status)
        facts = {
            "method": answer.method,
            "refine": answer.refine,
            "picture": {"sha256": answer.sha256, "known": answer.known},
            "unknown_words": list(answer.unknown_words),
            "timings_ms": {stage: round(value, 3) for stage, value in answer.stages.items()},
        }
        cache = self.service.cache
        state = f"worker={self.number}; bytes={cache.bytes}; pictures={len(cache)}; evicted={cache.evicted}"
        headers = {
            STAGES: ", ".join(f"{stage};dur={value:.3f}" for stage, value in answer.stages.items()),
            CACHE: f"{'hit' if answer.known else 'miss'}; {state}",
            "vary": "accept",
        }
        return Response(body(form, answer.result, facts), media_type=MEDIA[form], headers=headers)


def build(plan: Plan, *, accelerator: str = "auto", devices: int | str = "auto") -> litserve.LitServer:
    """The server, not yet started."""
    gate = Gate, {"path": PATH, "limits": plan.limits, "token": plan.token}
    server = litserve.LitServer(
        SegmentAPI(plan),
        accelerator=accelerator,
        devices=devices,
        workers_per_device=plan.workers_per_device,
        timeout=4 * plan.limits.max_seconds,
        middlewares=[],
        restart_workers=True,
    )
    server.app.title, server.app.version = "s2clip", importlib.metadata.version("s2clip")
    server.app.add_middleware(gate[0], **gate[1])  # the outermost
    for route in server.app.routes:
        if getattr(route, "path", "") == PATH:
            route.openapi_extra = {"requestBody": requests.BODY, "responses": requests.ANSWERS}
            route.summary = "Segment a picture by class names"
    return server


def run(server: litserve.LitServer, plan: Plan, *, host: str, port: int) -> None:
    """Serve until interrupted or terminated."""

    main = os.getpid()

    def stop(*_: Any) -> NoReturn:
        raise KeyboardInterrupt if os.getpid() == main else SystemExit(0)  # forks inherit this handler

    signal.signal(signal.SIGTERM, stop)
    patience = {"http": patient(plan.limits.max_seconds), "limit_concurrency": 4 * plan.limits.max_queue + 16}
    quiet = {"generate_client_file": False, "log_level": "warning", "server_header": False}
    try:
        server.run(host=host, port=port, num_api_servers=1, **quiet, **patience)
    except RuntimeError:
        for process in server.inference_workers:  # those that did start
            process.terminate()
        raise WeightsError("serve: the models could not be loaded") from None
