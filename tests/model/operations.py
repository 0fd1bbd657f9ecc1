"""Counts the operations that torch dispatches."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# These make a tensor or give it another form, and start nothing on a device.
NO_KERNEL = {"detach", "lift_fresh", "promote_types", "_unsafe_view"}


class CountOperations(TorchDispatchMode):
    """Counts operations, those that start a kernel, and those that copy from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatched = 0
        self.kernels: Counter[str] = Counter()
        self.from_host: Counter[str] = Counter()
        self._sequences = _SequencesFromHost(self.from_host)

    def __enter__(self) -> CountOperations:
        self._sequences.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._sequences.__exit__(*error)

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
        free = view or name in NO_KERNEL or name.startswith(("empty", "new_empty"))
        if not free and given | made != {"cpu"}:
            self.kernels[name] += 1
        return result


class _SequencesFromHost(TorchFunctionMode):
    """Counts tensors and indices made of Python's numbers; on `meta` they dispatch no copy."""

    def __init__(self, counter: Counter[str]) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor) and result.device.type != "cpu"
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type != "cpu":
            made = any(isinstance(index, list) for index in _indices(args[1]))
        if made:
            self._counter[func.__name__] += 1
        return result


def _indices(index: object) -> tuple[object, ...]:
    return index if isinstance(index, tuple) else (index,)


def _has_values(value: object) -> bool:
    """Return whether a value is a tensor that a device cannot take over as a plain number."""
    return isinstance(value, Tensor) and (value.device.type != "cpu" or value.dim() > 0)
