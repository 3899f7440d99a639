import numpy as np
import pytest
import torch

from nnunet_dvcl.diagnostics.validation_voxels import draw_validation_patches


def draw(tiny, configuration="3d_tiny", cases=("case_4", "case_5"), number=6):
    plans_manager, manager = tiny.managers(configuration)
    folder = tiny.preprocessed / manager.data_identifier
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(folder))(str(folder), list(cases))
    return draw_validation_patches(
        dataset, number, manager.patch_size, plans_manager.get_label_manager(tiny.dataset_json)
    )


@pytest.mark.parametrize(("configuration", "patch"), [("2d_tiny", (16, 16)), ("3d_tiny", (16, 16, 16))])
def test_patches_and_their_truth(tiny_dataset, configuration, patch):
    images, labels = draw(tiny_dataset, configuration)
    assert images.shape == (6, 1, *patch)
    assert labels.shape == (6, *patch)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert set(labels.unique().tolist()) <= {-1, 0, 1, 2}
    assert all((patch_labels > 0).any() for patch_labels in labels), "each patch is drawn around a foreground voxel"


def test_they_are_the_same_each_time_and_leave_the_random_state_alone(tiny_dataset):
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    first = draw(tiny_dataset)
    assert np.random.rand() == expected
    again = draw(tiny_dataset)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
