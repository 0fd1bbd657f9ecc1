"""CLIP image embeddings through open_clip: any of its models, by published tag or local file."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstemba.errors import UsageError
from mstemba.extractors.weights import reading

if TYPE_CHECKING:
    from mstemba.extractors.encoder import FrameEncoder


def describe(model: str) -> tuple[int, int]:
    """(embedding width, input size) of an open_clip model, read without importing torch."""
    folder = _configs()
    file = folder / f"{model}.json"
    if not file.is_file():
        raise UsageError(
            f"unknown CLIP model {model!r}; of the models in {folder} "
            f"the nearest are {', '.join(_similar(folder, model))}"
        )
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    size = config["vision_cfg"].get("image_size", 224)
    return int(config["embed_dim"]), int(size[0] if isinstance(size, list) else size)


def load(model: str, weights: str, device: str, precision: str) -> FrameEncoder:
    """The image embedding, not L2-normalised, as the field's published CLIP features are.

    A local file cannot tell which activation it was trained with: OpenAI's own weights need a
    model whose name ends in `-quickgelu`, as the default's does. Raises UsageError when the weights
    are not here and cannot be fetched, or do not fit the model.
    """
    from mstemba.extractors import torchvision_ops
    from mstemba.extractors.encoder import FrameEncoder

    torchvision_ops.ensure()
    import open_clip

    local = Path(weights).is_file()
    if not local and weights not in open_clip.list_pretrained_tags_by_model(model):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise UsageError(f"no published weights {weights!r} of {model}; its tags: {tags}")
    if local:
        with reading(weights, f"CLIP {model}"):
            network = open_clip.create_model(
                model, pretrained=weights, force_preprocess_cfg=_pixels(model)
            )
    else:
        network = _fetch(model, weights)
    visual = network.visual
    return FrameEncoder(
        network, network.encode_image, visual.image_mean, visual.image_std, device, precision
    )


def _fetch(model: str, tag: str) -> Any:
    import open_clip

    try:
        with _quiet_logging():
            # open_clip only warns when the activation is not the one the weights were trained with.
            config = open_clip.get_pretrained_cfg(model, tag)
            quick = bool(config.get("quick_gelu", False))
            return open_clip.create_model(model, pretrained=tag, force_quick_gelu=quick)
    except Exception as error:  # a hub, a socket: each raises its own kinds
        reason = str(error).strip().split(". ")[0].splitlines() or [type(error).__name__]
        raise UsageError(
            f"the weights {tag!r} of CLIP {model} are not here and could not be downloaded "
            f"({reason[0]}). Download {_where(model, tag)} on another machine "
            f"and give the file by --weights"
        ) from None


def _pixels(model: str) -> dict[str, Any]:
    """Mean and deviation of pixels that the published weights of this model share."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    config = open_clip.get_pretrained_cfg(model, tags[0]) if tags else {}
    return {name: config[name] for name in ("mean", "std") if name in config}


def default_at_hand() -> bool:
    """Whether a cache of the hub holds something for the default weights."""
    caches = [
        Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub",
        Path.home() / ".cache" / "clip",
    ]
    names = ("*vit_large_patch14_clip_224.openai*", "ViT-L-14.pt")
    return any(any(cache.glob(name)) for cache in caches if cache.is_dir() for name in names)


def _configs() -> Path:
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise UsageError("open_clip is not installed; run `pip install open_clip_torch`")
    return Path(package.origin).parent / "model_configs"


def _similar(folder: Path, model: str) -> list[str]:
    names = sorted(file.stem for file in folder.glob("*.json"))
    return difflib.get_close_matches(model, names, n=6, cutoff=0)


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    # The hub's client logs each of its retries; what matters is in the exception.
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _where(model: str, tag: str) -> str:
    import open_clip

    config = open_clip.get_pretrained_cfg(model, tag)
    return str(config.get("hf_hub") or config.get("url") or f"{model} {tag}").rstrip("/")
