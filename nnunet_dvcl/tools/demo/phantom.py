"""A seeded body phantom in CT-like intensities: the demo's scans, which no one has to download.

Patient axes are nnU-Net's array axes [z, y, x] in millimeters from the center of the body: z grows towards the head,
y towards the back, x towards the patient's left. An organ is a chain of balls that are joined by cones.
"""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

FIELD_OF_VIEW = (160.0, 200.0, 240.0)
"""Extent of every scan in millimeters [z, y, x]; a finer grid means smaller voxels, not a larger body."""

AIR, FAT, MUSCLE = -1000.0, -90.0, 55.0
"""Intensities of what is no organ, in Hounsfield units."""

BODY_RADII = (88.0, 110.0)
"""Half axes [y, x] of the trunk's outline in millimeters."""


class Part(NamedTuple):
    """Something in the body: balls (z, y, x, radius) in millimeters in order along it, and what a scan shows of it.

    organ: its name, or None where it has no label.
    plain: range of its intensity without contrast agent, in Hounsfield units; a patient's is drawn from it.
    uptake: what the agent adds before it comes, when it comes by the arteries, by the veins, and minutes later.
    """

    organ: str | None
    balls: tuple[tuple[float, float, float, float], ...]
    plain: tuple[float, float]
    uptake: tuple[float, float, float, float] = (0, 0, 0, 0)


# Painted in this order: where two overlap, the later one wins, so that they touch.
_ANATOMY = (
    Part(None, ((90, 53, 0, 19), (-90, 49, 0, 21)), (160, 320)),  # spine
    Part("liver", ((25, -2, -48, 43), (30, -28, -12, 31), (36, -42, 24, 14)), (10, 65), (0, 10, 55, 30)),
    Part("spleen", ((44, 34, 66, 18), (22, 30, 77, 20), (2, 24, 76, 15)), (40, 55), (0, 75, 65, 30)),
    Part("stomach", ((46, -2, 46, 23), (20, -32, 48, 23), (0, -44, 20, 15)), (0, 180)),
    Part("colon", ((-76, 2, -62, 15), (-14, -4, -68, 14)), (0, 200)),
    Part("colon", ((-76, 4, 62, 14), (-4, 0, 68, 13)), (0, 200)),
    Part("pancreas", ((-2, -16, -22, 16), (8, -14, 10, 13), (16, 8, 44, 11)), (20, 45), (0, 65, 45, 20)),
    Part("kidneys", ((-12, 40, -46, 16), (-34, 34, -56, 19), (-54, 38, -50, 16)), (30, 40), (0, 120, 150, 110)),
    Part("kidneys", ((-2, 40, 46, 16), (-24, 34, 56, 19), (-44, 38, 50, 16)), (30, 40), (0, 120, 150, 110)),
    Part("vessels", ((80, 8, -22, 11), (0, 12, -16, 11), (-80, 20, -13, 10)), (35, 50), (0, 20, 110, 70)),
    Part("vessels", ((80, 24, 9, 11), (0, 20, 7, 10), (-80, 19, 6, 9)), (35, 50), (0, 260, 110, 70)),
)

_NAMES = dict.fromkeys(part.organ for part in _ANATOMY if part.organ)

ORGANS: dict[str, int] = {name: label for label, name in enumerate(_NAMES, start=1)}
"""Name of each organ -> its label; 0 is the background."""


def make_case(seed: int, shape: tuple[int, int, int] = (32, 40, 48)) -> tuple[np.ndarray, np.ndarray]:
    """One patient: image float32 in Hounsfield units and labels uint8 as in ORGANS, [z, y, x] each.

    The scan always covers FIELD_OF_VIEW. The same seed and shape give the same voxels.
    """
    rng = np.random.default_rng(seed)
    points = _deformed_grid(rng, shape)
    voxel = float(np.mean(voxel_size(shape)))
    time, dose = rng.uniform(0, 3), rng.uniform(0.7, 1.3)
    image, labels = _body(points), np.zeros(shape, np.uint8)

    for intensity, balls in _bowel(rng):
        image = _mix(image, intensity, _distance(points, balls), voxel)
    plain = {part.organ: rng.uniform(*part.plain) for part in _ANATOMY}
    for part in _ANATOMY:
        distance = _distance(points, _vary(rng, part.balls))
        intensity = plain[part.organ] + dose * np.interp(time, range(4), part.uptake)
        image = _mix(image, intensity, distance, voxel)
        labels[distance < 0] = ORGANS.get(part.organ, 0)
    noise = rng.normal(0, rng.uniform(10, 35), shape)
    return (image + noise).astype(np.float32), labels


def voxel_size(shape: tuple[int, int, int]) -> tuple[float, float, float]:
    """Spacing [z, y, x] in millimeters of a scan of `shape` voxels."""
    return tuple(extent / voxels for extent, voxels in zip(FIELD_OF_VIEW, shape, strict=True))


def write_dataset(
    raw_folder: str | Path,
    dataset_name: str = "Dataset900_Phantom",
    num_labeled: int = 2,
    num_unlabeled: int = 40,
    num_test: int = 8,
    seed: int = 0,
    shape: tuple[int, int, int] = (32, 40, 48),
) -> Path:
    """Writes a raw data set of nnU-Net, test scans with their truth in `labelsTs/`, and returns its folder.

    Patient i is `make_case(seed * 10000 + i)`.
    """
    folder = Path(raw_folder) / dataset_name
    parts = ["Tr"] * num_labeled + ["Tr_unlabeled"] * num_unlabeled + ["Ts"] * num_test
    for i, part in enumerate(parts):
        image, labels = make_case(seed * 10000 + i, shape)
        _write(image, folder / f"images{part}/phantom_{i:03d}_0000.nii.gz")
        if part != "Tr_unlabeled":
            _write(labels, folder / f"labels{part}/phantom_{i:03d}.nii.gz")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **ORGANS},
        "numTraining": num_labeled,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))
    return folder


def _write(volume: np.ndarray, path: Path) -> None:
    """volume [z, y, x] -> a file in the patient's orientation with the body's center at the origin."""
    image = sitk.GetImageFromArray(volume)
    spacing = np.array(voxel_size(volume.shape))[::-1]
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((-spacing * (np.array(volume.shape[::-1]) - 1) / 2).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)


def _deformed_grid(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """The place in the standard body that each voxel shows [z, y, x, 3]: sized, moved, bent by a few long waves."""
    voxels = np.stack(np.indices(shape), axis=-1)
    grid = (voxels - (np.array(shape) - 1) / 2) * voxel_size(shape)
    points = grid / rng.uniform(0.86, 1.04, 3) + rng.normal(0, [6, 3, 3])
    for axis in range(3):
        for _ in range(4):
            wave = rng.normal(0, 2 * np.pi / 150, 3)
            points[..., axis] += rng.normal(0, 2.5) * np.sin(grid @ wave + rng.uniform(0, 2 * np.pi))
    return points


def _body(points: np.ndarray) -> np.ndarray:
    """A trunk without organs: skin fat, a wall of muscle, inner fat; air around it. [z, y, x]."""
    radius = np.hypot(points[..., 1] / BODY_RADII[0], points[..., 2] / BODY_RADII[1])
    return np.select([radius < 0.86, radius < 0.93, radius < 1.0], [FAT, MUSCLE, FAT], AIR)


def _bowel(rng: np.random.Generator) -> Iterator[tuple[float, np.ndarray]]:
    """Loops that look like organs and belong to none: (intensity, balls [3, 4]) each."""
    for _ in range(6):
        center = rng.uniform([-75, -55, -70], [-5, 5, 70])
        places = center + rng.normal(0, 18, (3, 3))
        yield rng.uniform(20, 130), np.column_stack([places, rng.uniform(8, 13, 3)])


def _vary(rng: np.random.Generator, balls: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """The organ of one patient: moved, bent and of another size. Small organs move and bend less. [n, 4]."""
    varied = np.array(balls, float)
    mobility = np.minimum(varied[:, 3].mean() / 20, 1)
    varied[:, :3] += mobility * (rng.normal(0, 4, 3) + rng.normal(0, 3, (len(varied), 3)))
    varied[:, 3] *= np.exp(rng.normal(0, 0.1))
    return varied


def _distance(points: np.ndarray, balls: np.ndarray) -> np.ndarray:
    """Distance [z, y, x] in millimeters to the organ's surface, negative inside."""
    distance = np.full(points.shape[:-1], np.inf)
    for start, end in pairwise(balls):
        along = end[:3] - start[:3]
        t = np.clip((points - start[:3]) @ along / (along @ along), 0, 1)
        radius = start[3] + t * (end[3] - start[3])
        axis = start[:3] + t[..., None] * along
        distance = np.minimum(distance, np.linalg.norm(points - axis, axis=-1) - radius)
    return distance


def _mix(image: np.ndarray, intensity: float, distance: np.ndarray, voxel: float) -> np.ndarray:
    """Partial volume: a voxel on the surface shows both tissues, by the share of it that lies inside."""
    share = np.clip(0.5 - distance / voxel, 0, 1)
    return image + share * (intensity - image)
