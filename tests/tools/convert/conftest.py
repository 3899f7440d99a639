from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from miniatures import LAYOUTS, segmentation_of, write


@pytest.fixture
def make_release(tmp_path: Path) -> Callable[[str], Path]:
    """Data set -> the folder of its miniature; the segmentations have every value of the release."""

    def make(dataset: str) -> Path:
        rng = np.random.default_rng(0)
        source = tmp_path / "downloads" / dataset
        for image, segmentation in LAYOUTS[dataset]:
            write(source / image, rng.normal(0, 100, (8, 9, 10)).astype(np.int16))
            if segmentation:
                write(source / segmentation, segmentation_of(dataset))
        return source

    return make


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty nnUNet_raw; nnU-Net's other folders are not there."""
    folder = tmp_path / "raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return folder
