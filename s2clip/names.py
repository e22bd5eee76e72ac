"""Names as people write them: "vit-b-16" and "ViT-B/16" are ViT-B-16; others are answered with the nearest."""

import difflib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from s2clip.errors import reject

NO_ALIASES: Mapping[str, str] = MappingProxyType({})


def match_name(argument: str, name: object, valid: Iterable[str], aliases: Mapping[str, str] = NO_ALIASES) -> str:
    """The valid name that is meant, whatever its capitals, blanks, hyphens and slashes.

    Raises ValueError listing the valid names, and which of them may have been meant.
    """
    valid = list(valid)
    if name in valid:
        return str(name)
    known = {_key(one): one for one in valid} | {_key(alias): one for alias, one in aliases.items()}
    if isinstance(name, str) and _key(name) in known:
        return known[_key(name)]
    reject(argument, f"one of {', '.join(valid)}", repr(name) + meant(name, valid))


def meant(name: object, valid: Iterable[str]) -> str:
    """ "; did you mean 'sclip'?" of the name that is nearest, "" where none is near."""
    known = {one.casefold(): one for one in valid}
    near = difflib.get_close_matches(str(name).casefold(), known, n=1, cutoff=0.6)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def _key(name: str) -> str:
    return re.sub(r"[\s/_.-]", "", name.casefold())
