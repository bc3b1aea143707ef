"""The rules that make a flattened script mean what its package means; whatever breaks one is noted, with its line.

`bundle.inline` says what they are.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from bundle.modules import ImportedName, ModuleSource, Package, read_module
from bundle.pythons import BUILTIN_NAMES, OLDEST_PYTHON, STANDARD_MODULES, newer_syntax
from kernel.mounts import is_file, is_folder

#: What Kaggle's image holds, as far as a kernel may need it.
IMAGE_PACKAGES = frozenset(
    ("cv2", "numpy", "pycocotools", "safetensors", "scipy", "timm", "torch", "torchvision", "tqdm")
)
#: What the vendored wheels bring. Installed while the script runs, so not importable at its top.
VENDORED_PACKAGES = frozenset({"mmcv", "mmdet"})
#: What these import from the image, and need, beside what the script itself imports.
VENDORED_NEEDS = frozenset({"PIL", "cv2", "numpy", "packaging", "pycocotools", "scipy", "torch", "torchvision"})
#: What the image may hold or not: the code that needs it asks first, and imports it inside a function.
OPTIONAL_PACKAGES = frozenset({"imagecodecs", "tifffile"})

#: Names that mean another thing in a flattened script than in a module.
MODULE_NAMES = frozenset(
    ("__file__", "__name__", "__package__", "__spec__", "__loader__", "__path__", "__cached__", "__all__", "__doc__")
) | {"__module__", "__annotations__", "__annotate__"}
#: Builtins that run text as code or reach a module's names behind our back.
FORBIDDEN_BUILTINS = frozenset({"exec", "eval", "compile", "__import__", "globals", "__builtins__"})


def check_package(package: Package, embedded: Mapping[str, str]) -> None:
    """Note in `package.problems` whatever breaks a rule; `embedded` are the texts that its `main` takes."""
    for module in package.modules.values():
        check_statements(package, module)
        top_imports = set(map(id, [*module.hoisted, *module.cut]))
        for node in ast.walk(module.tree):
            check_node(package, module, node, at_top=id(node) in top_imports)
        check_names(package, module)
        check_imports_of_ours(package, module)
        newer = newer_syntax(module.text)
        if newer is not None:
            line, message = newer
            package.problem(module, line, f"{message}: the kernel must run on every Python from {OLDEST_PYTHON} on")
    check_collisions(package, embedded)
    check_init_files(package)
    check_main(package, embedded)


# One module


def check_statements(package: Package, module: ModuleSource) -> None:
    """Refuse top-level statements that do more than define, and definitions that hide a builtin."""
    for statement in module.tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            check_own_lines(package, module, statement)
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        acting = ast.Expr | ast.For | ast.While | ast.With | ast.Assert | ast.Delete | ast.Raise
        if isinstance(statement, acting) and not is_docstring:
            package.problem(module, statement, "a module may only define: move what it does into a function")
    if module.path != package.entry:
        for guard in module.guards:
            package.problem(module, guard, f"only {package.entry.name} may have a guard on `__name__`")
    for name, line in module.defined.items():
        if name in BUILTIN_NAMES or name in MODULE_NAMES:
            package.problem(module, line, f"the top-level name {name!r} hides a builtin for all modules: rename it")


def check_own_lines(package: Package, module: ModuleSource, statement: ast.stmt) -> None:
    """An import is cut out by whole lines, so it must have them for itself."""
    lines = module.text.split("\n")
    first, last = lines[statement.lineno - 1], lines[(statement.end_lineno or statement.lineno) - 1]
    rest = last.encode()[statement.end_col_offset :].decode().strip()
    if first.encode()[: statement.col_offset].strip() or (rest and not rest.startswith("#")):
        package.problem(module, statement, "an import must have its line for itself")


def check_node(package: Package, module: ModuleSource, node: ast.AST, at_top: bool) -> None:
    """What is refused wherever in a module it stands."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        ours = package.is_ours(node)
        if ours and not at_top:
            package.problem(module, node, "import of ours inside a function or a block: move it to the top")
        elif ours and isinstance(node, ast.Import):
            wrong = f"`import {node.names[0].name}`: write `from {package.name}.x.y import name`"
            package.problem(module, node, wrong)
        elif not ours:
            check_third_party(package, module, node, at_top)
        if isinstance(node, ast.ImportFrom) and not ours and any(alias.name == "*" for alias in node.names):
            package.problem(module, node, "star import: name what you import")
    elif isinstance(node, ast.Global):
        package.problem(module, node, "`global`: rebinding a top-level name is not seen where it was imported")
    elif isinstance(node, ast.Name):
        # A guard on `__name__` is cut out as a whole.
        in_guard = any(guard.lineno <= node.lineno <= (guard.end_lineno or guard.lineno) for guard in module.guards)
        if node.id in FORBIDDEN_BUILTINS:
            package.problem(module, node, f"`{node.id}`: the kernel's code must be there to be read")
        elif node.id in MODULE_NAMES and not in_guard:
            package.problem(module, node, f"`{node.id}` means another thing in the built script: do without it")


def check_third_party(package: Package, module: ModuleSource, node: ast.Import | ast.ImportFrom, at_top: bool) -> None:
    """Refuse imports of what is not there when the script runs."""
    names = [str(node.module)] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    for name in sorted({name.split(".")[0] for name in names}):
        if name in STANDARD_MODULES or name in IMAGE_PACKAGES:
            continue
        if is_folder(package.root / name) or is_file(package.root / f"{name}.py"):
            package.problem(module, node, f"{name} is not part of the kernel and is never inlined")
        elif name not in VENDORED_PACKAGES | OPTIONAL_PACKAGES:
            allowed = ", ".join(sorted(IMAGE_PACKAGES))
            wrong = f"{name} is not in Kaggle's image; allowed are the standard library, {allowed}"
            package.problem(module, node, wrong)
        elif at_top:
            package.problem(module, node, f"{name} may not be there yet: import it inside a function")


def check_names(package: Package, module: ModuleSource) -> None:
    """Refuse names that are used but neither defined nor imported in the module, and double meanings."""
    for name, (_, line) in module.imported.items():
        if name in module.defined:
            wrong = f"{name!r} is defined here and imported in line {line}: rename one"
            package.problem(module, module.defined[name], wrong)
    known = {*module.defined, *module.imported, *BUILTIN_NAMES, *MODULE_NAMES}
    for name, line in module.looked_up.items():
        if name not in known:
            package.problem(module, line, f"the name {name!r} is never defined or imported")


def check_imports_of_ours(package: Package, module: ModuleSource) -> None:
    """Refuse an import of a name that its module does not define itself."""
    for source_name, statements in module.ours.items():
        source = package.modules[source_name]
        for statement in statements:
            for name in (alias.name for alias in statement.names if alias.name not in source.defined):
                wrong = f"{source.name} defines no {name!r}"
                if name in source.imported:
                    wrong = f"{source.name} only imports {name!r}: import it from {source.imported[name][0].module}"
                package.problem(module, statement, wrong)


# All modules together


def check_collisions(package: Package, embedded: Mapping[str, str]) -> None:
    """Refuse a top-level name with two meanings."""
    definitions: dict[str, tuple[str, int]] = dict.fromkeys(embedded, ("the script's embedded texts", 0))
    for module in package.modules.values():
        for name, line in module.defined.items():
            other, other_line = definitions.setdefault(name, (module.shown, line))
            if other != module.shown:
                where = f"{other}:{other_line}" if other_line else other
                package.problem(module, line, f"the top-level name {name!r} is defined in {where} too: rename one")
    imports: dict[str, tuple[ImportedName, str, int]] = {}
    for module in package.modules.values():
        for name, (origin, line) in module.imported.items():
            if origin.module in package.modules:
                continue
            if name in definitions:
                other, other_line = definitions[name]
                wrong = f"the imported name {name!r} is defined in {other}:{other_line} too: rename one"
                package.problem(module, line, wrong)
            first, other, other_line = imports.setdefault(name, (origin, module.shown, line))
            if first != origin:
                wrong = f"{name!r} means {origin} here and {first} in {other}:{other_line}: call one of them otherwise"
                package.problem(module, line, wrong)


def check_init_files(package: Package) -> None:
    """Refuse packages whose `__init__.py` does anything: the script would not do it."""
    modules = package.modules.values()
    folders = {parent for module in modules for parent in module.path.parents if package.root in parent.parents}
    for init in (folder / "__init__.py" for folder in sorted(folders)):
        if not init.is_file():
            continue
        for statement in read_module(init)[1].body:
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                wrong = "a package's __init__.py may hold a docstring and nothing else"
                package.problems.add((package.shown(init), statement.lineno, wrong))
                break


def check_main(package: Package, embedded: Mapping[str, str]) -> None:
    """Refuse an entry without a `main` that takes the embedded texts."""
    entry = list(package.modules.values())[-1]
    found = [node for node in entry.tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    wanted = ", ".join(name.lower() for name in embedded)
    if not found:
        package.problem(entry, 1, f"no function `main({wanted}) -> int`, which the script calls")
    elif not takes_arguments(found[-1].args, len(embedded)):
        package.problem(entry, found[-1], f"`main` must take the {len(embedded)} argument(s) ({wanted})")


def takes_arguments(arguments: ast.arguments, count: int) -> bool:
    """Whether a function can be called with `count` positional arguments."""
    positional = len(arguments.posonlyargs) + len(arguments.args)
    needed = positional - len(arguments.defaults)
    forced = any(default is None for default in arguments.kw_defaults)
    return needed <= count and (count <= positional or arguments.vararg is not None) and not forced
