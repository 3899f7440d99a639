"""docs/figures/planted_clusters.py: its claims on other seeds than the page's, and the files that it made."""

import csv
import importlib.util
import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
SEEDS = range(100, 105)

spec = importlib.util.spec_from_file_location("planted_clusters", DOCS / "figures/planted_clusters.py")
planted_clusters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(planted_clusters)


@pytest.fixture(scope="module")
def committed() -> list[dict[str, str]]:
    with open(DOCS / "assets/planted-clusters.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_planted_is_what_the_page_says():
    planted = planted_clusters.plant(0)
    assert planted.role.bincount().tolist() == [4 * 60, 4 * 8, 6]
    torch.testing.assert_close(planted.features.norm(dim=1), torch.ones(278, dtype=torch.float64))
    centers = planted_clusters._unit(torch.tensor(planted_clusters.CENTERS, dtype=torch.float64))
    angle, nearest = torch.rad2deg((planted.features @ centers.T).clamp(-1, 1).acos()).min(1)
    assert (nearest == planted.classes)[planted.role == 0].all()
    assert (nearest != planted.classes)[planted.role == 1].all()
    assert ((angle > 12) & (angle < 18))[planted.role == 1].all()
    assert (angle > 40)[planted.role == 2].all()
    outliers = planted.features[planted.role == 2]
    assert torch.rad2deg((outliers @ outliers.T).fill_diagonal_(-1).clamp(-1, 1).acos()).min() > 45


def test_noisy_neighbors_weigh_less():
    """On the mean clearly, most where the noisy one asks; where a member asks, not."""
    shares = [planted_clusters.relevant_shares(planted_clusters.plant(seed)) for seed in SEEDS]
    difference = [share["same class"] - share["other class"] for share in shares]
    assert min(difference) > 0
    assert sum(difference) / len(shares) > 0.08
    for share in shares:
        assert share["other class, a noisy neighbor asks"] < share["same class"] - 0.08
        assert share["other class, a member asks"] > share["same class"]


@pytest.mark.parametrize(("spacing", "least"), [(45.0, 0.85), (30.0, 0.35)])
def test_outliers_are_dropped_and_nobody_else(spacing, least):
    """An outlier that is kept has another one among its neighbors."""
    shares = []
    for seed in SEEDS:
        planted = planted_clusters.plant(seed, spacing)
        shares.append(planted_clusters.outlier_shares(planted))
        found = planted_clusters.neighborhoods(planted)
        kept = (planted.role == 2) & ~found.outlier
        assert (planted.role[found.neighbors[kept]] == 2).any(1).all()
    assert all(share["members dropped"] == share["noisy neighbors dropped"] == 0 for share in shares)
    assert sum(share["outliers dropped"] for share in shares) / len(shares) > least


@pytest.mark.parametrize(("hint", "within", "between", "gain"), [(0.0, 0.4, 0.24, 0.1), (0.5, 0.65, 0.2, 0.15)])
def test_minimizing_the_loss_separates_the_clusters(hint, within, between, gain):
    for seed in SEEDS:
        planted = planted_clusters.plant(seed)
        before, after = (planted_clusters.quality(planted, p) for p in planted_clusters.separate(planted, seed, hint))
        assert before["agreement within a cluster"] < 0.3
        assert after["agreement within a cluster"] > within
        assert after["agreement between clusters"] < between < before["agreement between clusters"]
        assert after["members right"] > before["members right"] + gain


def test_the_names_of_the_classes_do_not_matter():
    planted = planted_clusters.plant(0)
    p = torch.nn.functional.one_hot(planted.classes, 4).double()
    for order in ([1, 2, 3, 0], [3, 1, 0, 2]):
        torch.testing.assert_close(planted_clusters.assigned(planted, p[:, order]), p)


def test_the_committed_numbers_are_what_the_script_makes(committed):
    header, *rows = planted_clusters.table()
    assert list(committed[0]) == header
    assert [tuple(row.values())[:3] for row in committed] == [tuple(row[:3]) for row in rows]
    for old, new in zip(committed, rows, strict=True):
        assert [float(old[name]) for name in header[3:]] == pytest.approx([float(v) for v in new[3:]], abs=0.0101)


def test_the_page_shows_the_committed_means(committed):
    means = {(row["case"], row["quantity"]): f"{float(row['mean']):.2f}" for row in committed}
    page = (DOCS / "explanation/planted-clusters.md").read_text()
    shown = {}
    for block in re.findall(r"(?:^\|.+\|\n)+", page, re.MULTILINE):
        (_, *quantities), _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines())
        for case, *values in rows:
            shown |= {(case, quantity): value for quantity, value in zip(quantities, values, strict=True)}
    assert shown == means


def test_the_picture_is_drawn_alike_every_time(tmp_path, monkeypatch):
    """And without a date. Other versions of matplotlib may draw other bytes than the committed ones."""
    monkeypatch.setattr(planted_clusters, "table", lambda: [])
    files = []
    for run in ("first", "second"):
        folder = tmp_path / run
        folder.mkdir()
        planted_clusters.write(folder)
        files.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert files[0] == files[1]
    assert set(files[0]) == {f"planted-clusters.{kind}" for kind in ("png", "svg", "csv")}
    assert b"dc:date" not in files[0]["planted-clusters.svg"]
    assert b"dc:date" not in (DOCS / "assets/planted-clusters.svg").read_bytes()
