"""docs/architecture.md is what the code is: its figure and table, and the files and functions that its walks name."""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass
from functools import cache

import networkx
import pytest
from draw_architecture import PAGE, build_graph, draw_parts, insert_parts, layer_imports, layer_of
from pages import ROOT


@dataclass(frozen=True)
class Step:
    """A line of a walk."""

    line: int
    depth: int
    file: str
    name: str  # of a function or class, or Class.method

    def __str__(self) -> str:
        return f"docs/architecture.md, line {self.line}: {self.file} {self.name}"


def read_walks() -> list[list[Step]]:
    """The walks of the page, each step by step."""
    walks, steps = list[list[Step]](), None
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), start=1):
        if line == "<!-- begin walk -->":
            steps = list[Step]()
        elif line == "<!-- end walk -->":
            assert steps is not None
            walks.append(steps)
            steps = None
        elif steps is not None:
            found = re.fullmatch(r"( *)- `([^`]+)` `([^`]+)`: \S.*", line)
            assert found, f"docs/architecture.md, line {number}: write a step as  - `file` `function`: what it does"
            steps.append(Step(number, len(found[1]) // 2, found[2], found[3]))
    return walks


@cache
def module_of(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


@cache
def names_defined(file: str) -> frozenset[str]:
    """Functions, classes and Class.method of a file."""
    names = set()
    for node in module_of(file).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(names)


@cache
def names_used(file: str) -> frozenset[str]:
    """What a file reads: names and attributes, not what it defines or imports."""
    nodes = list(ast.walk(module_of(file)))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return frozenset(attributes | {node.id for node in nodes if isinstance(node, ast.Name)})


def problem_of(step: Step, before: list[Step]) -> str:
    """What is wrong with a step of a walk; empty where nothing is."""
    if not (ROOT / step.file).is_file():
        return f"{step}: there is no such file"
    defined = names_defined(step.file)
    if step.name not in defined:
        near = difflib.get_close_matches(step.name, defined, 3) or sorted(defined)
        return f"{step}: the file has no such function or class; it has {', '.join(near)}, ..."
    if before and step.depth > before[-1].depth + 1:
        return f"{step}: it stands more than one step to the right of the line above"
    own = step.name.rpartition(".")[2]
    if before and not any(own in names_used(each.file) for each in before if (ROOT / each.file).is_file()):
        return f"{step}: none of the files named above uses {own}: say by whom it is called now"
    return ""


def test_figure_and_table_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert insert_parts(page, draw_parts()) == page, "run: .venv/bin/python tests/draw_architecture.py"


def test_arrows_of_the_figure_lead_wherever_imports_do() -> None:
    """What is left out follows from what is drawn: otherwise the figure would hide an import."""
    graph = build_graph()
    layers = ["bundle", "kernel.commands", "kernel.training", "kernel.runtime", "kernel.ensemble", "kernel.errors"]
    layers += sorted({name for name in graph.modules if name.count(".") == 1} - set(layers))
    arrows = layer_imports(graph, layers)
    for module in graph.modules - {"kernel"}:
        for imported in graph.find_modules_directly_imported_by(module) - {"kernel"}:
            assert networkx.has_path(arrows, layer_of(module, layers), layer_of(imported, layers))
    assert len(arrows.edges) < 100  # and it is one that can be looked at


def test_module_without_a_layer_is_told() -> None:
    with pytest.raises(ValueError, match=r"kernel\.segmentation is in no layer of pyproject\.toml"):
        layer_of("kernel.segmentation", ["kernel.segment"])


@pytest.mark.parametrize("walk", read_walks(), ids=lambda walk: walk[0].file)
def test_walk_names_what_is_there(walk: list[Step]) -> None:
    problems = [problem_of(step, walk[:place]) for place, step in enumerate(walk)]
    assert not any(problems), "\n" + "\n".join(filter(None, problems))


def test_both_walks_go_far() -> None:
    image, crop = read_walks()
    assert (image[0].name, image[-1].name) == ("main", "SubmissionWriter.write") and len(image) > 30
    assert (crop[0].name, crop[-1].name) == ("run_train", "save_state") and len(crop) > 15


@pytest.mark.parametrize(
    ("file", "name", "depth", "told"),
    [
        ("kernel/images/loading.py", "read_image", 1, "there is no such file"),
        ("kernel/images/reading.py", "read_images", 1, "no such function or class; it has read_image"),
        ("kernel/images/reading.py", "read_image", 1, "none of the files named above uses read_image"),
        ("kernel/images/reading.py", "list_images", 3, "more than one step to the right"),
        ("kernel/images/reading.py", "list_images", 1, ""),
        ("kernel/postprocess/submission.py", "SubmissionWriter.write", 1, ""),
        ("kernel/postprocess/submission.py", "SubmissionWriter.wrote", 1, "it has SubmissionWriter.write"),
    ],
)
def test_wrong_steps_are_told(file: str, name: str, depth: int, told: str) -> None:
    problem = problem_of(Step(7, depth, file, name), [Step(6, 0, "kernel/main.py", "run_kernel")])
    assert told in problem and bool(told) == bool(problem)
    assert not problem or problem.startswith(f"docs/architecture.md, line 7: {file} {name}: ")
