"""What must never come back: a setting written twice, and dictionaries of settings that no type checker sees."""

import ast
import collections
import re
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "phosphene"
FILES = sorted(SRC.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
UNIVERSAL = ("seed", "device", "precision", "estimate", "jobs", "backend", "checkpoint")
RUN = "folder of the run"  # what `out` is, where it is not a file that a command draws or writes
DICTIONARIES = ("settings", "given", "options", "told", "asked")
OTHERS = {"precision": ["searches/latency.py"]}  # what is timed has a precision of its own, without auto


def where(path, line):
    return f"{path.relative_to(SRC)}:{line}"


def written(annotation):
    """[help] of `Annotated[TYPE, …, "help"]`; nothing for another annotation, or one without a help."""
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Annotated")):
        return []
    notes = annotation.slice.elts[1:] if isinstance(annotation.slice, ast.Tuple) else []
    texts = [ast.unparse(note) for note in notes if isinstance(note, ast.Constant | ast.JoinedStr | ast.BinOp)]
    return texts[:1]


def definitions():
    """(name, help, place) of every setting that is written with its help: fields of classes, parameters."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                for one in (*node.args.args, *node.args.kwonlyargs):
                    for text in written(one.annotation) if one.annotation else []:
                        yield one.arg, text, where(path, one.lineno)
            if isinstance(node, ast.ClassDef):
                for one in node.body:
                    if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                        for text in written(one.annotation):
                            yield one.target.id, text, where(path, one.lineno)


@pytest.mark.parametrize("name", UNIVERSAL)
def test_what_every_command_has_is_written_once(name):
    every = [place for other, _, place in definitions() if other == name]
    places = [place for place in every if place.split(":")[0] not in OTHERS.get(name, [])]
    assert len(places) == 1, f"{name} is written in {', '.join(places)}; inherit the class that has it"


def test_the_folder_of_a_run_is_written_once():
    places = [place for name, text, place in definitions() if name == "out" and RUN in text]
    assert len(places) == 1, f"out is written in {', '.join(places)}; inherit settings.Output"


def test_no_setting_is_written_twice_with_one_help():
    places = collections.defaultdict(list)
    for name, text, place in definitions():
        places[name, text].append(place)
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice, "\n".join(f"{name} {text}: {', '.join(where)}" for (name, text), where in twice.items())


@pytest.mark.parametrize("pattern", [r"\blocals\(\)", r"\bgiven\["])
def test_no_settings_in_dictionaries(pattern):
    lines = [(path, n, line) for path in FILES for n, line in enumerate(path.read_text().splitlines(), 1)]
    offending = [where(path, n) for path, n, line in lines if re.search(pattern, line)]
    assert not offending, f"{pattern} in {', '.join(offending)}; take the settings' class"


def test_no_dictionary_of_settings_in_a_command_or_an_algorithm():
    """`dict[str, Any]` is for JSON; the mechanism itself (`settings.py`) has flat keywords for a moment."""
    offending = []
    for path, tree in TREES.items():
        if path.relative_to(SRC).parts[0] in ("settings.py", "runtime", "spaces", "plugins.py"):
            continue  # run.open takes JSON; a space's spec is JSON, as is what a TypedDict describes
        parameters = (node for node in ast.walk(tree) if isinstance(node, ast.arg))
        classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
        fields = (one for node in classes if "TypedDict" not in map(ast.unparse, node.bases) for one in node.body)
        for node in (*parameters, *(one for one in fields if isinstance(one, ast.AnnAssign))):
            name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
            if name in DICTIONARIES and node.annotation and "dict[str, Any]" in ast.unparse(node.annotation):
                offending.append(f"{name} in {where(path, node.lineno)}")
    assert not offending, f"{', '.join(offending)}: take the settings' class"
