"""Counts the operations that torch dispatches."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# These make a tensor or give it another form, and start nothing on a device.
FREE = {"detach", "lift_fresh", "promote_types", "_unsafe_view"}


class CountOperations(TorchDispatchMode):
    """Counts operations, those that start a kernel, and those that copy from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatched = 0
        self.kernels: Counter[str] = Counter()
        self.from_host: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **(kwargs or {}))
        given = {t.device.type for t in tree_leaves((args, kwargs or {})) if _has_values(t)}
        made = {t.device.type for t in tree_leaves(result) if isinstance(t, Tensor)}
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        self.dispatched += 1
        if "cpu" in given and (given | made) - {"cpu"}:
            self.from_host[name] += 1
        free = view or name in FREE or name.startswith(("empty", "new_empty"))
        if not free and given | made != {"cpu"}:
            self.kernels[name] += 1
        return result


def _has_values(value: object) -> bool:
    """Return whether a value is a tensor that a device cannot take over as a plain number."""
    return isinstance(value, Tensor) and (value.device.type != "cpu" or value.dim() > 0)
