import numpy as np
import pytest
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from nnunet_dvcl.data import ImageMask, UnlabeledDataset


@pytest.fixture
def labeled(tiny_dataset, dataset_class):
    return dataset_class(str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"), list(tiny_dataset.labeled))


def test_only_the_mask_of_the_image_is_visible(labeled):
    dataset = UnlabeledDataset([labeled])
    for case in dataset.identifiers:
        stored = labeled.load_case(case)[1][:]
        assert set(np.unique(stored)) == {-1, 0, 1, 2}
        data, mask, previous, properties = dataset.load_case(case)
        assert previous is None
        assert properties["class_locations"] is None
        assert mask.shape == stored.shape == (1, *data.shape[1:])
        np.testing.assert_array_equal(mask[:], np.where(stored == -1, -1, 0))


def test_nothing_of_a_mask_leads_to_labels(labeled):
    """Whole or in part, cropped and padded as nnU-Net's loader does it."""
    mask = UnlabeledDataset([labeled]).load_case("case_0")[1]
    bbox = [[-3, 50], [2, 9], [-1, 30]]
    views = [mask[:], mask[0], mask[0, 5:9, 3], mask[..., 4], crop_and_pad_nd(mask, bbox, -1, cast_cropped_to=np.int16)]
    for view in views:
        assert set(np.unique(view)) <= {-1, 0}
    assert views[-1].shape == (1, 53, 7, 31)
    assert (views[-1][:, :3] == -1).all()


def test_mask_is_lazy():
    class Stored:
        shape = (1, 10**6, 10**6, 10**6)

        def __getitem__(self, key):
            return np.full((2, 2), 7)

    assert (ImageMask(Stored())[0, :2, :2, 0] == 0).all()


def test_several_sources(tiny_dataset, labeled):
    folder = labeled.source_folder
    dataset = UnlabeledDataset([type(labeled)(folder, ["case_3"]), type(labeled)(folder, ["case_2", "case_0"])])
    assert dataset.identifiers == ["case_0", "case_2", "case_3"]
    assert len(dataset) == 3
    np.testing.assert_array_equal(dataset.load_case("case_3")[0][:], labeled.load_case("case_3")[0][:])


def test_images_can_be_written_to_and_stay_as_stored(labeled):
    """nnU-Net's transforms work in place; a read-only memory map would end the process."""
    data = UnlabeledDataset([labeled]).load_case("case_0")[0]
    crop = crop_and_pad_nd(data, [[0, 4], [0, 4], [0, 4]], 0)
    before = crop.copy()
    crop += 1
    np.testing.assert_array_equal(data[:, :4, :4, :4], before)
