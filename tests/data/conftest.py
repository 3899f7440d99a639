import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy


@pytest.fixture
def as_numpy(tiny_dataset):
    """The labeled folder of 3d_fullres in nnU-Net's NumPy format, unpacked, as it is in training."""
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    source = nnUNetDatasetBlosc2(str(folder))
    for case in source.identifiers:
        data, seg, _, properties = source.load_case(case)
        nnUNetDatasetNumpy.save_case(data[:], seg[:], properties, str(folder / case))
        np.save(folder / f"{case}.npy", data[:])
        np.save(folder / f"{case}_seg.npy", seg[:])
    for file in folder.glob("*.b2nd"):
        file.unlink()
    return nnUNetDatasetNumpy


@pytest.fixture(params=[nnUNetDatasetBlosc2, nnUNetDatasetNumpy])
def dataset_class(request, tiny_dataset):
    """nnU-Net's dataset class; the labeled folder of 3d_fullres is stored with it."""
    return request.getfixturevalue("as_numpy") if request.param is nnUNetDatasetNumpy else request.param
