"""Write docs/ops.md from the docstrings of `s2clip.ops`: `python tools/ops_reference.py` (`make docs`)."""

import inspect
import re
from pathlib import Path

from s2clip import ops

PAGE = Path(__file__).parents[1] / "docs" / "ops.md"
ARGUMENT = re.compile(r"^([a-z_]+(?:, [a-z_]+)*): (.*)")


def page() -> str:
    """The whole page as Markdown."""
    opening = inspect.getdoc(ops)
    parts = ["# Ops", "Written from the docstrings of `s2clip.ops` by `make docs`.", *markdown(opening)]
    for name in ops.__all__:
        member = getattr(ops, name)
        parts += [f"## {name}", f"```text\n{signature(name, member)}\n```", *markdown(inspect.getdoc(member))]
    return "\n\n".join(parts) + "\n"


def signature(name: str, member: object) -> str:
    """`name(…)`, an argument a line where one line would be too long; the fields of a named tuple."""
    fields = getattr(member, "_fields", None)
    if fields:
        return f"{name}({', '.join(fields)})"
    parameters = inspect.signature(member)
    text = re.sub(r"\btorch\.|collections\.abc\.", "", f"{name}{parameters}")
    if len(text) <= 100:
        return text
    inside, returned = re.fullmatch(r"\w+\((.*)\)( -> .*)?", text).groups()
    lines = re.split(r", (?=\w+: |\*)", inside)
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + f"){returned or ''}"


def markdown(docstring: str) -> list[str]:
    """Paragraphs as they are; lines "argument: meaning" as a list; what is indented as written, as text."""
    parts = []
    for paragraph in docstring.split("\n\n"):
        lines = paragraph.splitlines()
        if all(line.startswith("    ") for line in lines):
            parts.append("```text\n" + "\n".join(line[4:] for line in lines) + "\n```")
            continue
        entries: list[str] = []
        bullets = False
        for line in lines:
            if found := ARGUMENT.match(line):
                entries.append(f"* `{found[1]}`: {found[2]}")
                bullets = True
            elif (line.startswith("    ") and bullets) or (entries and not entries[-1].startswith("* ")):
                entries[-1] += " " + line.strip()
            else:
                entries.append(("\n" if bullets else "") + line.strip())
        parts.append("\n".join(entries))
    return [escape(part) for part in parts]


def escape(part: str) -> str:
    """Outside of code: `_`, `*` and `<` as themselves."""
    if part.startswith("```"):
        return part
    pieces = re.split(r"(`[^`]*`|\n\* )", part)
    return "".join(
        piece if piece.startswith(("`", "\n* ")) else re.sub(r"(?<!^)([*_<])", r"\\\1", piece) for piece in pieces
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
