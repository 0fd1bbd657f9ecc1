"""The backbones by name, and what each needs. Resolving a name imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mstemba.errors import UsageError
from mstemba.extractors import clip, efficientnet

if TYPE_CHECKING:
    from mstemba.extractors.encoder import FrameEncoder


@dataclass(frozen=True)
class Resolved:
    """A backbone whose weights are identified and not yet loaded."""

    name: str
    model: str
    weights: str
    """The tag, or the path of the file."""
    identity: str
    """`tag:...` or `sha256:...`: what decides the numbers."""
    width: int
    input_size: int

    @property
    def file(self) -> str | None:
        """The local weights file that the user named, so that a later `detect` finds it again."""
        local = self.identity.startswith("sha256:")
        named = local and self.weights != BACKBONES[self.name].default_weights()
        return str(Path(self.weights).resolve()) if named else None

    def load(self, device: str, precision: str) -> FrameEncoder:
        """Load the weights. Raises UsageError when they are not here and cannot be fetched."""
        return BACKBONES[self.name].load(self.model, self.weights, device, precision)


@dataclass(frozen=True)
class Backbone:
    """A family of backbones: what a user should know, and how to get it."""

    summary: str
    default_model: str
    default_weights: Callable[[], str]
    licence: str
    source: str
    describe: Callable[[str], tuple[int, int]]
    """Model name to (width, input size); UsageError lists the choices for an unknown one."""
    load: Callable[[str, str, str, str], FrameEncoder]
    """(model, weights, device, precision) to an encoder."""
    at_hand: Callable[[], bool]
    """Whether the default weights can be loaded without a network."""


BACKBONES = {
    "clip": Backbone(
        summary="CLIP image embedding, any open_clip model",
        default_model="ViT-L-14-quickgelu",
        default_weights=lambda: "openai",
        licence="MIT (OpenAI weights); other tags have their own",
        source="downloaded by open_clip, or a local file by --weights",
        describe=clip.describe,
        load=clip.load,
        at_hand=clip.default_at_hand,
    ),
    "efficientnet-lite0": Backbone(
        summary="ImageNet EfficientNet-Lite0, small and fast on a CPU",
        default_model="efficientnet-lite0",
        default_weights=efficientnet.packaged_weights,
        licence="Apache-2.0",
        source="installed with mstemba",
        describe=efficientnet.describe,
        load=efficientnet.load,
        at_hand=lambda: Path(efficientnet.packaged_weights()).is_file(),
    ),
}


def resolve(
    name: str, model: str | None, weights: str | None, fingerprint: Callable[[Path], str]
) -> Resolved:
    """Identify a backbone and its weights.

    `fingerprint` gives the SHA-256 of a local file. Raises UsageError for an unknown name or model.
    """
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}; there are {', '.join(BACKBONES)}")
    backbone = BACKBONES[name]
    model = model or backbone.default_model
    width, size = backbone.describe(model)
    weights = weights or backbone.default_weights()
    if Path(weights).is_file():
        identity = f"sha256:{fingerprint(Path(weights))}"
    elif "/" in weights or "\\" in weights or Path(weights).suffix:
        raise UsageError(f"--weights {weights}: no such file")
    else:
        identity = f"tag:{weights}"
    return Resolved(name, model, weights, identity, width, size)


def listing() -> list[dict[str, object]]:
    """One row a backbone: what a user chooses by, and whether its default weights are here."""
    rows: list[dict[str, object]] = []
    for name, backbone in BACKBONES.items():
        width, size = backbone.describe(backbone.default_model)
        rows.append(
            {
                "name": name,
                "summary": backbone.summary,
                "model": backbone.default_model,
                "width": width,
                "input": size,
                "licence": backbone.licence,
                "weights": backbone.source,
                "here": backbone.at_hand(),
            }
        )
    return rows
