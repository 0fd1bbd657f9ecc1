"""Weights of backbones: located, downloaded, and loaded into a network."""

from __future__ import annotations

import http.client
import importlib.util
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mstemba.errors import UsageError, first_line
from mstemba.reading.files import real_path
from mstemba.tensor_files.formats import tensor_format
from mstemba.tensor_files.mismatch import describe_mismatch, describe_network
from mstemba.tensor_files.reading import read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

_SECONDS = 5.0
"""How long an address may take to answer before it counts as unreachable."""


def read_weights(path: str, model: str, source: str) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name; see `mstemba.tensor_files.reading`.

    Args:
        path: The file.
        model: What the network is called in messages.
        source: Where the right file is, for messages.

    Raises:
        UsageError: The file cannot be used. The message says what it is and which file to use.
    """
    try:
        return read_tensors(Path(path))
    except ValueError as error:
        raise UsageError(f"{path}: not weights of {model}: {error}. Use {source}") from None


def does_not_fit(
    path: str, model: str, mismatch: str, found: Mapping[str, Tensor], advice: str
) -> UsageError:
    """Return the error for a file with the tensors of another network."""
    network = describe_network(found)
    looks = f"It looks like {network}. " if network else ""
    return UsageError(f"{path}: not weights of {model}: {mismatch}. {looks}{advice}")


def load_weights(
    network: nn.Module, path: str, model: str, source: str, ignored_prefix: str | None = None
) -> None:
    """Load a weights file into a network.

    Args:
        network: Changed in place.
        path: The file; see `mstemba.tensor_files.reading.read_tensors`.
        model: What the network is called in messages.
        source: Where the right file is, for messages.
        ignored_prefix: Tensors of the file whose names begin with it are ignored. The batch
            counters of batch norms may be missing: files from before torch 0.4.1 have none, and
            inference needs none.

    Raises:
        UsageError: The file does not hold the weights of this network.
    """
    whole = read_weights(path, model, source)
    found = {
        name: value
        for name, value in whole.items()
        if ignored_prefix is None or not name.startswith(ignored_prefix)
    }
    expected = {
        name: value
        for name, value in network.state_dict().items()
        if name in found or not name.endswith(".num_batches_tracked")
    }
    if mismatch := describe_mismatch(expected, found):
        raise does_not_fit(path, model, mismatch, whole, f"Use {source}")
    network.load_state_dict(found, strict=False)


def check_cached(path: Path, source: str) -> str:
    """Return the path of a cached file; UsageError if it is not one of weights."""
    try:
        tensor_format(path)
    except (ValueError, OSError) as error:
        target = real_path(path)  # the hub's cache holds links
        deleted = "the file" if target == path.absolute() else target
        raise UsageError(
            f"{path}: {error}. Delete {deleted} to download it again from {source}"
        ) from None
    return str(path)


def locate(weights: str, published: Mapping[str, str], name: str) -> str:
    """Return the path of a weights file, downloaded into the cache of torch's hub if need be.

    Args:
        weights: A local file, or a tag.
        published: Address by tag.
        name: The backbone's, for messages.

    Raises:
        UsageError: The tag is unknown, the file is missing and cannot be downloaded, or the cached
            file is not one of weights. Without a network this takes seconds.
    """
    if Path(weights).is_file():
        return weights
    check_tag(weights, published, name)
    url = published[weights]
    file = hub_file(url)
    if file.is_file():
        return check_cached(file, url)
    reason = unreachable(url)
    if reason is None:
        from torch.hub import download_url_to_file

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(url, str(file), progress=sys.stderr.isatty())
            return _checked_download(file)
        except Exception as error:  # a server, a socket, a disk: each raises its own kinds
            reason = first_line(error)
    raise unavailable(f"{weights!r} of {name}", reason, url)


def _checked_download(file: Path) -> str:
    try:
        tensor_format(file)
    except ValueError:  # such as the login page of a network
        file.unlink()
        raise
    return str(file)


def check_tag(tag: str, published: Collection[str], name: str) -> None:
    """Raise UsageError if a backbone has no published weights with this tag."""
    if tag not in published:
        raise UsageError(
            f"no published weights {tag!r} of {name}; its tags: {', '.join(published) or 'none'}. "
            f"Omit --weights, or pass a file"
        )


def package_folder(package: str, distribution: str) -> Path:
    """Return the folder of an installed package, without importing it.

    Raises:
        UsageError: It is not installed; the message names the distribution to install.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UsageError(f"{package} is not installed; run `pip install {distribution}`")
    return Path(found.origin).parent


def hub_file(url: str) -> Path:
    """Return where torch's hub caches the file of an address. Imports no torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints" / url.rsplit("/", 1)[1]


def unavailable(what: str, reason: str, source: str) -> UsageError:
    """Return the error for published weights that are missing and cannot be downloaded."""
    return UsageError(
        f"the weights {what} are missing and could not be downloaded ({reason}). "
        f"Download {source} on another machine and pass the file with --weights"
    )


def unreachable(url: str) -> str | None:
    """Return why nothing answers at an address; None if something does.

    The request goes through the proxies of the environment. Any answer counts, errors included:
    the client that downloads handles them, but retries for long if nothing answers.
    """
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "mstemba"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return None
    except (urllib.error.HTTPError, http.client.HTTPException):
        return None
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return None  # a server answered, and another client may trust it
        return str(getattr(reason, "strerror", None) or reason)
