"""The modules that an entry reaches, taken apart: what each imports, defines and looks up."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

from bundle.scopes import top_names
from kernel.errors import InputError
from kernel.mounts import is_file

#: Parts of the package that are never inlined: they need more than the image holds, or no kernel needs them.
NOT_INLINED = (
    "commands", "data.synthetic", "export", "local_weights", "report", "scoring", "training", "tuning", "vendored",
)  # fmt: skip


#: What is wrong with source that parser, compiler or our readers of its tree cannot follow to its end.
NESTED_TOO_DEEPLY = "an expression or block is nested too deeply: split it up"


@dataclass(frozen=True, order=True)
class ImportedName:
    """One name that an import statement binds."""

    module: str  # "numpy"; for `import a.b` without `as`: the package that it binds, "a"
    attribute: str  # "" for `import module`
    name: str  # what it is called here

    def __str__(self) -> str:
        return f"{self.module}.{self.attribute}" if self.attribute else f"the module {self.module}"


@dataclass
class ModuleSource:
    """One module, taken apart."""

    name: str  # "kernel.models.encoders"
    path: Path
    shown: str  # the path in messages and banners, relative to the package's parent
    text: str
    tree: ast.Module
    ours: dict[str, list[ast.ImportFrom]] = field(default_factory=dict)  # by imported module
    futures: set[str] = field(default_factory=set)
    hoisted: list[ast.Import | ast.ImportFrom] = field(default_factory=list)
    cut: list[ast.stmt] = field(default_factory=list)  # statements that the script does not repeat
    defined: dict[str, int] = field(default_factory=dict)  # top-level names but imports, with their line
    imported: dict[str, tuple[ImportedName, int]] = field(default_factory=dict)  # imported names and their line
    looked_up: dict[str, int] = field(default_factory=dict)  # names that must be top-level names or builtins

    @property
    def guards(self) -> list[ast.If]:
        """The module's guards on `__name__`."""
        return [statement for statement in self.cut if isinstance(statement, ast.If)]


class Package:
    """The modules that an entry (`<package>/main.py`) reaches, and what is wrong with them.

    Raises:
        InputError: there is no such entry, or a module does not compile.
    """

    def __init__(self, entry: Path) -> None:
        if not entry.is_file():
            raise InputError(f"no file {entry}: the entry must be the package's main.py")
        self.entry = entry
        self.name = entry.parent.name
        self.root = entry.parent.parent
        self.modules: dict[str, ModuleSource] = {}  # by name, each after what it imports
        self.problems: set[tuple[str, int, str]] = set()  # the module's path as shown, line, what is wrong
        self.read(f"{self.name}.{entry.stem}", [])

    def problem(self, module: ModuleSource, where: ast.AST | int, text: str) -> None:
        """Note what is wrong at a node or a line of `module`."""
        line = where if isinstance(where, int) else getattr(where, "lineno", 1)
        self.problems.add((module.shown, line, text))

    def path_of(self, name: str) -> Path:
        """The file of the module `name`."""
        return self.root.joinpath(*name.split(".")).with_suffix(".py")

    def shown(self, path: Path) -> str:
        """A file as messages name it."""
        return path.relative_to(self.root).as_posix()

    def is_ours(self, statement: ast.Import | ast.ImportFrom) -> bool:
        """Whether an import reaches into the package."""
        if isinstance(statement, ast.ImportFrom):
            return statement.level > 0 or str(statement.module).split(".")[0] == self.name
        return any(alias.name.split(".")[0] == self.name for alias in statement.names)

    def read(self, name: str, above: list[str]) -> None:
        """Read a module after all that it imports. `above` are the modules whose imports led here."""
        path = self.path_of(name)
        text, tree = read_module(path)
        module = ModuleSource(name, path, self.shown(path), text, tree)
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.read_import(module, statement)
            else:
                try:
                    read_definition(module, statement)
                except RecursionError:
                    self.problem(module, statement, NESTED_TOO_DEEPLY)
        trail = [*above, name]
        for imported, statements in module.ours.items():
            if imported in trail:
                circle = " -> ".join([*trail[trail.index(imported) :], imported])
                self.problem(module, statements[0], f"circular import: {circle}")
            elif imported not in self.modules:
                self.read(imported, trail)
        self.modules[name] = module

    def read_import(self, module: ModuleSource, statement: ast.Import | ast.ImportFrom) -> None:
        """Sort one top-level import: of the language's future, of ours, or of another package."""
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__" and not statement.level:
            module.futures.update(alias.name for alias in statement.names)
            module.cut.append(statement)
            return
        if self.is_ours(statement):
            module.cut.append(statement)
            if isinstance(statement, ast.ImportFrom) and self.can_follow(module, statement):
                source = str(statement.module)
                module.ours.setdefault(source, []).append(statement)
                for alias in statement.names:
                    module.imported[alias.name] = (ImportedName(source, alias.name, alias.name), statement.lineno)
            return
        module.hoisted.append(statement)
        for alias in statement.names:
            origin = imported_name(statement, alias)
            known, _ = module.imported.setdefault(origin.name, (origin, statement.lineno))
            if known != origin:
                self.problem(module, statement, f"{origin.name!r} is imported twice, from different places")

    def can_follow(self, module: ModuleSource, statement: ast.ImportFrom) -> bool:
        """Whether an import of ours has the one form that can be flattened; notes what is wrong with it."""
        source = str(statement.module)
        inner = source.removeprefix(f"{self.name}.")
        wrong = ""
        if statement.level:
            wrong = f"relative import: write `from {self.name}.x.y import name`"
        elif any(alias.name == "*" for alias in statement.names):
            wrong = "star import: name what you import"
        elif any(alias.asname for alias in statement.names):
            wrong = "import of ours under another name: use the name it has"
        elif any(inner == part or inner.startswith(f"{part}.") for part in NOT_INLINED):
            wrong = f"{source} is never inlined: the kernel must not need it"
        elif source == self.name or is_file(self.root.joinpath(*source.split(".")) / "__init__.py"):
            wrong = f"{source} is a package: import names from the module that defines them"
        elif not is_file(self.path_of(source)):
            wrong = f"no module {source}"
        if wrong:
            self.problem(module, statement, wrong)
        return not wrong


def read_module(path: Path) -> tuple[str, ast.Module]:
    """A module's text and syntax tree.

    Raises:
        InputError: it is not UTF-8, or does not compile.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # a mark at its start would be an error amid the script
        tree = ast.parse(text, filename=str(path))
        compile(text, str(path), "exec", dont_inherit=True)  # what only shows then: a `return` outside a function, say
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error})") from error
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno or 1}: {error.msg}") from error
    except (RecursionError, MemoryError, OverflowError) as error:
        raise InputError(f"{path}: {NESTED_TOO_DEEPLY}") from error
    except ValueError as error:  # of a null byte, before Python 3.12
        raise InputError(f"{path}: {error}") from error
    return text, tree


def read_definition(module: ModuleSource, statement: ast.stmt) -> None:
    """Note what a top-level statement other than an import defines and looks up; a guard on `__name__` is cut out."""
    names = top_names([statement])
    if is_main_guard(statement):
        module.cut.append(statement)
        names.looked_up = {name: line for name, line in names.looked_up.items() if name not in names.defined}
        names.defined.clear()
    for name, line in names.looked_up.items():
        module.looked_up.setdefault(name, line)
    for name, line in names.defined.items():
        module.defined.setdefault(name, line)


def is_main_guard(statement: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__"`."""
    match statement:
        case ast.If(
            test=ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value="__main__")])
        ):
            return True
    return False


def imported_name(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> ImportedName:
    """What a single name of a third-party import binds."""
    if isinstance(statement, ast.ImportFrom):
        return ImportedName(str(statement.module), alias.name, alias.asname or alias.name)
    if alias.asname:
        return ImportedName(alias.name, "", alias.asname)
    package = alias.name.split(".")[0]
    return ImportedName(package, "", package)
