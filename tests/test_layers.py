"""The layers hold: imports point downwards, relative and lazy ones too, and no file is part of a cycle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "phosphene"

LAYERS = (  # from the ground up; a name is a file at the top or a folder. The same table stands in CONTRIBUTING.md
    {"errors", "limits", "__version__"},
    {"storage"},
    {"core", "settings", "plugins"},
    {"commands", "runtime"},
    {"costs", "drawing", "losses", "models"},
    {"data", "spaces"},
    {"teachers"},
    {"reporting", "synthesis", "training"},
    {"evaluation", "proxies"},
    {"searches"},
    {"compression", "studies"},
    {"recipes"},
    {"demo"},
    {"__init__", "cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def name_of(path: Path) -> str:
    """``spaces/darts.py`` -> ``spaces.darts``; ``spaces/__init__.py`` -> ``spaces``."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def type_checking_blocks(tree: ast.AST) -> set[ast.AST]:
    """Nodes that only a type checker sees: they import nothing."""
    guards = (n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    return {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}


def resolve(base: list[str], names: list[str]) -> set[str]:
    """The modules behind ``from base import names``: submodules where there are such files, else base itself."""
    found = set()
    for name in names:
        full = ".".join([*base, name])
        found.add(full if full in FILES else ".".join(base) or "__init__")
    return found


def imports(module: str, path: Path) -> set[str]:
    """Every module of ours that this file imports, wherever in the file."""
    tree = ast.parse(path.read_text())
    hidden = type_checking_blocks(tree)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [] if module == "__init__" else package
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            ours = [a.name for a in node.names if a.name.split(".")[0] == "phosphene"]
            found |= {name.removeprefix("phosphene").removeprefix(".") or "__init__" for name in ours}
        elif isinstance(node, ast.ImportFrom):
            names = [a.name for a in node.names]
            if node.level:
                base = package[: len(package) - node.level + 1]
                found |= resolve(base + (node.module or "").split(".") if node.module else base, names)
            elif (node.module or "").split(".")[0] == "phosphene":
                found |= resolve((node.module or "").split(".")[1:], names)
    if module != "commands":  # whose names are looked up when a command is called
        found |= {name for name in table_strings(tree) if name in FILES}
    return found - {module}


def table_strings(tree: ast.AST) -> set[str]:
    """Lazy tables name functions as ``"phosphene.searches.darts:search"``: those are imports too."""
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    named = (t for t in texts if t.startswith("phosphene.") and ":" in t and " " not in t)
    return {t.split(":")[0].removeprefix("phosphene.") for t in named}


GRAPH = {module: imports(module, path) for module, path in FILES.items()}


def top(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", FILES)
def test_every_module_has_a_layer(module):
    assert top(module) in LEVEL, f"{module} is in no layer; name the thing, not the drawer, and put it into one"


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downwards(module):
    for other in GRAPH[module]:
        mine, theirs = top(module), top(other)
        if mine != theirs:
            message = f"{module} (layer {LEVEL[mine]}) imports {other} (layer {LEVEL[theirs]})"
            assert LEVEL[theirs] < LEVEL[mine], message


def test_the_table_is_the_one_in_contributing():
    page = (ROOT.parents[1] / "CONTRIBUTING.md").read_text()
    printed = re.search(r"From the top:\n\n((?: {4}.+\n)+)", page)[1]
    assert [set(line.split(", ")) for line in printed.replace("    ", "").splitlines()] == list(reversed(LAYERS))


def test_no_cycles():
    """Depth first; a package's __init__ naming its own files is a table, not an import of theirs."""
    state: dict[str, str] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if state.get(module) == "done":
            return
        assert state.get(module) != "open", " -> ".join((*trail, module))
        state[module] = "open"
        for other in sorted(GRAPH[module]):
            if other in GRAPH and not other.startswith(module + "."):
                visit(other, (*trail, module))
        state[module] = "done"

    for module in GRAPH:
        visit(module, ())


def test_the_core_imports_only_the_errors_and_how_files_are_stored():
    assert GRAPH["core"] == {"errors", "storage.checksums", "storage.typed"} and GRAPH["errors"] == set()
    assert GRAPH["settings"] == {"errors", "limits"} and GRAPH["limits"] == set()


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "misc"])
def test_no_drawers(name):
    assert not [module for module in FILES if name in module.split(".")]


def test_the_test_sees_lazy_and_relative_imports(tmp_path):
    file = tmp_path / "m.py"
    lines = ["def f():", "    from ..spaces import moves", "    import phosphene.costs", "X = 'phosphene.core:Batch'"]
    file.write_text("\n".join(lines) + "\n")
    assert imports("search.m", file) & {"spaces", "spaces.moves"} and {"costs", "core"} <= imports("search.m", file)
