"""Distance-aware contrast as loops, straight from the paper (Eq. 11-19), and rows to try it on."""

import math

import torch
from torch import Tensor


def cosines(features: Tensor) -> list[list[float]]:
    rows = features.tolist()
    length = [math.sqrt(sum(x * x for x in row)) for row in rows]
    n = range(len(rows))
    return [[sum(x * y for x, y in zip(rows[i], rows[j], strict=True)) / (length[i] * length[j]) for j in n] for i in n]


def nearest(sim: list[list[float]], m: int, count: int) -> list[int]:
    """C_m^count of Eq. 12, nearest first, never m itself."""
    return sorted((n for n in range(len(sim)) if n != m), key=lambda n: -sim[m][n])[:count]


def farthest(sim: list[list[float]], m: int, count: int) -> list[int]:
    return sorted((n for n in range(len(sim)) if n != m), key=lambda n: sim[m][n])[:count]


def naive_neighborhoods(features, queries, k, k_out, u) -> list[tuple[list[int], list[bool], list[int], bool]]:
    """For each query: C_m^K (Eq. 12), is n relevant (Eq. 13), D_m^K' (Eq. 12), is m an outlier (Eq. 15)."""
    sim = cosines(features)
    found = []
    for m in queries:
        c = nearest(sim, m, k)
        relevant = [m in nearest(sim, n, k) for n in c]
        considers = [n for n in c if m in nearest(sim, n, u)]
        found.append((c, relevant, farthest(sim, m, k_out), len(considers) < 1))
    return found


def dot(p: Tensor, q: Tensor) -> Tensor:
    return (p * q).sum()


def naive_dvcl(query_p, queries, features, candidate_p, k, k_out, u, r=0.5, partition=True, detect=True) -> Tensor:
    """Eq. 19 without its constant, over the queries that are no outliers."""
    psi = []
    for p, (c, relevant, d, outlier) in zip(query_p, naive_neighborhoods(features, queries, k, k_out, u), strict=True):
        if outlier and detect:
            continue
        affinity = [1 if is_relevant or not partition else r for is_relevant in relevant]
        attract = sum(a * dot(p, candidate_p[n]) for a, n in zip(affinity, c, strict=True))
        psi.append(sum(dot(p, candidate_p[j]) for j in d) - attract)
    return sum(psi) / len(psi) if psi else query_p.sum() * 0


def same_prediction(p, candidate_p) -> list[float]:
    """O_mn of Eq. 11 for one voxel m and every candidate n."""
    scores = [math.exp(dot(p, q)) for q in candidate_p]
    return [score / sum(scores) for score in scores]


def literal_likelihoods(p, c, relevant, d, candidate_p, r=0.5) -> tuple[float, float]:
    """Eq. 16 as it stands, products, denominators and all: of the neighbors and of the outsiders."""
    denominator = sum(math.exp(dot(p, q)) for q in candidate_p)
    close = math.prod(
        math.exp((1 if a else r) * dot(p, candidate_p[n])) / denominator for n, a in zip(c, relevant, strict=True)
    )
    distant = math.prod(math.exp(dot(p, candidate_p[j])) / denominator for j in d)
    return close, distant


def literal_psi(p, c, relevant, d, candidate_p, r=0.5) -> float:
    """Eq. 17 of the likelihoods as they stand."""
    close, distant = literal_likelihoods(p, c, relevant, d, candidate_p, r)
    return -math.log(close / distant)


def make_rows(n=40, num_queries=12, dim=3, classes=4, seed=0, dtype=torch.float64):
    """Clustered features (so that some neighbors are relevant and some queries outliers) and probabilities."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(4, dim, generator=g, dtype=dtype)
    features = means[torch.randint(4, (n,), generator=g)] + 0.4 * torch.randn(n, dim, generator=g, dtype=dtype)
    candidate_p = torch.randn(n, classes, generator=g, dtype=dtype).mul(2).softmax(-1)
    queries = torch.randperm(n, generator=g)[:num_queries]
    return candidate_p[queries].clone(), queries, features, candidate_p


def circle(degrees: list[float]) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], -1)


#         0  1  2  3    4    5    6    7    8: far from all
ANGLES = [0, 2, 5, 9, 100, 103, 107, 112, 220]
EVERY = torch.arange(len(ANGLES))
