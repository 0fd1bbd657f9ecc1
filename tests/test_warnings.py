"""Warnings of mstemba are shown even while another thread is loading a file."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from mstemba.errors import MstembaWarning
from mstemba.model.weights import read_weights
from mstemba.reading.arrays import read_npz


def test_a_warning_is_not_lost_while_another_thread_reads(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(20_000)}, tmp_path / "weights.pt")
    np.savez(tmp_path / "scores.npz", scores=np.zeros(20_000))
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            read_weights(tmp_path / "weights.pt")
            read_npz(tmp_path / "scores.npz")

    thread = threading.Thread(target=read)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        seen: list[Warning | str] = []
        # Reading restores this function with the filters.
        warnings.showwarning = lambda message, *_: seen.append(message)
        thread.start()
        for number in range(300):
            warnings.warn(f"number {number}", MstembaWarning, stacklevel=1)
            time.sleep(0.002)
        ended.set()
        thread.join()
    assert len(seen) == 300
