"""Which names source code binds and looks up, by the language's own rules of scope.

The standard library's `symtable` tells how an interpreter compiles a module, which changes: comprehensions have no
scope of their own there since Python 3.12, annotations have one since 3.14. What a name means has not changed, so it
is worked out here from the syntax tree, to the same result under every Python.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

#: What a class body knows without binding it.
CLASS_NAMES = frozenset({"__module__", "__qualname__"})


@dataclass
class TopNames:
    """What top-level statements do with top-level names; each name with the first line that does it."""

    defined: dict[str, int] = field(default_factory=dict)  # get a value
    #: Looked up among the top-level names and builtins, in whatever scope.
    looked_up: dict[str, int] = field(default_factory=dict)


def top_names(statements: Iterable[ast.stmt]) -> TopNames:
    """What some of a module's top-level statements define and look up, in nested scopes too.

    Annotations count as looked up whether or not they are evaluated; names inside strings do not. A name annotated
    without a value, or only changed in place (`name += 1`), is not defined by that. A class body looks up what it has
    not bound by then.
    """
    reader = ScopeReader()
    for statement in statements:
        reader.visit(statement)
    names = TopNames(defined=reader.scope.defined)
    for scope in reader.scopes:
        for name, line in scope.looked_up:
            if is_top_level(scope, name):
                names.looked_up[name] = min(line, names.looked_up.get(name, line))
    return names


@dataclass
class Scope:
    """One scope of a module."""

    #: "annotation": of annotations, type parameters and what is evaluated with them; it sees all of a class around it.
    kind: Literal["module", "class", "function", "comprehension", "annotation"]
    outer: Scope | None
    private_to: str = ""  # the innermost class, whose private names are mangled
    defined: dict[str, int] = field(default_factory=dict)  # names that get a value here, with the first line
    own: set[str] = field(default_factory=set)  # names that are this scope's, with or without a value
    declared: dict[str, str] = field(default_factory=dict)  # "global" or "nonlocal", by name
    looked_up: list[tuple[str, int]] = field(default_factory=list)


def is_top_level(scope: Scope, name: str) -> bool:
    """Whether `name`, looked up in `scope`, is a top-level name (or a builtin)."""
    sees_class = scope.kind in ("class", "annotation")
    at: Scope | None = scope
    while at is not None and at.kind != "module":
        if at.declared.get(name) == "global":
            return True
        if at.kind == "class":
            # A class body's own lookups are no more than noted where the name was not bound by then; Python then looks
            # past the functions around the class, but only for names that the class binds somewhere.
            if at is scope and name in at.own:
                return True
            if at is not scope and ((sees_class and name in at.own) or name == "__class__"):
                return False
            sees_class = False
        elif name in at.own and name not in at.declared:
            return False
        elif at.kind != "annotation":
            sees_class = False
        at = at.outer
    return True


class ScopeReader(ast.NodeVisitor):
    """Reads statements into scopes; each node in the scope, and in the order, in which Python evaluates it."""

    def __init__(self) -> None:
        self.scope = Scope("module", None)
        self.scopes = [self.scope]

    def inside(
        self, kind: Literal["class", "function", "comprehension", "annotation"], read: Callable[[], None]
    ) -> None:
        """Have `read` visit nodes in a new scope within the present one."""
        outer = self.scope
        self.scope = Scope(kind, outer, outer.private_to)
        self.scopes.append(self.scope)
        read()
        self.scope = outer

    def visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def mangled(self, name: str) -> str:
        """The name as it is known at run time: private names of a class carry the class's."""
        owner = self.scope.private_to.lstrip("_")
        return f"_{owner}{name}" if owner and name.startswith("__") and not name.endswith("__") else name

    def bind(self, name: str, line: int, scope: Scope | None = None) -> None:
        """Note that a name gets a value."""
        scope, name = scope or self.scope, self.mangled(name)
        if name not in scope.declared:
            scope.own.add(name)
            scope.defined.setdefault(name, line)

    def look_up(self, name: str, line: int) -> None:
        """Note that a name's value is asked for."""
        scope, name = self.scope, self.mangled(name)
        if not (scope.kind == "class" and (name in scope.defined or name in CLASS_NAMES)):
            scope.looked_up.append((name, line))

    # names

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.look_up(node.id, node.lineno)
        elif isinstance(node.ctx, ast.Store):
            self.bind(node.id, node.lineno)
        else:
            self.scope.own.add(self.mangled(node.id))

    def visit_Global(self, node: ast.Global) -> None:
        self.scope.declared.update((self.mangled(name), "global") for name in node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.scope.declared.update((self.mangled(name), "nonlocal") for name in node.names)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit_all([node.value, *node.targets])

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.look_up(node.target.id, node.target.lineno)
            self.scope.own.add(self.mangled(node.target.id))
        else:
            self.visit(node.target)
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.read_annotations([node.annotation])
        self.visit_all([node.value])
        if node.value is None and isinstance(node.target, ast.Name):
            if node.simple:  # not in brackets
                self.scope.own.add(self.mangled(node.target.id))
        else:
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        home = self.scope
        while home.kind == "comprehension" and home.outer is not None:
            home = home.outer
        self.bind(node.target.id, node.target.lineno, home)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit_all([node.iter, node.target, *node.body, *node.orelse])

    visit_AsyncFor = visit_For

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.visit_all([node.type])
        if node.name:
            self.bind(node.name, node.lineno)
        self.visit_all(node.body)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self.visit_all([node.pattern])
        if node.name:
            self.bind(node.name, node.lineno)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self.bind(node.name, node.lineno)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.visit_all([*node.keys, *node.patterns])
        if node.rest:
            self.bind(node.rest, node.lineno)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.bind(alias.asname or alias.name.split(".")[0], node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.bind(alias.asname or alias.name, node.lineno)

    # scopes

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.visit_all([*node.decorator_list, *node.args.defaults, *node.args.kw_defaults])
        arguments = all_arguments(node.args)

        def read() -> None:
            self.read_annotations([*(argument.annotation for argument in arguments), node.returns])
            self.inside("function", lambda: self.read_function(arguments, node.body))

        self.with_type_parameters(node, read)
        self.bind(node.name, node.lineno)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit_all([*node.args.defaults, *node.args.kw_defaults])
        self.inside("function", lambda: self.read_function(all_arguments(node.args), [node.body]))

    def read_annotations(self, annotations: Iterable[ast.expr | None]) -> None:
        """Annotations: evaluated late, if ever, so they see all of a class around them."""
        self.inside("annotation", lambda: self.visit_all(annotations))

    def read_function(self, arguments: Iterable[ast.arg], body: Iterable[ast.AST]) -> None:
        for argument in arguments:
            self.bind(argument.arg, argument.lineno)
        self.visit_all(body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all(node.decorator_list)

        def read_body() -> None:
            self.scope.private_to = node.name
            self.visit_all(node.body)

        def read() -> None:
            self.visit_all([*node.bases, *node.keywords])
            self.inside("class", read_body)

        self.with_type_parameters(node, read)
        self.bind(node.name, node.lineno)

    def visit_comprehension_of(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        """A comprehension: its first iterable is evaluated outside."""
        first, *others = node.generators
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self.visit(first.iter)
        self.inside(
            "comprehension",
            lambda: self.visit_all(
                [
                    *(first.target, *first.ifs),
                    *(part for each in others for part in (each.iter, each.target, *each.ifs)),
                    *results,
                ]
            ),
        )

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_comprehension_of

    # type parameters, which only Python 3.12 and later parse

    def with_type_parameters(self, node: ast.AST, read: Callable[[], None]) -> None:
        """Have `read` visit what may use the type parameters of a node, where it has any."""
        parameters: list[ast.AST] = getattr(node, "type_params", [])

        def read_all() -> None:
            self.visit_all(parameters)
            read()

        if parameters:
            self.inside("annotation", read_all)
        else:
            read()

    def visit_TypeAlias(self, node: ast.AST) -> None:
        name, value = getattr(node, "name"), getattr(node, "value")  # noqa: B009 - unknown to Python 3.11
        self.bind(name.id, name.lineno)
        self.with_type_parameters(node, lambda: self.inside("annotation", lambda: self.visit(value)))

    def visit_type_parameter(self, node: ast.AST) -> None:
        """A type parameter: its bound and default may use the others."""
        self.bind(getattr(node, "name"), getattr(node, "lineno"))  # noqa: B009
        self.inside("annotation", lambda: self.generic_visit(node))

    visit_TypeVar = visit_ParamSpec = visit_TypeVarTuple = visit_type_parameter


def all_arguments(arguments: ast.arguments) -> list[ast.arg]:
    """A function's parameters of every kind."""
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *starred]
