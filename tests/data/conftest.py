import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy


@pytest.fixture(params=[nnUNetDatasetBlosc2, nnUNetDatasetNumpy])
def dataset_class(request, tiny_dataset):
    """nnU-Net's dataset class; the labeled folder of 3d_fullres is stored with it."""
    return request.getfixturevalue("as_numpy") if request.param is nnUNetDatasetNumpy else request.param
