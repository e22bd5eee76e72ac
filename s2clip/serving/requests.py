"""An HTTP request → a `Query`: the picture as the body, or a form with the picture as one of its parts."""

from typing import Annotated, NamedTuple

from fastapi import HTTPException, Query, Request
from starlette.datastructures import FormData, UploadFile

from s2clip.serving import service
from s2clip.serving.answers import MEDIA, chosen_form
from s2clip.serving.limits import Refused

FIELDS = ("picture", "classes", "method", "refine")


class Asked(NamedTuple):
    """What goes to the process that computes."""

    query: service.Query
    form: str


async def read_request(
    request: Request,
    classes: Annotated[str, Query(description='"sky, house; hut, tree": commas part classes, semicolons words.')] = "",
    method: Annotated[str, Query(description="One that is served; default: the first.")] = "",
    refine: Annotated[str, Query(description="What sharpens the map; default: the first that is served.")] = "",
) -> Asked:
    """Raises HTTPException: 406 for an Accept header, 422 for a request that asks nothing that can be answered."""
    try:
        form = chosen_form(request.headers.get("accept", ""))
        said = {"classes": classes, "method": method, "refine": refine}
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            async with request.form(max_files=1, max_fields=len(FIELDS)) as parts:
                picture, said = await _from_form(parts, said)
        else:
            picture = await request.body()
        if not picture:
            raise Refused(422, "picture: expected its bytes as the body or as the part 'picture', received none")
        return Asked(service.Query(picture, said["classes"], said["method"] or None, said["refine"] or None), form)
    except Refused as refused:
        raise HTTPException(refused.status, str(refused)) from None


async def _from_form(parts: FormData, said: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    unknown = [name for name in parts if name not in FIELDS]
    if unknown:
        raise Refused(422, f"form: expected {', '.join(FIELDS)}, received {unknown[0][:50]!r}")
    picture = parts.get("picture")
    if isinstance(picture, str):
        raise Refused(422, "picture: expected a file, received text; curl takes -F picture=@photo.jpg")
    for name, value in parts.multi_items():
        if isinstance(value, UploadFile) and name != "picture":
            raise Refused(422, f"{name}: expected text, received a file")
    given = {name: str(parts[name]) for name in said if name in parts}
    return (await picture.read() if picture is not None else b""), said | given


BODY = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["picture", "classes"],
                "properties": {name: {"type": "string"} for name in FIELDS}
                | {"picture": {"type": "string", "format": "binary"}},
            }
        },
    },
}
"""What OpenAPI says of the body, which FastAPI cannot know."""
ANSWERS = {
    "200": {"description": "by the Accept header", "content": {media: {} for media in MEDIA.values()}},
    "401": {"description": "no token, or another one"},
    "406": {"description": "an Accept header that no answer meets"},
    "408": {"description": "the upload took too long"},
    "413": {"description": "more bytes than are taken"},
    "422": {"description": "no picture, no classes, or none that can be used; `detail` says why"},
    "503": {"description": "too many requests wait; `Retry-After` says when to come back"},
}
