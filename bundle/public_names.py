"""What `inside_ensemble/__init__.py` holds: the names that other programs may use. `bundle.distribution` puts it there.

Everything else may change from version to version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernel.api import Cells, Segmenter, load
    from kernel.errors import InputError, RunError

__all__ = ["Cells", "InputError", "RunError", "Segmenter", "load"]


def __getattr__(name: str) -> Any:
    """The names of `__all__`, each when it is first asked for: what imports one module should not load all."""
    if name == "__version__":
        from importlib.metadata import version

        return version("inside-ensemble")
    if name in ("InputError", "RunError"):
        from kernel import errors

        return getattr(errors, name)
    if name in __all__:
        from kernel import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
