"""Which form an answer takes, by the Accept header, and its bytes.

application/json                    shares by class, sizes, times (also for */*)
application/json; content=coco      COCO: a run-length encoded mask per class
image/png                           the label map, value = class id
image/png; content=overlay          the picture tinted by class, with names
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

from s2clip.results.result import Result
from s2clip.serving.limits import Refused
from s2clip.values import ignored_id

MEDIA = {
    "json": "application/json",
    "coco": "application/json; content=coco",
    "png": "image/png",
    "overlay": "image/png; content=overlay",
}
"""Form → its media type, in the order in which wildcards take them."""


def chosen_form(accept: str) -> str:
    """The form that an Accept header likes best; of equals the one named first (RFC 9110, 12.5.1).

    Raises `Refused` (406) where it takes none.
    """
    best, form = 0.0, None
    for text in accept.split(",") if accept.strip() else ["*/*"]:
        wanted = _parsed(text)
        if wanted.quality > best and (found := _form_of(wanted)):
            best, form = wanted.quality, found
    if form is None:
        raise Refused(406, f"Accept: expected one of {', '.join(MEDIA.values())}, received {accept[:100]}")
    return form


class _Wanted(NamedTuple):
    media: str
    content: str | None
    quality: float


def _parsed(text: str) -> _Wanted:
    media, *parameters = (part.strip() for part in text.split(";"))
    values = dict(part.lower().replace(" ", "").partition("=")[::2] for part in parameters)
    try:
        quality = float(values.get("q", 1))
    except ValueError:
        quality = 0.0
    return _Wanted(media.lower(), values.get("content"), quality)


def _form_of(wanted: _Wanted) -> str | None:
    for form, described in MEDIA.items():
        media, content, _ = _parsed(described)
        fits = wanted.media in (media, "*/*") or wanted.media == f"{media.split('/')[0]}/*"
        if fits and content == wanted.content:
            return form
    return None


def body(form: str, result: Result, facts: Mapping[str, object]) -> bytes:
    """The answer in a form; `facts` are what its JSON says beside the result."""
    return _summary(result, facts) if form == "json" else result.to_bytes(form)


def _summary(result: Result, facts: Mapping[str, object]) -> bytes:
    height, width = result.segmentation.shape
    rows = [
        {"id": index, "name": name, "share": round(share, 6)}
        for index, (name, share) in enumerate(result.shares.items())
    ]
    said = {"width": width, "height": height, "classes": rows, "ignore": ignored_id(len(rows)), **facts}
    return json.dumps(said, ensure_ascii=False, allow_nan=False).encode()
