from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_prune.scoring import spherical_kmeans, ssp_score


def test_reference(golden):
    points, centroids = golden["features"], golden["head_weight"]
    expected = [min(1 - float(F.cosine_similarity(x, c, dim=0)) for c in centroids) for x in points]
    torch.testing.assert_close(ssp_score(points, centroids), torch.tensor(expected), rtol=0, atol=1e-6)


def blobs():
    generator = torch.Generator().manual_seed(0)
    centers = torch.eye(4)[:3]
    return torch.cat([c + 0.1 * torch.randn(40, 4, generator=generator) for c in centers])


def test_kmeans_finds_blobs():
    points = blobs()
    centroids = spherical_kmeans(points, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(3))
    assert sorted(centroids.argmax(1).tolist()) == [0, 1, 2]
    assert ssp_score(points, centroids).max() < 0.2


def test_kmeans_is_seeded():
    points = blobs()
    a, b = (spherical_kmeans(points, 5, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a, b)


def test_kmeans_with_fewer_directions_than_clusters():
    centroids = spherical_kmeans(torch.ones(4, 2), 3, generator=torch.Generator().manual_seed(0))
    assert centroids.isfinite().all()


def test_bad_inputs(golden):
    with pytest.raises(ValueError, match="`centroids` of width 8"):
        ssp_score(golden["features"], torch.ones(3, 7))
    with pytest.raises(ValueError, match="`num_clusters` to be an int >= 1 and <= 60"):
        spherical_kmeans(golden["features"], 61)
