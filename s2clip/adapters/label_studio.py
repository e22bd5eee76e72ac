"""A machine-learning back end of Label Studio: it asks for predictions, brush masks come back.

    python -m s2clip.adapters.label_studio --model tiny --files photos --port 9090

The labels of the project's <BrushLabels> are the classes, as they stand in its labelling set-up: nothing is trained. In
Label Studio: Settings, Model, the address of this server. Answered are GET /health, POST /setup, POST /predict and POST
/webhook, the calls of Label Studio's ML back ends (labelstud.io/guide/ml), with its own JSON.
"""

import argparse
import base64
import binascii
import json
import logging
import os
import sys
import threading
import urllib.parse
import xml.etree.ElementTree as xml
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from s2clip.errors import S2ClipError
from s2clip.results.formats.label_studio import prediction
from s2clip.version import __version__

if TYPE_CHECKING:
    from s2clip.segmenter import Segmenter

logger = logging.getLogger(__name__)

VERSION = f"s2clip {__version__}"
MAX_BYTES = 256 << 20
LOCAL = "/data/local-files/"


class Tags(NamedTuple):
    """What a labelling set-up says: names of its brush and its image, the task's field, the labels."""

    brush: str
    image: str
    field: str
    labels: tuple[str, ...]


class LabelStudioBackend:
    """Answers the calls of Label Studio.

    segmenter: any; classes that were set are not used. files: where pictures of tasks lie, None: nowhere. Tasks whose
    picture is an address on the network are answered with an error, tasks with a `data:` address are read from it.
    """

    def __init__(self, segmenter: "Segmenter", files: str | os.PathLike | None = None, per: str = "class") -> None:
        self.segmenter, self.per = segmenter, per
        self.files = Path(files).resolve() if files is not None else None
        self._lock = threading.Lock()  # one picture at a time: tasks come from many annotators

    def handle(self, method: str, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """(HTTP status, JSON) for one call; a user's mistake is 400 and one line, an unknown call 404."""
        call = (method, path.split("?")[0].rstrip("/") or "/")
        if call in (("GET", "/health"), ("GET", "/")):
            return 200, {"status": "UP", "model_class": "s2clip", "model_version": VERSION}
        try:
            if call == ("POST", "/setup"):
                tags_of(str(body.get("schema", "")))
                return 200, {"model_version": VERSION}
            if call == ("POST", "/predict"):
                return 200, {"results": self.predict(body.get("tasks") or [], str(body.get("label_config", "")))}
        except (S2ClipError, ValueError) as error:
            return 400, {"error": " ".join(str(error).split())}
        if call == ("POST", "/webhook"):
            return 200, {"status": "nothing is trained"}
        return 404, {"error": f"{method} {path}: expected GET /health, POST /setup, /predict or /webhook"}

    def predict(self, tasks: Sequence[Mapping[str, Any]], label_config: str) -> list[dict[str, Any]]:
        """A prediction for each task. Raises ValueError for a set-up without brush labels or a task without picture."""
        tags = tags_of(label_config)
        answers = []
        for task in tasks:
            data = task.get("data") or {}
            if tags.field not in data:
                raise ValueError(f"task {task.get('id', '')}: its data have no {tags.field!r}, which the set-up names")
            with self._lock:
                encoded = self.segmenter.encode(self.picture(str(data[tags.field])))
                result = self.segmenter.segment(encoded, list(tags.labels))
            answers.append(prediction(result, per=self.per, brush=tags.brush, image=tags.image))
        return answers

    def picture(self, address: str) -> Path | bytes:
        """What a task calls its picture: a path below `files`, Label Studio's address of one, or `data:`.

        Raises ValueError for anything else, and for what lies outside of `files`.
        """
        if address.startswith("data:"):
            try:
                return base64.b64decode(address.partition(",")[2], validate=True)
            except binascii.Error:
                raise ValueError("image: a data: address that is not base64") from None
        if "://" in address:
            raise ValueError(f"image: addresses are not fetched, received {address}; serve the files by --files")
        if self.files is None:
            raise ValueError(f"image: no folder of pictures was given (--files), received {address}")
        if address.startswith(LOCAL):
            address = urllib.parse.parse_qs(urllib.parse.urlsplit(address).query).get("d", [""])[0]
        path = (self.files / urllib.parse.unquote(address.lstrip("/"))).resolve()
        if not path.is_relative_to(self.files):
            raise ValueError(f"image: {address} lies outside of the folder of pictures")
        return path


def tags_of(label_config: str) -> Tags:
    """The brush labels of a labelling set-up. Raises ValueError where it has none or is no XML."""
    try:
        root = xml.fromstring(label_config)
    except xml.ParseError as error:
        raise ValueError(f"label_config: expected Label Studio's XML: {error}") from None
    for tag in root.iter("BrushLabels"):
        names = [one.get("value", "") for one in tag.iter("Label")]
        image = next((one for one in root.iter("Image") if one.get("name") == tag.get("toName")), None)
        if names and all(names) and image is not None and image.get("value", "").startswith("$"):
            return Tags(tag.get("name", ""), image.get("name", ""), image.get("value", "")[1:], tuple(names))
    raise ValueError('label_config: expected <BrushLabels toName="image"> with labels, and <Image name="image">')


def serve(backend: LabelStudioBackend, host: str, port: int) -> ThreadingHTTPServer:
    """A server that answers by `backend`; `serve_forever()` starts it. Raises OSError where the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*backend.handle("GET", self.path, {}))

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length") or 0)
                if not 0 <= length <= MAX_BYTES:
                    raise ValueError
                body = json.loads(self.rfile.read(length) or b"{}")
                if not isinstance(body, dict):
                    raise ValueError
            except ValueError:
                self._answer(400, {"error": "expected a JSON object"})
                return
            self._answer(*backend.handle("POST", self.path, body))

        def _answer(self, status: int, document: dict[str, Any]) -> None:
            content = json.dumps(document, allow_nan=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, form: str, *values: Any) -> None:
            logger.info(form, *values)

    return ThreadingHTTPServer((host, port), Handler)


def main() -> None:
    """Serve until interrupted."""
    from s2clip.segmenter import Segmenter

    parser = argparse.ArgumentParser(description="A machine-learning back end of Label Studio")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--method", help="default: s2clip, or what goes with the model")
    parser.add_argument("--refine", default="none")
    parser.add_argument("--device")
    parser.add_argument("--files", help="folder of the pictures that tasks name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    given = parser.parse_args()
    try:
        segmenter = Segmenter.from_pretrained(
            given.model, method=given.method, refine=given.refine, device=given.device
        )
        server = serve(LabelStudioBackend(segmenter, given.files), given.host, given.port)
    except (S2ClipError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"http://{given.host}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
