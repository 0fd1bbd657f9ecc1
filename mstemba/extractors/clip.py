"""CLIP image embeddings of any open_clip model, from a published tag or a local file."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstemba.errors import UsageError, first_line
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.weights import package_folder, reading, unavailable, unreachable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mstemba.extractors.feature_extractor import FeatureExtractor

MODEL, TAG = "ViT-L-14-quickgelu", "openai"
_HUB_OF_DEFAULT = "timm/vit_large_patch14_clip_224.openai/"
# The files that open_clip looks for in a repository of the hub, the preferred one first.
_HUB_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def describe(model: str) -> BackboneSpec:
    """Return the specification of an open_clip model, without importing torch.

    Raises:
        UsageError: open_clip has no such model; similar names are listed.
    """
    folder = config_folder()
    file = folder / f"{model}.json"
    if not file.is_file():
        names = sorted(file.stem for file in folder.glob("*.json"))
        similar = ", ".join(difflib.get_close_matches(model, names, n=6, cutoff=0))
        raise UsageError(
            f"unknown CLIP model {model!r}; the most similar models in {folder} are {similar}"
        )
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    sizes = config["vision_cfg"].get("image_size", 224)
    size = int(sizes[0] if isinstance(sizes, list) else sizes)
    return BackboneSpec(
        width=int(config["embed_dim"]),
        input_size=size,
        short_side=size,
        kind="image",
        cpu_batch=32,
        gpu_batch=64,
    )


def load(model: str, weights: str, device: str, precision: str) -> FeatureExtractor:
    """Load the image tower. Its features are not L2-normalised, like published CLIP features.

    A local file does not tell which activation it was trained with: OpenAI's own weights need a
    model whose name ends in `-quickgelu`, as the default's does.

    Raises:
        UsageError: The weights are missing and cannot be downloaded, or do not fit the model.
    """
    from mstemba.extractors import torchvision_ops
    from mstemba.extractors.feature_extractor import FeatureExtractor

    torchvision_ops.ensure()
    # open_clip always builds the text tower too; it is freed here.
    visual = load_network(model, weights).visual

    def forward(visual: nn.Module, images: Tensor) -> Tensor:
        # encode_image does the same, except that CoCa's visual returns its tokens too, and that
        # CoCa's encode_image normalises by default.
        found: Tensor | tuple[Tensor, ...] = visual(images)
        return found[0] if isinstance(found, tuple) else found

    return FeatureExtractor(visual, forward, visual.image_mean, visual.image_std, device, precision)


def load_network(model: str, weights: str) -> Any:
    """Load open_clip's network with both towers, on the CPU, with QuickGELU folded.

    Raises UsageError as `load` does.
    """
    if not Path(weights).is_file():
        return _published(model, weights)
    with reading(weights, f"CLIP {model}"):
        return _create(model, weights, _pixels(model))


def _published(model: str, tag: str) -> Any:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise UsageError(
            f"no published weights {tag!r} of {model}; its tags: {', '.join(tags) or 'none'}"
        )
    config = open_clip.get_pretrained_cfg(model, tag)
    # open_clip only warns when the activation is not the one the weights were trained with.
    quick = bool(config.get("quick_gelu", False))
    what = f"{tag!r} of CLIP {model}"
    hub, address = str(config.get("hf_hub") or ""), str(config.get("url") or "")
    cached = cached_file(hub) if hub else None
    if cached is not None:
        with reading(cached, f"CLIP {model}"):
            return _create(model, cached, _pixels(model, tag), quick)
    # Without a network the hub's client repeats each request for half a minute.
    reason = unreachable(_endpoint()) if hub else None
    if reason is None:
        try:
            return _create(model, tag, None, quick)
        except Exception as error:  # a hub, a socket: each raises its own kinds
            reason = first_line(error).split(". ")[0]
    raise unavailable(what, reason, _page(hub) if hub else address)


def _create(model: str, weights: str, pixels: dict[str, Any] | None, quick: bool = False) -> Any:
    import open_clip
    from open_clip.transformer import QuickGELU

    from mstemba.extractors.folding import fold_quick_gelu
    from mstemba.extractors.initialisation import SkipInitialisation

    # open_clip refuses files that lack a parameter, but not those of big_vision.
    skip = contextlib.nullcontext() if weights.endswith(".npz") else SkipInitialisation()
    with quiet_logging(), skip:
        network: nn.Module = open_clip.create_model(
            model, pretrained=weights, force_quick_gelu=quick, force_preprocess_cfg=pixels
        )
    fold_quick_gelu(network, QuickGELU)
    return network


def _pixels(model: str, tag: str | None = None) -> dict[str, Any]:
    """Return mean and standard deviation of pixels, of a tag or of a model's first tag."""
    import open_clip

    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(model)
    config = open_clip.get_pretrained_cfg(model, tags[0]) if tags else {}
    return {name: config[name] for name in ("mean", "std") if name in config}


def default_available() -> bool:
    """Return whether the default weights are in a cache."""
    old = Path.home() / ".cache" / "clip" / "ViT-L-14.pt"
    return cached_file(_HUB_OF_DEFAULT) is not None or old.is_file()


def cached_file(hub: str) -> str | None:
    """Return the weights file in the hub's cache, for `owner/repository/` or `.../file`.

    open_clip's own client asks the network even for files that are in the cache.
    """
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = hub.rpartition("/")
    names = [str(Path(file).with_suffix(".safetensors")), file] if file else _HUB_FILES
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((path for path in found if isinstance(path, str)), None)


def _page(hub: str) -> str:
    """Return where a person finds the weights file that `cached_file` looks for."""
    repository, _, file = hub.rpartition("/")
    return f"{file or f'{_HUB_FILES[0]} or {_HUB_FILES[-1]}'} of {_endpoint()}/{repository}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def config_folder() -> Path:
    """Return the folder of open_clip's model configurations; UsageError if it is missing."""
    return package_folder("open_clip", "open_clip_torch") / "model_configs"


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silence the hub's client, which logs each retry; the exception says what matters."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
