"""The backbones by name. Resolving a name imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mstemba.errors import UsageError
from mstemba.extractors import clip, clip_text, efficientnet, i3d, pytorchvideo
from mstemba.extractors.backbone_spec import BackboneSpec
from mstemba.extractors.weights import check_tag, hub_file
from mstemba.reading.files import found_instead, real_path
from mstemba.tensor_files.formats import holds_tensors

if TYPE_CHECKING:
    from mstemba.extractors.feature_extractor import FeatureExtractor


@dataclass(frozen=True)
class ResolvedBackbone:
    """A backbone whose weights are identified and not yet loaded."""

    name: str
    model: str
    weights: str
    """The tag, or the path of the file."""
    identity: str
    """`tag:...` or `sha256:...`: what decides the numbers."""
    spec: BackboneSpec
    fingerprint: Callable[[Path], str] = field(compare=False, repr=False)
    """Returns the SHA-256 of a local file."""

    @property
    def file(self) -> str | None:
        """The local weights file that the user named, so that a later `detect` finds it again."""
        local = self.identity.startswith("sha256:")
        named = local and self.weights != BACKBONES[self.name].default_weights()
        return str(real_path(Path(self.weights))) if named else None

    def load(self, device: str, precision: str) -> FeatureExtractor:
        """Load the weights.

        Raises:
            UsageError: They are missing and cannot be downloaded, or have just been replaced.
        """
        loaded = BACKBONES[self.name].load(self.model, self.weights, device, precision)
        self._confirm()
        return loaded

    def load_text(self, device: str) -> clip_text.TextEncoder:
        """Load the text tower. Raises UsageError as `load` and `text_loader` do."""
        loaded = text_loader(self.name)(self.model, self.weights, device)
        self._confirm()
        return loaded

    def _confirm(self) -> None:
        """Raise UsageError if the weights that were loaded are not those that were identified."""
        if self.identity.startswith("sha256:"):
            found = self.fingerprint(Path(self.weights))
            if self.identity != f"sha256:{found}":
                raise UsageError(
                    f"{self.weights}: replaced while it was being loaded; run the same command "
                    f"again"
                )


@dataclass(frozen=True)
class Backbone:
    """A backbone as users name it: how it is described, and how it is loaded."""

    summary: str
    default_model: str
    default_weights: Callable[[], str]
    licence: str
    source: str
    """Where the weights come from, with the address if the default ones are a single file."""
    describe: Callable[[str], BackboneSpec]
    """Model name to its specification. Raises UsageError, with the choices, for an unknown one."""
    load: Callable[[str, str, str, str], FeatureExtractor]
    """(model, weights, device, precision) to a FeatureExtractor."""
    available: Callable[[], bool]
    """Whether the default weights can be loaded without a network."""
    published: Mapping[str, str] | None
    """Address by tag; None if only the backbone's own library knows the tags."""
    many_models: bool = False
    load_text: Callable[[str, str, str], clip_text.TextEncoder] | None = None
    """(model, weights, device) to a TextEncoder; None if the backbone has no text tower."""


_I3D = Backbone(
    summary="Inception-I3D (RGB), a snippet of frames at a time",
    default_model=i3d.MODEL,
    default_weights=lambda: "imagenet",
    licence="Apache-2.0 (the weights' repository)",
    source=f"downloaded from {i3d.PUBLISHED['imagenet']}, or a file by --weights",
    describe=i3d.describe,
    load=i3d.load,
    available=lambda: holds_tensors(hub_file(i3d.PUBLISHED["imagenet"])),
    published=i3d.PUBLISHED,
)


def _pytorchvideo(name: str, network: pytorchvideo.Network) -> Backbone:
    address = network.published["kinetics"]
    return Backbone(
        summary=f"{network.summary} (Kinetics-400), by pytorchvideo",
        default_model=name,
        default_weights=lambda: "kinetics",
        licence="Apache-2.0 (pytorchvideo); the weights state none of their own",
        source=f"downloaded from {address}, or a file by --weights",
        describe=pytorchvideo.describe,
        load=pytorchvideo.load,
        available=lambda: pytorchvideo.installed() and holds_tensors(hub_file(address)),
        published=network.published,
    )


BACKBONES = {
    "clip": Backbone(
        summary="CLIP image embedding, any open_clip model",
        default_model=clip.MODEL,
        default_weights=lambda: clip.TAG,
        licence="MIT (OpenAI weights); other tags have their own",
        source="downloaded by open_clip, or a local file by --weights",
        describe=clip.describe,
        load=clip.load,
        available=clip.default_available,
        published=None,
        many_models=True,
        load_text=clip_text.load,
    ),
    "efficientnet-lite0": Backbone(
        summary="ImageNet EfficientNet-Lite0, small and fast on a CPU",
        default_model=efficientnet.MODEL,
        default_weights=efficientnet.packaged_weights,
        licence="Apache-2.0",
        source="installed with mstemba",
        describe=efficientnet.describe,
        load=efficientnet.load,
        available=lambda: holds_tensors(Path(efficientnet.packaged_weights())),
        published={},
    ),
    "i3d": _I3D,
    "i3d-whole-clip": replace(
        _I3D,
        summary="Inception-I3D (RGB), the whole video convolved at once",
        describe=i3d.describe_whole_clip,
        load=i3d.load_whole_clip,
    ),
    **{name: _pytorchvideo(name, network) for name, network in pytorchvideo.NETWORKS.items()},
}


def resolve(
    name: str, model: str | None, weights: str | None, fingerprint: Callable[[Path], str]
) -> ResolvedBackbone:
    """Identify a backbone and its weights, without loading them.

    Args:
        name: One of `BACKBONES`.
        model: A model of that backbone. Default: its own.
        weights: A published tag or a local file. Default: the backbone's.
        fingerprint: Returns the SHA-256 of a local file.

    Raises:
        UsageError: The name, the model or the tag is unknown, or the file does not exist.
    """
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}; expected one of {', '.join(BACKBONES)}")
    backbone = BACKBONES[name]
    model = model or backbone.default_model
    if model != backbone.default_model and not backbone.many_models:
        raise UsageError(
            f"unknown model {model!r} of backbone {name}, which has "
            f"only {backbone.default_model}; omit --model"
        )
    spec = backbone.describe(model)
    weights = os.path.expanduser(weights) if weights else backbone.default_weights()
    if Path(weights).is_file():
        identity = f"sha256:{fingerprint(Path(weights))}"
    elif "/" in weights or "\\" in weights or Path(weights).suffix:
        raise UsageError(f"--weights {weights}: {found_instead(weights)}, expected a file")
    else:
        if backbone.published is not None:
            check_tag(weights, backbone.published, name)
        identity = f"tag:{weights}"
    return ResolvedBackbone(name, model, weights, identity, spec, fingerprint)


def text_loader(name: str) -> Callable[[str, str, str], clip_text.TextEncoder]:
    """Return the function that loads a backbone's text tower.

    Raises:
        UsageError: The backbone has none.
    """
    load = BACKBONES[name].load_text
    if load is None:
        others = ", ".join(other for other, backbone in BACKBONES.items() if backbone.load_text)
        raise UsageError(
            f"backbone {name} was trained on images without text: it has no text tower, so it "
            f"cannot tell how well a label fits an image. Backbones that can: {others}"
        )
    return load


def listing() -> list[dict[str, object]]:
    """Return one row for each backbone, for `mstemba backbones`.

    `here` says whether a file with its default weights is available without a network.
    """
    rows: list[dict[str, object]] = []
    for name, backbone in BACKBONES.items():
        spec = backbone.describe(backbone.default_model)
        rows.append(
            {
                "name": name,
                "summary": backbone.summary,
                "model": backbone.default_model,
                "kind": spec.kind,
                "text": backbone.load_text is not None,
                "width": spec.width,
                "input": spec.input_size,
                "licence": backbone.licence,
                "weights": backbone.source,
                "here": backbone.available(),
            }
        )
    return rows
