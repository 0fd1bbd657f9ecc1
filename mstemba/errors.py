"""The errors and warnings that users see.

Messages say what was found, what was expected and what to do.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class MstembaError(Exception):
    """An error that the command line prints in one line before it exits with `exit_code`."""

    exit_code = 1


class UsageError(MstembaError):
    """A request that cannot be carried out: an option, path, manifest or checkpoint is wrong."""

    exit_code = 2


class ManifestError(UsageError):
    """A manifest or an annotation file that cannot be used."""


class CheckpointError(UsageError):
    """A checkpoint or weights file that is missing, damaged, unsafe or does not fit."""


class StoreError(UsageError):
    """A feature store that is damaged or was built with other options."""


class DecodeError(MstembaError):
    """A video that could not be decoded."""


class OutOfMemory(MstembaError):
    """A video or a network for which the device does not have enough memory."""


class SomeFailed(MstembaError):
    """Some inputs failed, were listed, and the others were processed."""


class MstembaWarning(Warning):
    """A limit that the user should know about, which the command line prints in one line.

    Not a UserWarning: those of libraries are ignored while some files are read, in all threads.
    """


_OF_LIBRARIES = (
    DeprecationWarning,
    FutureWarning,
    RuntimeWarning,
    SyntaxWarning,
    UnicodeWarning,
    UserWarning,
)


@contextmanager
def library_warnings_ignored() -> Iterator[None]:
    """Ignore the warnings of libraries, in all threads. A MstembaWarning is still shown."""
    with warnings.catch_warnings():
        for category in _OF_LIBRARIES:
            warnings.simplefilter("ignore", category)
        yield


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
