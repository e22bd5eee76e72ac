"""What tools and pages say of the tree is so."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_of_processors_names_tests_that_exist():
    tree = ast.parse((ROOT / "tools" / "everywhere.py").read_text())
    lists = {"NUMBERS": [], "SEAMS": []}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in lists:
            lists[target.id] += ast.literal_eval(node.value)
    assert lists["NUMBERS"]
    assert lists["SEAMS"]
    named = [f"test_{name}.py" for names in lists.values() for name in names]
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []
    assert len(set(named)) == len(named)
