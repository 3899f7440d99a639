import numpy as np
import pytest
import torch

from nnunet_dvcl.data.folders import DatasetFolders
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.tools.plots.cases import Case, choose_cases, load_cases, tiles, windows

SHAPES = [
    ((20, 30, 17), (16, 16, 16)),  # tiles that overlap
    ((16, 32, 16), (16, 16, 16)),
    ((5, 40, 9), (16, 16, 16)),  # smaller than the patch
    ((7, 20, 30), (16, 16)),
    ((3, 5, 40), (16, 16)),
]


def numbered_case(shape) -> Case:
    """First channel: the number of the voxel, second: minus that; truth: the number modulo 5, minus 1."""
    number = np.arange(np.prod(shape)).reshape(shape)
    return Case(np.stack([number, -number]).astype(np.float32), (number % 5 - 1)[None].astype(np.int8))


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_each_voxel_is_shown_once_and_padding_never(shape, patch_size):
    case = numbered_case(shape)
    shown = []
    for image, truth in list(tiles(case, patch_size, 2)):
        assert image.shape == (len(truth), 2, *patch_size)
        assert len(image) <= (2 if len(patch_size) == 2 else 1)
        number, minus = (channel[truth >= 0] for channel in image.transpose(0, 1))
        assert torch.equal(number, -minus)
        assert torch.equal(truth[truth >= 0], number.long() % 5 - 1)
        shown += number.long().tolist()
    assert sorted(shown) == [number for number in range(np.prod(shape)) if number % 5]


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_the_number_of_tiles_is_known_before(shape, patch_size):
    assert len(windows(shape, patch_size, 2)) == len(list(tiles(numbered_case(shape), patch_size, 2)))


def test_a_case_stays_as_it_is():
    case = numbered_case((5, 40, 9))
    list(tiles(case, (16, 16, 16), 2))
    assert np.array_equal(case.truth, numbered_case((5, 40, 9)).truth)


@pytest.fixture
def choose(tiny_dataset):
    """``choose(fold, *wanted)`` for 3d_tiny."""

    def run(fold, *wanted):
        return choose_cases(DatasetFolders.of(*tiny_dataset.managers()), fold, wanted)

    return run


def test_the_first_validation_cases_or_the_wanted_ones(choose, tiny_dataset):
    tiny_dataset.write_splits({"train": ["case_0"], "val": [f"case_{i}" for i in (5, 3, 4, 2, 1)]})
    assert choose("0") == ["case_1", "case_2", "case_3", "case_4"]
    assert choose("all") == ["case_0", "case_1", "case_2", "case_3"]
    assert choose("0", "case_5", "case_0") == ["case_5", "case_0"]
    assert choose("7", "case_5") == ["case_5"], "no split is needed for a case that is named"


def test_an_unknown_case_is_named(choose, tiny_dataset):
    with pytest.raises(
        UserError, match=r"(?s)cannot be shown:\n  - case_9: is not there; did you mean case_\d.*- liver: "
    ):
        choose("0", "case_9", "case_1", "liver")


def test_cases_are_read_from_the_preprocessed_data(tiny_dataset):
    folders = DatasetFolders.of(*tiny_dataset.managers())
    cases = load_cases(folders, ["case_4", "case_1"], None, None)
    assert list(cases) == ["case_4", "case_1"]
    for name, (data, truth) in cases.items():
        expected = folders.dataset_class()(folders.labeled).load_case(name)
        assert np.array_equal(data[:], expected[0][:])
        assert np.array_equal(truth[:], expected[1][:])
