"""CLIP's text side: what sentences are in the space of the image embeddings of `clip`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import UsageError
from mstemba.extractors import clip
from mstemba.extractors.weights import first_line

_BATCH = 64


@dataclass(frozen=True)
class TextEncoder:
    """The text tower of a backbone, ready to run."""

    embed: Callable[[Sequence[str]], NDArray[np.float32]]
    """N sentences to (N, F), in the space of the backbone's features; of any length."""
    scale: float
    """What the model multiplies cosines by to make them logits: 100 for OpenAI's CLIP."""


def load(model: str, weights: str, device: str) -> TextEncoder:
    """The text tower of an open_clip model, in float32.

    `weights` are those of the image tower, a tag or a file that holds both. Raises UsageError when
    the weights or the tokenizer are not here and cannot be fetched, or do not fit the model;
    `embed` does for a sentence that is longer than the model reads.
    """
    from mstemba.extractors import torchvision_ops

    torchvision_ops.ensure()
    tokenize = _tokenizer(model)
    network = clip.network(model, weights)
    del network.visual
    network.eval().requires_grad_(False).to(device)

    def embed(sentences: Sequence[str]) -> NDArray[np.float32]:
        import torch

        _check_lengths(model, tokenize, sentences)
        with torch.inference_mode():
            parts = [
                network.encode_text(tokenize(list(part)).to(device), normalize=False).float().cpu()
                for part in _batches(sentences)
            ]
        return torch.cat(parts).numpy()

    return TextEncoder(embed, float(network.logit_scale.exp()))


def _batches(sentences: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(sentences), _BATCH):
        yield sentences[first : first + _BATCH]


def _tokenizer(model: str) -> Any:
    """CLIP's own comes with open_clip; those of other text towers are fetched from the hub."""
    import open_clip

    try:
        with clip.quiet_logging():
            return open_clip.get_tokenizer(model)
    except Exception as error:  # a missing package, a hub, a socket: each raises its own kinds
        raise UsageError(
            f"the tokenizer of CLIP {model} is not in open_clip and could not be had "
            f"({first_line(error)}). Install `transformers` and be online once, or take a model "
            f"that reads as OpenAI's do, such as {clip.MODEL}"
        ) from None


def _check_lengths(model: str, tokenize: Any, sentences: Sequence[str]) -> None:
    # open_clip would cut a longer sentence without a word.
    most = int(tokenize.context_length)
    for sentence in sentences:
        if hasattr(tokenize, "encode"):
            count = len(tokenize.encode(sentence)) + 2  # and the marks of start and end
        else:
            count = len(tokenize.tokenizer(sentence).input_ids)
        if count > most:
            shown = sentence if len(sentence) <= 60 else f"{sentence[:59]}…"
            raise UsageError(
                f"{shown!r} is {count} tokens long, of which CLIP {model} reads {most}: "
                f"a label is a few words"
            )
