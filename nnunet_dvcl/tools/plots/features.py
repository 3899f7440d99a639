"""``nnunet_dvcl plot features``: t-SNE of reliable and unreliable voxels' features (the paper's Figures 1 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import dirname, join

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from pandas import DataFrame
from sklearn.manifold import TSNE

from nnunet_dvcl.cascade.previous_stage import stage_before
from nnunet_dvcl.data.folders import DatasetFolders
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.figures import COLORS, MARKERS, plain_style, save_picture
from nnunet_dvcl.labels import labels_of
from nnunet_dvcl.networks import FeatureHead, unwrap
from nnunet_dvcl.tools.device import find_device
from nnunet_dvcl.tools.model_folders import (
    TrainedFold,
    choose_checkpoints,
    class_names,
    find_trained,
    load_checkpoint,
    read_dataset_json,
    short_name,
)
from nnunet_dvcl.tools.plots.cases import choose_cases, load_cases
from nnunet_dvcl.tools.plots.voxels import FeatureNetwork, draw_features

HEADER = ["trainer", "checkpoint", "case", "x", "y", "organ", "predicted", "reliable", "entropy"]
_TURNS = 8  # in which markers are drawn, so that no class covers the others
_DEFAULT_ALPHA = 0.5  # of the paper's Eq. 5, for trainers without a split of their own


def plot_features(
    dataset_name_or_id: str,
    configuration: str,
    fold: int | str,
    trainers: Sequence[str],
    output_folder: str,
    plans_identifier: str = "nnUNetPlans",
    cases: Sequence[str] = (),
    checkpoints: Sequence[str] = (),
    device: str | None = None,
    num_voxels: int = 2000,
) -> None:
    """Draws where voxels lie in feature space, colored by their true organ: a row a checkpoint, a column a trainer.

    Writes ``features.png``, ``.svg`` and ``.csv``. Features are those that network A's head makes, or, of a trainer
    without a feature head, the decoder's last feature map.

    Trainings are named as for nnU-Net's commands, the device as for `find_device`. Without `cases`, the first
    validation cases of the fold are shown; without `checkpoints`, the best and the last. Half of the `num_voxels` of a
    panel are unreliable.

    Raises:
        UserError: a trainer is not trained, or a case is unknown, has no truth, or no prediction of the previous stage.
    """
    folds = [find_trained(dataset_name_or_id, name, plans_identifier, configuration, fold) for name in trainers]
    chosen = [choose_checkpoints(trained, checkpoints) for trained in folds]
    organs = class_names(read_dataset_json(dirname(folds[0].folder)))
    predictor = nnUNetPredictor(device=find_device(device))
    panels = [
        _embedding(predictor, trained, name, organs, cases, num_voxels)
        for names in zip(*chosen, strict=True)
        for trained, name in zip(folds, names, strict=True)
    ]
    table = pd.concat(panels, keys=range(len(panels)), names=["panel"])
    with plain_style():
        save_picture(_draw(table, len(trainers)), output_folder, "features", table[HEADER])


def _embedding(
    predictor: nnUNetPredictor,
    trained: TrainedFold,
    checkpoint: str,
    organs: Sequence[str],
    wanted: Sequence[str],
    count: int,
) -> DataFrame:
    """One checkpoint's voxels and their places in the plane: `HEADER`, and the ``title`` of the panel."""
    network, state, epoch = _load(predictor, trained, checkpoint)
    folders = DatasetFolders.of(predictor.plans_manager, predictor.configuration_manager)
    previous_stage = stage_before(predictor.plans_manager, trained.trainer, trained.configuration, trained.fold)
    name = short_name(trained.trainer)
    voxels, features = draw_features(
        network,
        load_cases(folders, choose_cases(folders, trained.fold, wanted), previous_stage, predictor.label_manager),
        predictor.configuration_manager.patch_size,
        predictor.configuration_manager.batch_size,
        labels_of(predictor.label_manager),
        count,
        state.get("config", {}).get("entropy_alpha", _DEFAULT_ALPHA),
        f"{name} {checkpoint}",
    )
    if not np.isfinite(features).all():
        raise UserError(f"{trained.folder}/{checkpoint} has diverged: its features are not finite. Choose with -chk.")
    what = "feature head" if isinstance(network.head, FeatureHead) else "decoder features"
    kind = checkpoint.removeprefix("checkpoint_").removesuffix(".pth")
    voxels[["x", "y"]] = embed(features).astype(float)
    return voxels.assign(
        trainer=trained.trainer,
        checkpoint=checkpoint,
        organ=pd.Categorical.from_codes(voxels["truth"], organs),
        predicted=pd.Categorical.from_codes(voxels["predicted"], organs),
        reliable=voxels["reliable"].astype(int),
        entropy=voxels["entropy"].astype(float),
        title=f"{name}, {kind} (epoch {epoch})\n{what}",
    )


def _load(predictor: nnUNetPredictor, trained: TrainedFold, name: str) -> tuple[FeatureNetwork, dict, int]:
    """Network A with its head, our part of the checkpoint, and the number of trained epochs."""
    checkpoint = load_checkpoint(join(trained.folder, name))
    predictor.initialize_from_trained_model_folder(dirname(trained.folder), (trained.fold,), name)
    state, head = checkpoint.get("ssl_state", {}), None
    if weights := state.get("companions", {}).get("head_A"):
        head = FeatureHead(weights["0.weight"].shape[1], weights["2.weight"].shape[0])
        head.load_state_dict(weights)
    try:
        return FeatureNetwork(unwrap(predictor.network), head, predictor.device), state, checkpoint["current_epoch"]
    except NotImplementedError as error:
        raise UserError(str(error)) from error


def embed(features: np.ndarray) -> np.ndarray:
    """t-SNE of features [n, d] under the cosine distance, [n, 2]; the same features give the same places."""
    spread = min(features.shape) >= 2 and np.ptp(features, axis=0).any()
    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="pca" if spread else "random", random_state=0)
    return tsne.fit_transform(features)


def _draw(table: DataFrame, columns: int) -> Figure:
    panels, organs = table.groupby("panel"), table["organ"].unique()
    rows = len(panels) // columns
    figure = Figure(figsize=(3.2 * columns + 1.6, 3.4 * rows), layout="constrained")
    for axes, (_, voxels) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
        _scatter(axes, voxels)
        title = voxels["title"].iloc[0]
        axes.set(title=title, xlabel="t-SNE 1 [no unit]", ylabel="t-SNE 2 [no unit]", xticks=[], yticks=[])
    handles = [_legend_entry("true organ:")]
    handles += [_legend_entry(organs.categories[c], **_look(c, reliable=False)) for c in sorted(organs.codes)]
    handles += [_legend_entry("voxel:")]
    handles += [_legend_entry("unreliable", **_look(None, False)), _legend_entry("reliable", **_look(None, True))]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


def _scatter(axes: Axes, voxels: DataFrame) -> None:
    """Pale dots of reliable voxels below, filled markers of unreliable ones above, the classes in turns."""
    keys = [1 - voxels["reliable"], np.arange(len(voxels)) % _TURNS, voxels["organ"].cat.codes]
    for (unreliable, _, c), own in voxels.groupby(keys):
        axes.plot(own["x"], own["y"], linestyle="", **_look(c, not unreliable))


def _look(c: int | None, reliable: bool) -> dict:
    """The marker of a class, or of any class for None; classes differ in color and, for gray prints, in shape."""
    color, marker = ("0.5", "o") if c is None else (COLORS[c % len(COLORS)], MARKERS[c % len(MARKERS)])
    if reliable:
        pale = tuple(0.5 * part + 0.5 for part in to_rgb(color))
        return {"marker": ".", "markersize": 3, "color": pale, "markeredgewidth": 0}
    return {"marker": marker, "markersize": 3.5, "color": color, "markeredgecolor": "0.15", "markeredgewidth": 0.3}


def _legend_entry(label: str, **look) -> Line2D:
    return Line2D([], [], linestyle="", label=label, **look)
