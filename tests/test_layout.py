"""The layout of the code is the one that `layout` draws."""

import ast
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from layout import FLOORS, LATE, LIBRARIES

SOURCE = Path(__file__).parents[1] / "src" / "fera"
MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path):
    """Dotted name of a module below fera."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    return module.split(".")[0]


def imports(path):
    """What a file imports anywhere in it: (module of fera or None, library or None, whether inside a function)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # `from fera.models import layouts` imports a module, not the face of its room.
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("fera.") in NAMES else node.module for name in full]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            yield (rest, None, id(node) in late) if first == "fera" else (None, first, id(node) in late)


NAMES = {name_of(path) for path in MODULES} - {""}
IMPORTS = {path: list(imports(path)) for path in MODULES}


def test_every_room_has_a_floor():
    assert {room_of(name_of(path)) for path in MODULES} == set(FLOORS)


def test_the_house_itself_holds_no_more_than_six_modules():
    assert len(list(SOURCE.glob("*.py"))) <= 6


@pytest.mark.parametrize("room", FLOORS)
def test_imports_go_down(room):
    upward = [
        f"{name_of(path)} imports {target or 'fera'}"
        for path in MODULES
        for target, _, _ in IMPORTS[path]
        if target is not None
        and room_of(name_of(path)) == room
        and room_of(target) != room
        # The face of the house hands on names from all floors, when they are asked for.
        and room != ""
        and FLOORS[room_of(target)] >= FLOORS[room]
    ]
    assert not upward


@pytest.mark.parametrize("room", FLOORS)
def test_libraries_are_those_of_the_floor(room):
    allowed = set(sys.stdlib_module_names).union(*(some for floor, some in LIBRARIES.items() if floor <= FLOORS[room]))
    foreign = {
        (name_of(path), library)
        for path in MODULES
        for _, library, is_late in IMPORTS[path]
        if library is not None
        and room_of(name_of(path)) == room
        and library not in allowed
        and not (is_late and library in LATE.get(room, ()))
    }
    assert not foreign


def test_modules_import_each_other_in_no_circle():
    """Also within a room, and through imports inside functions or for types alone."""
    graph = defaultdict(set)
    for path in MODULES:
        for target, _, _ in IMPORTS[path]:
            if target and target in NAMES and target != name_of(path):
                graph[name_of(path)].add(target)
    done, open_ = set(), []

    def visit(module):
        if module in open_:
            pytest.fail(" -> ".join([*open_[open_.index(module) :], module]))
        if module not in done:
            open_.append(module)
            for target in sorted(graph[module]):
                visit(target)
            open_.pop()
            done.add(module)

    for module in sorted(NAMES):
        visit(module)


def test_no_room_holds_more_than_a_fifth_of_the_lines():
    lines = defaultdict(int)
    for path in MODULES:
        lines[room_of(name_of(path))] += len(path.read_text(encoding="utf-8").splitlines())
    share = {room: count / sum(lines.values()) for room, count in lines.items()}
    assert max(share.values()) <= 0.20, share
