import pytest
import torch

from mae_core.evaluation.probes import knn, linear_probe, nearest


def clusters(n=600, classes=3, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(7)) * 4
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + torch.randn(n, width, generator=generator), labels


def test_separable_classes_are_told_apart():
    train, test = clusters(), clusters(seed=1)
    assert linear_probe(*train, *test) > 99
    assert knn(*train, *test) > 99


def test_noise_is_guessed():
    train, test = torch.randn(900, 8), torch.randn(900, 8)
    labels = [torch.randint(3, (900,)) for _ in range(2)]
    for probe in (linear_probe, knn):
        assert 25 < probe(train, labels[0], test, labels[1]) < 42


def test_a_boundary_that_is_not_linear_is_seen_by_neighbours_only():
    """Opposite directions share a class: no plane parts them, neighbours do."""
    angle = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 6.2832
    points, labels = torch.stack([angle.cos(), angle.sin()], 1), ((angle // 1.5708) % 2).long()
    halves = points[:1000], labels[:1000], points[1000:], labels[1000:]
    assert linear_probe(*halves) < 65
    assert knn(*halves) > 95


def test_the_linear_probe_is_at_the_optimum_of_its_objective():
    """Its accuracy is that of an independent solver of the same convex problem."""
    features, labels = clusters(n=200, width=4)
    features = features + torch.randn(200, 4, generator=torch.Generator().manual_seed(3)) * 4
    weight = torch.zeros(3, 5, requires_grad=True)
    padded = torch.cat([features, torch.ones(200, 1)], 1)
    for _ in range(4000):
        loss = torch.nn.functional.cross_entropy(padded @ weight.T, labels) + 1e-4 * weight[:, :4].square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight - 0.1 * gradient).detach().requires_grad_()
    expected = 100 * ((padded @ weight.T).argmax(1) == labels).double().mean()
    assert abs(linear_probe(features, labels, features, labels) - expected) <= 0.5


def test_neighbours_are_those_of_the_smallest_angle():
    train = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.1], [5.0, 5.0]])
    cosine, ids = nearest(train, torch.tensor([[2.0, 0.1], [0.1, 0.9]]), k=2)
    assert ids.tolist() == [[0, 3], [1, 3]]
    assert cosine[0, 0].item() == pytest.approx(2 / (4.01**0.5))
