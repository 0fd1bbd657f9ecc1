"""The network on a GPU: exact, in chunks, as a CUDA graph, and beyond 32-bit offsets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mstemba.model.config import ModelConfig
from mstemba.model.convolution import convolve
from mstemba.model.mamba import CHUNK
from mstemba.model.mstemba import MSTemba
from mstemba.model.scan.backends import choose
from mstemba.model.scan.operations import selective_scan

pytestmark = pytest.mark.gpu
ARCHITECTURES = pytest.mark.parametrize("arch", ["mstemba", "mstemba-v3"])


def make(arch: str) -> MSTemba:
    torch.manual_seed(0)
    return MSTemba(ModelConfig(64, 7, arch, (32, 48, 64))).eval().cuda()


def test_float32_is_not_tf32() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv1d(256, 384, 3, padding=2, dilation=2), torch.randn(1, 500, 256)
    exact = convolve(x.double(), layer.double())
    found = convolve(x.cuda(), layer.float().cuda()).cpu().double()
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()  # TF32: 5e-4


def test_triton_is_taken_where_it_is_installed() -> None:
    pytest.importorskip("triton", reason="Triton has no wheels for Windows")
    assert choose("auto", torch.device("cuda")) == "triton"


@ARCHITECTURES
def test_scoring_in_chunks_is_one_pass(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, features = make(arch), torch.randn(1, 500, 64, device="cuda")
    with torch.no_grad():
        whole = model(features).logits
        monkeypatch.setitem(CHUNK, "cuda", 64)
        torch.testing.assert_close(model(features).logits, whole, rtol=0, atol=1e-5)


@ARCHITECTURES
def test_a_forward_pass_is_recorded_as_a_graph(arch: str) -> None:
    model, features = make(arch), torch.randn(1, 500, 64, device="cuda")
    with torch.no_grad():
        expected = model(features, checked=True).logits
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(features, checked=True)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = model(features, checked=True).logits
        graph.replay()
    assert torch.equal(found, expected)


def test_more_elements_than_32_bits_count() -> None:
    length, channels, states = 2_200_000, 1024, 16
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    torch.manual_seed(0)
    half = {"device": "cuda", "dtype": torch.bfloat16}
    u, delta = (torch.randn(1, length, channels, **half) for _ in range(2))
    B, C = (torch.randn(1, length, states, **half) for _ in range(2))
    A = -torch.rand(channels, states, device="cuda") - 1
    with torch.no_grad():
        whole = selective_scan(u, delta, A, B, C)
        # What happened 3,000 steps ago has decayed.
        tail = [t[:, -4000:].contiguous() for t in (u, delta, B, C)]
        alone = selective_scan(tail[0], tail[1], A, *tail[2:])
    torch.testing.assert_close(whole[:, -1000:], alone[:, -1000:])
