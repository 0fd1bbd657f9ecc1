"""The errors a user can cause. Each message says what was found, what was expected, what to do."""


class MstembaError(Exception):
    """Something could not be done. The command line prints one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(MstembaError):
    """The request itself is wrong: an option, a path, a manifest, a checkpoint."""

    exit_code = 2


class ManifestError(UsageError):
    """A manifest or an annotation file cannot be used as it is."""


class CheckpointError(UsageError):
    """A checkpoint or weights file is missing, damaged, unsafe, or does not fit."""


class StoreError(UsageError):
    """A feature store is damaged or was built with other options."""


class DecodeError(MstembaError):
    """A video could not be decoded."""


class SomeFailed(MstembaError):
    """Some inputs failed and the rest were done; the failures have been listed."""
