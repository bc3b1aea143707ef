"""mmdet imported without what it imports and never calls here, so that a machine that lacks these still segments."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NoReturn

#: What mmcv and mmdet import at once for pictures, configuration files and compilers. Nothing of ours has them call it.
UNUSED_MODULES = (
    "matplotlib", "matplotlib.collections", "matplotlib.patches", "matplotlib.pyplot", "torch.utils.cpp_extension",
    "yaml", "yapf", "yapf.yapflib", "yapf.yapflib.yapf_api",
)  # fmt: skip


class UnusedModule(ModuleType):
    """Stands for a module whose names are imported and never called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):  # asked for by the import system
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

        def unused(*_args: Any, **_named: Any) -> NoReturn:
            raise NotImplementedError(f"{self.__name__}.{name} was not imported for mmdet, which should not need it")

        return unused


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """As long as the block lasts, those of `UNUSED_MODULES` that nobody has imported so far are stood in for."""
    made = {name: UnusedModule(name) for name in UNUSED_MODULES if name not in sys.modules}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in made.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def import_mmdet() -> None:
    """Import mmcv and mmdet, quietly; whatever of ours needs them calls this first. They must be installed."""
    if "mmdet.models" in sys.modules:
        return
    with stand_ins(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer versions, and of options of losses
        import mmcv  # noqa: F401
        import mmdet.models  # noqa: F401
