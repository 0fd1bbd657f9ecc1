"""CLIP image embeddings of any open_clip model, from a published tag or a local file."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from mstemba.errors import UsageError, first_line
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.weights import (
    check_cached,
    does_not_fit,
    package_folder,
    read_weights,
    unavailable,
    unreachable,
)
from mstemba.limits import WIDEST
from mstemba.reading.typed import read_json
from mstemba.tensor_files.formats import NPZ, holds_tensors, tensor_format
from mstemba.tensor_files.mismatch import describe_mismatch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mstemba.extractors.feature_extractor import FeatureExtractor

MODEL, TAG = "ViT-L-14-quickgelu", "openai"
_HUB_OF_DEFAULT = "timm/vit_large_patch14_clip_224.openai/"
_ADDRESS_OF_DEFAULT = "https://openaipublic.azureedge.net/clip/models/ViT-L-14.pt"
# What only the files that OpenAI published hold: TorchScript archives of models with QuickGELU.
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
# The files that open_clip looks for in a repository of the hub, the preferred one first.
_HUB_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


_Size = Annotated[int, Meta(ge=1, le=WIDEST)]


class _Vision(Struct):
    # Not tuple[_Size, _Size]: in a union with bounded integers it crashes msgspec 0.22.
    image_size: _Size | list[_Size] = 224
    width: _Size | None = None
    patch_size: _Size | None = None
    layers: _Size | list[_Size] | None = None


class _Text(Struct):
    vocab_size: _Size | None = None
    width: _Size | None = None


class _Config(Struct):
    """What is read of a model's configuration in open_clip."""

    embed_dim: _Size
    vision_cfg: _Vision
    text_cfg: _Text
    multimodal_cfg: dict[str, Any] = {}


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
    config = read_json(file, _Config)
    sizes = config.vision_cfg.image_size
    size = sizes[0] if isinstance(sizes, list) else sizes
    return BackboneSpec(
        width=config.embed_dim,
        input_size=size,
        short_side=size,
        kind="image",
        cpu_batch=32,
        gpu_batch=64,
    )


def load(model: str, weights: str, device: str, precision: str) -> FeatureExtractor:
    """Load the image tower. Its features are not L2-normalised, like published CLIP features.

    A local file does not tell which activation it was trained with: OpenAI's weights need a model
    whose name ends in `-quickgelu`, as the default's does, except in the files that OpenAI itself
    published, which are recognised.

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
    return _from_file(model, weights, _pixels(model))


def _published(model: str, tag: str) -> Any:
    import open_clip

    from mstemba.extractors.initialisation import SkipInitialisation

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
    source = _page(hub) if hub else address
    cached = (cached_file(hub) if hub else None) or _downloaded_by_address(address)
    if cached is not None:
        file = check_cached(Path(cached), source)
        return _from_file(model, file, _pixels(model, tag), quick)
    # Without a network the hub's client repeats each request for half a minute.
    reason = unreachable(_endpoint()) if hub else None
    if reason is None:
        try:
            with quiet_logging(), SkipInitialisation():
                network = open_clip.create_model(model, pretrained=tag, force_quick_gelu=quick)
            return _folded(network)
        except Exception as error:  # a hub, a socket: each raises its own kinds
            reason = first_line(error).split(". ")[0]
    raise unavailable(what, reason, source)


def _from_file(model: str, weights: str, pixels: dict[str, Any], quick: bool = False) -> nn.Module:
    import open_clip

    from mstemba.extractors.initialisation import SkipInitialisation

    tensors = None
    if not _is_of_big_vision(weights):
        tensors = read_weights(weights, f"CLIP {model}", _source(model))
        quick = quick or set(_OPENAI_SIZES) <= tensors.keys()
        unused = (*_OPENAI_SIZES, "attn_mask")  # a constant, in traced models of open_clip
        tensors = {name: value for name, value in tensors.items() if name not in unused}
    # Files of big_vision may lack a parameter.
    skip = contextlib.nullcontext() if tensors is None else SkipInitialisation()
    with quiet_logging(), skip:
        network: nn.Module = open_clip.create_model(
            model, pretrained_hf=False, force_quick_gelu=quick, force_preprocess_cfg=pixels
        )
        _fill(network, model, weights, tensors)
    return _folded(network)


def _is_of_big_vision(weights: str) -> bool:
    """Return whether open_clip reads a file as arrays of big_vision."""
    try:
        return weights.endswith(".npz") and tensor_format(Path(weights)) == NPZ
    except ValueError:
        return False


def _fill(
    network: nn.Module, model: str, weights: str, tensors: Mapping[str, Tensor] | None
) -> None:
    """Load tensors by open_clip, which adapts names and shapes of several kinds of files.

    Args:
        network: Changed in place.
        model: For messages.
        weights: The file.
        tensors: The file's; None if open_clip reads it.

    Raises:
        UsageError: They do not fit.
    """
    from open_clip import factory

    adapted = [tensors or {}]
    hook = network.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
        lambda module, state, *rest: adapted.append(state)
    )
    own = factory.load_state_dict
    if tensors is not None:  # open_clip's reader takes a file for what its suffix says
        factory.load_state_dict = lambda *args, **options: dict(tensors)
    try:
        factory.load_checkpoint(network, weights if tensors is None else "tensors")
    except Exception as error:  # of shapes, of names, or of a file of big_vision
        mismatch = describe_mismatch(network.state_dict(), adapted[-1])
        if tensors is None or not mismatch:
            mismatch = first_line(error)
        advice = _similar_models(model, tensors or {}) or f"Use {_source(model)}"
        raise does_not_fit(weights, f"CLIP {model}", mismatch, adapted[-1], advice) from None
    finally:
        factory.load_state_dict = own
        hook.remove()


def _similar_models(model: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Return which other models of open_clip have the sizes of some tensors; None if none has."""
    first, words = tensors.get("visual.conv1.weight"), tensors.get("token_embedding.weight")
    projection = tensors.get("text_projection")
    if first is None or words is None or projection is None:
        return None
    if (first.ndim, words.ndim, projection.ndim) != (4, 2, 2):
        return None
    parts = (name.split(".") for name in tensors if name.startswith("visual.transformer."))
    blocks = {place[3] for place in parts if len(place) > 3}
    table = tensors.get("visual.positional_embedding")
    positions = 0 if table is None or table.ndim == 0 else len(table) - 1
    found = (
        projection.shape[-1], first.shape[0], first.shape[-1], len(blocks),
        round(max(positions, 0) ** 0.5) * first.shape[-1], *words.shape,
    )  # fmt: skip
    names = [
        file.stem
        for file in sorted(config_folder().glob("*.json"))
        if _sizes(read_json(file, _Config)) == found
    ]
    if not names or model in names:
        return None
    return f"Its sizes are those of --model {' or '.join(names)}"


def _sizes(config: _Config) -> tuple[Any, ...]:
    """Return a model's sizes: embedding, width, patch, blocks, image, vocabulary, text width."""
    vision, text = config.vision_cfg, config.text_cfg
    if config.multimodal_cfg:  # CoCa
        return ()
    towers = (vision.width, vision.patch_size, vision.layers, vision.image_size)
    return (config.embed_dim, *towers, text.vocab_size, text.width)


def _folded(network: nn.Module) -> nn.Module:
    from open_clip.transformer import QuickGELU

    from mstemba.extractors.folding import fold_quick_gelu

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
    cached = cached_file(_HUB_OF_DEFAULT)
    return holds_tensors(Path(cached or _downloaded_by_address(_ADDRESS_OF_DEFAULT) or ""))


def _downloaded_by_address(address: str) -> str | None:
    """Return the file in the cache that OpenAI's clip and older versions of open_clip use."""
    file = Path.home() / ".cache" / "clip" / address.rsplit("/", 1)[-1]
    return str(file) if address and holds_tensors(file) else None


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


def _source(model: str) -> str:
    """Return where a person finds the weights of a model's first tag."""
    import open_clip

    for tag in open_clip.list_pretrained_tags_by_model(model)[:1]:
        config = open_clip.get_pretrained_cfg(model, tag)
        return _page(config["hf_hub"]) if config.get("hf_hub") else str(config.get("url"))
    return f"a file with the weights of open_clip's {model}"


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
