"""Single parts against the best known way to do the same: neighbor search (4), entropy split and draws (5)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.compare import Comparison, compare
from benchmarks.sizes import Size
from nnunet_dvcl.labels import SoftmaxLabels
from nnunet_dvcl.losses.neighborhoods import find_neighborhoods
from nnunet_dvcl.voxels.draws import draw_per_class
from nnunet_dvcl.voxels.entropy_split import split_by_entropy

K, U, DIM = 5, 50, 64


def search_over_faiss(num_queries: int, num_candidates: int, repeats: int) -> Comparison:
    """4. Top K, lowest K' and both thresholds, against faiss-cpu's exact search of the same.

    faiss has neither a search for the farthest nor a count: the farthest are the nearest to the opposite vector, and
    a neighbor has the query among its K or U nearest when the query is in its list of U.
    """
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_candidates, DIM, generator=generator)
    queries = torch.randperm(num_candidates, generator=generator)[:num_queries]
    rows = F.normalize(features, dim=-1).numpy()

    def with_faiss() -> tuple:
        index = faiss.IndexFlatIP(DIM)
        index.add(rows)
        asked = rows[queries.numpy()]
        _, nearest = index.search(asked, K + 1)  # the query itself is the nearest
        _, farthest = index.search(-asked, K)
        neighbors = nearest[:, 1:]
        _, seen = index.search(rows[neighbors.ravel()], U + 1)
        among = seen.reshape(*neighbors.shape, -1)[..., 1:] == queries.numpy()[:, None, None]
        return neighbors, farthest, among[..., :K].any(-1), among.any(-1)

    ours = find_neighborhoods(features, queries, K, K, U)
    theirs = with_faiss()
    result = compare(
        f"neighbor search / faiss-cpu, {num_queries} queries x {num_candidates} candidates",
        ("ours", lambda: find_neighborhoods(features, queries, K, K, U)),
        ("faiss", with_faiss),
        target=1.0,
        repeats=repeats,
        size=f"{num_queries} x {num_candidates}",
    )
    result.notes["same neighbors"] = float((ours.neighbors.numpy() == theirs[0]).mean())
    result.notes["same relevance"] = float((ours.relevant.numpy() == theirs[2]).mean())
    return result


def selection_over_argmax(size: Size, device: torch.device, repeats: int, num_anchors: int = 256) -> Comparison:
    """5. Entropy split and draws of voxels by class, against one argmax over the same logits."""
    logits = torch.randn(size.batch_size, size.num_classes, *size.patch_size, device=device)
    return compare(
        "entropy split and draws / one argmax over the logits",
        ("select", lambda: select(logits, num_anchors)),
        ("argmax", lambda: logits.argmax(1)),
        target=3.0,
        repeats=repeats,
        device=device,
        size=size.name,
    )


def select(logits: torch.Tensor, num_anchors: int = 256) -> torch.Tensor:
    """Entropy, threshold, reliable voxels, and up to M of each predicted class."""
    labels = SoftmaxLabels(logits.shape[1])
    reliable, _, _ = split_by_entropy(labels.entropy(logits))
    classes = labels.predicted(logits).where(reliable, -1)
    index, _ = draw_per_class(classes.flatten(), labels.num_classes, num_anchors)
    return index
