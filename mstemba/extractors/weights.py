"""Reading a user's weights file: what went wrong with it, in one line."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterator

from mstemba.errors import UsageError


@contextlib.contextmanager
def reading(path: str, model: str) -> Iterator[None]:
    """Turn whatever a wrong file makes torch raise into a UsageError.

    torch's own message for pickled code advises how to run it; that is not passed on.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path}: not weights of {model}: damaged, or it holds pickled code, "
            f"which is refused and never executed"
        ) from None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: not weights of {model}: {reason}") from None
