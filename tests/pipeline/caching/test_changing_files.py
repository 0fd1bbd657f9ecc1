"""Files that are replaced between their identification and their reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mstemba.data_manifests.manifest import load_manifest
from mstemba.errors import StoreError, UsageError
from mstemba.extractors import efficientnet, registry
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.checkpoint import open_checkpoint
from mstemba.pipeline.features.npy_folder import NpyFolder
from mstemba.tensor_files.reading import read_tensors
from tests.training import fit, make_workspace, videos_of


def test_weights_of_a_backbone(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    tensors = read_tensors(Path(efficientnet.packaged_weights()))
    torch.save(tensors, file)
    backbone = registry.resolve("efficientnet-lite0", None, str(file), Fingerprints().of)
    backbone.load("cpu", "float32")
    torch.save({name: value * 2 for name, value in tensors.items()}, file)
    with pytest.raises(UsageError, match=r"w\.pth: replaced while it was being loaded"):
        backbone.load("cpu", "float32")


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    id = min(videos_of(workspace))
    source = NpyFolder(workspace / "npy")
    video = load_manifest(workspace / "manifest.json").videos[id]
    assert source.key(video, Fingerprints())
    source.values(id)
    file = workspace / "npy" / f"{id}.npy"
    np.save(file, np.load(file) + 1)
    with pytest.raises(StoreError, match=rf"{id}\.npy: replaced while it was being read"):
        source.values(id)


def test_a_checkpoint(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    checkpoint = open_checkpoint(fit(workspace).run)
    checkpoint.load("cpu")
    other = open_checkpoint(fit(workspace, seed=1).run)
    checkpoint.weights.write_bytes(other.weights.read_bytes())
    with pytest.raises(UsageError, match=r"model\.safetensors: replaced while it was being read"):
        checkpoint.load("cpu")
