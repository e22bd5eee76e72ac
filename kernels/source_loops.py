"""Loops of a kernel's source: which `for` a line stands in, and how often it runs for given arguments."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from s2clip.kernels.machine_code import Line

FOLDER = Path(__file__).parent


class Place(NamedTuple):
    """A `for`, `while` or `if` of the source, by its head, and the calls through which it was inlined."""

    file: str
    line: int
    kind: str  # "for", "while" or "if"
    head: str  # "range(0, tokens, BLOCK_N)"; the condition of the others
    calls: tuple[Line, ...] = ()


@functools.cache
def _places(file: str) -> dict[int, tuple[Place, ...]]:
    """Line → what it stands in, the outermost first. Only files of this package have an entry."""
    found: dict[int, tuple[Place, ...]] = {}
    path = FOLDER / file
    if not path.exists():
        return found

    def walk(nodes: Sequence[ast.stmt], around: tuple[Place, ...]) -> None:
        for node in nodes:
            inside = around
            heads: list[ast.expr] = []
            if isinstance(node, ast.For) and "static_range" not in ast.unparse(node.iter):
                heads = [node.iter]
                inside = (*around, Place(file, node.lineno, "for", ast.unparse(node.iter)))
            elif isinstance(node, ast.While | ast.If):
                kind = "while" if isinstance(node, ast.While) else "if"
                heads = [node.test]
                inside = (*around, Place(file, node.lineno, kind, ast.unparse(node.test)))
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                found[line] = around
            if heads and not isinstance(node, ast.If):  # the head of a loop runs with its body
                for line in range(heads[0].lineno, (heads[0].end_lineno or 0) + 1):
                    found[line] = inside
            walk(getattr(node, "body", []), inside if not isinstance(node, ast.FunctionDef) else ())
            walk(getattr(node, "orelse", []), around)

    walk(ast.parse(path.read_text(encoding="utf-8")).body, ())
    return found


def places(lines: Sequence[Line]) -> tuple[Place, ...]:
    """What an instruction stands in, through all functions it was inlined from, the outermost first."""
    around: list[Place] = []
    for depth, (file, line) in enumerate(reversed(lines)):
        calls = tuple(lines[len(lines) - depth :])
        around += (place._replace(calls=calls) for place in _places(file).get(line, ()))
    return tuple(around)


@functools.cache
def _text(file: str) -> list[str]:
    path = FOLDER / file
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@functools.cache
def stands_in(lines: tuple[Line, ...], fragments: tuple[tuple[str, str], ...]) -> bool:
    """Whether a source line of an instruction, or of a call that it was inlined from, holds one of the fragments."""
    texts = [(file, _text(file)[line - 1].strip() + "\n") for file, line in lines if 0 < line <= len(_text(file))]
    return any(file == name and fragment in text for file, text in texts for name, fragment in fragments)


def trips(head: str, arguments: Mapping[str, Any]) -> int:
    """Iterations of `for _ in <head>`, a range over arguments of the launch."""
    names = {"range": range, "len": len, "min": min, "max": max}
    return len(eval(head, {"__builtins__": {}}, {**arguments, **names}))
