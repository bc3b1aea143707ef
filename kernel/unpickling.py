"""Pickles read without running any code: what is no plain container is made by a function of ours, or a stand-in.

A class or function of another module never gets onto the unpickler's stack, nor is anything there called or changed but
what stands in for it: classes of torch and numpy take pointers, and setting their attributes changes them for all.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


class StandIn:
    """Stands for any class or function, and for whatever comes of calling it; the object's state is kept as data."""

    def __init__(self) -> None:
        self.held: Any = None

    def take_state(self, state: Any) -> None:
        """Keep the state that a pickle gives the object; errors as reading a damaged pickle raises."""
        self.held = state


@dataclass(frozen=True)
class Maker:
    """Stands for a class or function that pickles may call: `make` takes what they give it, and trusts nothing."""

    make: Callable[..., Any]


class CodeFreeUnpickler(pickle._Unpickler):
    """Python's unpickler in Python, whose operations can be replaced; errors are many, as of any that damage brings."""

    #: What stands for classes and functions, by module and name: a `Maker`, or a value that cannot be called.
    known: ClassVar[Mapping[tuple[str, str], Any]] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        made = self.known.get((module, name))
        return StandIn() if made is None else made

    def load_reduce(self) -> None:
        """Call what makes an object; a stand-in makes another."""
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, (Maker, StandIn)) or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"it calls {type(called).__name__}")
        self.append(called.make(*arguments) if isinstance(called, Maker) else StandIn())

    def load_newobj_ex(self) -> None:
        del self.stack[-3:]  # class, arguments, named arguments
        self.append(StandIn())

    def load_obj(self) -> None:
        self.pop_mark()
        self.append(StandIn())

    def load_inst(self) -> None:
        self.pop_mark()
        self.find_class(self.readline()[:-1].decode("utf-8"), self.readline()[:-1].decode("utf-8"))
        self.append(StandIn())

    def load_build(self) -> None:
        """Give an object its state. A dict needs none: an OrderedDict has versions of modules there."""
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, StandIn):
            built.take_state(state)
        elif type(built) is not dict:
            raise pickle.UnpicklingError(f"it changes {type(built).__name__}")

    def load_append(self) -> None:
        self._fill(list, [self.stack.pop()])

    def load_appends(self) -> None:
        self._fill(list, self.pop_mark())

    def load_additems(self) -> None:
        self._fill(set, self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(dict, [key, value])

    def load_setitems(self) -> None:
        self._fill(dict, self.pop_mark())

    def _fill(self, kind: type, items: list[Any]) -> None:
        """Put items, of a dict its keys and values in turn, into the container on top of the stack."""
        container = self.stack[-1]
        if isinstance(container, StandIn):  # of a class derived from list, set or dict
            return
        if type(container) is not kind:
            raise pickle.UnpicklingError(f"it fills {type(container).__name__} as a {kind.__name__}")
        if kind is list:
            container.extend(items)
        elif kind is set:
            container.update(items)
        else:
            container.update(zip(items[::2], items[1::2], strict=True))

    #: Extensions are left out: they name what a program has registered, by numbers.
    dispatch: ClassVar[dict[int, Any]] = {
        code: operation
        for code, operation in pickle._Unpickler.dispatch.items()
        if code not in (pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0])
    } | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.OBJ[0]: load_obj,
        pickle.INST[0]: load_inst,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.ADDITEMS[0]: load_additems,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def make_dict(pairs: Any = ()) -> dict[Any, Any]:
    """An OrderedDict of a pickle, as a dict: Python 2 gives it its pairs, and others none.

    Raises:
        pickle.UnpicklingError: they are none.
    """
    if type(pairs) not in (list, tuple) or any(type(pair) not in (list, tuple) for pair in pairs):
        raise pickle.UnpicklingError("it makes a dict of no pairs")
    return dict(pairs)
