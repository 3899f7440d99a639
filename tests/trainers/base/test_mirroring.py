"""The key ``mirroring``: neither patches nor predictions are mirrored where left and right differ by the side alone."""

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

from nnunet_dvcl import trainers
from nnunet_dvcl.errors import UserError


@pytest.fixture
def mirrored(monkeypatch):
    """The images that were mirrored."""
    images, original = [], MirrorTransform._apply_to_image

    def spy(self, image, **params):
        images.append(image)
        return original(self, image, **params)

    monkeypatch.setattr(MirrorTransform, "_apply_to_image", spy)
    return images


@pytest.mark.parametrize("mirroring", [True, False])
@pytest.mark.parametrize("name", ["Supervised", "DVCL", "MT_WeakStrong", "CPS_Paper"])
def test_patches_and_predictions_are_mirrored_or_not(start, mirrored, name, mirroring):
    trainer = start(getattr(trainers, f"nnUNetTrainer{name}"), "3d_tiny", mirroring=mirroring)
    for loader in ("dataloader_train", "dataloader_unlabeled"):
        mirrored.clear()
        if hasattr(trainer, loader):
            next(getattr(trainer, loader))
            assert bool(mirrored) == mirroring, loader
    assert trainer.inference_allowed_mirroring_axes == ((0, 1, 2) if mirroring else None)


@pytest.mark.parametrize("mirroring", [True, False])
def test_a_checkpoint_from_before_the_key_was_trained_with_mirroring(build_trainer, tmp_path, mirroring):
    file = str(tmp_path / "checkpoint.pth")
    trainer = build_trainer(trainers.nnUNetTrainerSupervised, "2d_tiny")
    trainer.initialize()
    trainer.save_checkpoint(file)
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint["ssl_state"]["config"]["mirroring"]
    torch.save(checkpoint, file)
    resumed = build_trainer(trainers.nnUNetTrainerSupervised, "2d_tiny", mirroring=mirroring)
    if mirroring:
        resumed.load_checkpoint(file)
    else:
        with pytest.raises(UserError, match=r"ssl\.mirroring: True there, False here"):
            resumed.load_checkpoint(file)
