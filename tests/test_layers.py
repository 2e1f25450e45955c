"""The layers hold: imports point downwards, relative and lazy ones too, and no file is part of a cycle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "phosphene"

LAYERS = (  # from the ground up; a name covers the module or the package of that name
    {"core", "errors", "__version__"},
    {"files", "extensions"},
    {"unreal"},
    {"hardware", "settings", "checkpoint", "identity", "progress", "tables"},
    {"run", "parallel"},
    {"models", "objectives", "augment", "averaged", "weights", "prices", "layout", "card", "stored", "pixels"},
    {"journal", "drawn", "formats", "sheets"},
    {"costs", "spaces", "dataset", "distributions", "curves", "against", "illustrations", "scores", "walks"},
    {"sources", "latency"},
    {"teacher", "starting", "cells"},
    {"importing", "exporting", "labelling", "subset", "joined", "gallery", "architecture"},
    {"comparison", "synthesis", "bilevel", "scoring", "proxies", "published"},
    {"trainee"},
    {"search", "train"},
    {"evaluate", "agreement"},
    {"studies", "compress"},
    {"report"},
    {"pipeline"},
    {"results"},
    {"stages"},
    {"demo", "recipe"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITHIN = {("core", "errors")}  # inside one layer
SHARED = {  # files which the others of their package may import; beside them a name may be split: darts, darts_supernet
    "spaces": {"choice", "moves", "operations", "skeleton", "genotype", "depthwise"}
    | {"blocks", "chain", "fixed", "inputs", "strip"},
    "models": {"cifar_resnet"},
    "search": {"evolution", "found", "giving_up", "halves", "online", "paths", "proxyless_costs", "robust", "schedule"}
    | {"scored", "setups", "sizes", "supernet"},
    "proxies": {"passes", "batch"},
    "studies": {"datasets", "figures", "needs", "ranks", "probing", "candidates", "published", "scorers", "truth"},
    "compress": {"quantizer", "quantized", "layer_inputs", "equalize"},
    "unreal": {"counter", "orbit", "orbit_numba", "render", "category", "instances"},
}
ONE_THING = {"synthesis"}  # one algorithm in several files: any direction, but no cycle


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
    found |= {name for name in table_strings(tree) if name in FILES}
    return found - {module}


def table_strings(tree: ast.AST) -> set[str]:
    """Lazy tables name functions as ``"phosphene.search.darts:search"``: those are imports too."""
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
        if mine == theirs:
            file, target = module.split(".")[-1], other.split(".")[-1]
            is_parent = mine in (module, other)
            same_name = file.split("_")[0] == target.split("_")[0]
            fine = mine in ONE_THING or is_parent or same_name or target in SHARED.get(mine, set())
            assert fine, f"{module} imports {other}, inside one layer"
        else:
            within = (mine, theirs) in WITHIN and LEVEL[mine] == LEVEL[theirs]
            down = LEVEL[theirs] < LEVEL[mine]
            assert down or within, f"{module} (layer {LEVEL[mine]}) imports {other} (layer {LEVEL[theirs]})"


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


def test_the_core_imports_only_the_errors():
    assert GRAPH["core"] == {"errors"} and GRAPH["errors"] == set()


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "misc"])
def test_no_drawers(name):
    assert not [module for module in FILES if name in module.split(".")]


def test_the_test_sees_lazy_and_relative_imports(tmp_path):
    file = tmp_path / "m.py"
    lines = ["def f():", "    from ..spaces import moves", "    import phosphene.costs", "X = 'phosphene.core:Batch'"]
    file.write_text("\n".join(lines) + "\n")
    assert imports("search.m", file) & {"spaces", "spaces.moves"} and {"costs", "core"} <= imports("search.m", file)
