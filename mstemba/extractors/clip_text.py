"""CLIP's text tower: embeddings of sentences in the space of the image embeddings of `clip`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import UsageError, first_line
from mstemba.extractors import clip

_BATCH = 64


@dataclass(frozen=True)
class TextEncoder:
    """The text tower of a backbone that is ready to run."""

    embed: Callable[[Sequence[str]], NDArray[np.float32]]
    """N sentences to (N, F), in the space of the backbone's features; not normalised."""
    scale: float
    """The factor that turns cosines into logits: 100 for OpenAI's CLIP."""


def load(model: str, weights: str, device: str) -> TextEncoder:
    """Load the text tower of an open_clip model, in float32.

    Args:
        model: open_clip's name.
        weights: Of the image tower: a tag, or a file that holds both towers.
        device: As torch names it.

    Raises:
        UsageError: The weights or the tokenizer are missing and cannot be downloaded, or do not fit
            the model. `embed` raises it for a sentence that is too long for the model.
    """
    from mstemba.extractors import torchvision_ops

    torchvision_ops.ensure()
    tokenize = _tokenizer(model)
    network = clip.load_network(model, weights)
    del network.visual
    network.eval().requires_grad_(False).to(device)

    def embed(sentences: Sequence[str]) -> NDArray[np.float32]:
        import torch

        _check_lengths(model, tokenize, sentences)
        with torch.inference_mode():
            parts = []
            for first in range(0, len(sentences), _BATCH):
                tokens = tokenize(list(sentences[first : first + _BATCH])).to(device)
                parts.append(network.encode_text(tokens, normalize=False).float().cpu())
        return torch.cat(parts).numpy()

    return TextEncoder(embed, float(network.logit_scale.exp()))


def _tokenizer(model: str) -> Any:
    """Return a model's tokenizer: CLIP's comes with open_clip, others come from the hub."""
    import open_clip

    try:
        with clip.quiet_logging():
            return open_clip.get_tokenizer(model)
    except Exception as error:  # a missing package, a hub, a socket: each raises its own kinds
        raise UsageError(
            f"the tokenizer of CLIP {model} is not part of open_clip and could not be loaded "
            f"({first_line(error)}). Install `transformers` and be online once, or use a model "
            f"with OpenAI's tokenizer, such as {clip.MODEL}"
        ) from None


def _check_lengths(model: str, tokenize: Any, sentences: Sequence[str]) -> None:
    # open_clip silently truncates longer sentences.
    most = int(tokenize.context_length)
    for sentence in sentences:
        if hasattr(tokenize, "encode"):
            count = len(tokenize.encode(sentence)) + 2  # start and end token
        else:
            count = len(tokenize.tokenizer(sentence).input_ids)
        if count > most:
            shown = sentence if len(sentence) <= 60 else f"{sentence[:59]}…"
            raise UsageError(
                f"{shown!r} has {count} tokens, but CLIP {model} takes {most}: "
                f"expected a label of a few words"
            )
