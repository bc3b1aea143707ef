"""Draw the packages and their imports into docs/architecture.md, as they are in the code now.

    .venv/bin/python tests/draw_architecture.py

The order is that of the layers' contract in pyproject.toml, the arrows are the real imports (grimp, which
import-linter brings), and the table takes the first paragraph of each docstring. A test compares the page with this.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import grimp
import networkx  # torch brings it

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
#: Where the script's imports start.
SCRIPT = "kernel.main"


def read_layers() -> list[str]:
    """The packages and modules of the layers' contract, from the top to the bottom."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (each for each in config["contracts"] if each["type"] == "layers")
    return [name.strip() for layer in contract["layers"] for name in layer.split("|")]


def layer_of(module: str, layers: Sequence[str]) -> str:
    """The layer that a module belongs to.

    Raises:
        ValueError: there is none.
    """
    for name in layers:
        if f"{module}.".startswith(f"{name}."):
            return name
    raise ValueError(f"{module} is in no layer of pyproject.toml: add it to the contract")


def build_graph() -> grimp.ImportGraph:
    """All modules and who imports whom, imports inside of functions too."""
    sys.path.insert(0, str(ROOT))
    try:
        return grimp.build_graph("kernel", "bundle", cache_dir=None)
    finally:
        sys.path.remove(str(ROOT))


def layer_imports(graph: grimp.ImportGraph, layers: Sequence[str]) -> networkx.DiGraph:
    """An arrow from each layer to those that it imports from, less the arrows that follow from others."""
    arrows = networkx.DiGraph()
    arrows.add_nodes_from(layers)
    for module in graph.modules - {"kernel"}:
        for imported in graph.find_modules_directly_imported_by(module) - {"kernel"}:
            ends = layer_of(module, layers), layer_of(imported, layers)
            if ends[0] != ends[1]:
                arrows.add_edge(*ends)
    return networkx.transitive_reduction(arrows)


def script_layers(graph: grimp.ImportGraph, layers: Sequence[str]) -> set[str]:
    """The layers of which at least one module is inlined into the script."""
    modules = {SCRIPT, *graph.find_upstream_modules(SCRIPT)} - {"kernel"}
    return {layer_of(module, layers) for module in modules}


def summary_of(layer: str) -> str:
    """The first paragraph of a package's or module's docstring.

    Raises:
        ValueError: there is none.
    """
    path = ROOT / layer.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{path.relative_to(ROOT)} has no docstring: say in one line what it is")
    return text.split("\n\n")[0].replace("\n", " ").replace("|", r"\|")


def path_of(layer: str) -> str:
    """A layer's file or folder, from the repository's root."""
    path = layer.replace(".", "/")
    return f"{path}/" if (ROOT / path).is_dir() else f"{path}.py"


def draw_parts() -> dict[str, str]:
    """The figure and the table, in Markdown."""
    layers = read_layers()
    graph = build_graph()
    arrows, in_script = layer_imports(graph, layers), script_layers(graph, layers)
    ids = {layer: layer.replace(".", "_") for layer in layers}
    figure = ["```mermaid", "flowchart TB"]
    figure += [f'    {ids[layer]}["{layer}"]' for layer in layers]
    for layer in layers:
        below = sorted(arrows.successors(layer), key=layers.index)
        if below:
            figure.append(f"    {ids[layer]} --> {' & '.join(ids[each] for each in below)}")
    figure.append("    classDef script fill:#dbeafe,stroke:#1d4ed8,color:#111")
    figure.append(f"    class {','.join(ids[layer] for layer in layers if layer in in_script)} script")
    figure.append("```")
    table = ["| where | what | in the script |", "|---|---|---|"]
    table += [
        f"| `{path_of(layer)}` | {summary_of(layer)} | {'yes' if layer in in_script else ''} |" for layer in layers
    ]
    return {"figure": "\n".join(figure), "table": "\n".join(table)}


def insert_parts(page: str, parts: Mapping[str, str]) -> str:
    """The page with `parts` between their marks.

    Raises:
        ValueError: a mark is missing.
    """
    for name, text in parts.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, found_begin, rest = page.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_begin or not found_end:
            raise ValueError(f"{PAGE.relative_to(ROOT)} lacks the lines {begin.strip()} and {end}")
        page = f"{before}{begin}{text}\n{end}{after}"
    return page


if __name__ == "__main__":
    drawn = insert_parts(PAGE.read_text(encoding="utf-8"), draw_parts())
    PAGE.write_text(drawn, encoding="utf-8", newline="\n")
