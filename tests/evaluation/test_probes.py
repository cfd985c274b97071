import inspect

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from mae_core.data.images import Split
from mae_core.evaluation.probes import features, knn, linear_probe, moments, nearest
from mae_core.model.config import ModelConfig
from mae_core.model.mae import Encoder
from mae_core.study.parameters import FinetuneParameters


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


def overlapping(seed, n=400, classes=4, width=6, apart=1.0):
    """Classes that overlap, so that votes, weights and the penalty decide many images."""
    generator = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + torch.randn(n, width, generator=generator), labels


@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.5])
@pytest.mark.parametrize("k", [1, 20, 60])
def test_neighbours_vote_as_scikit_learns_do(k, temperature):
    """Cosine distance, each vote weighted by exp(cosine / temperature)."""
    train, test = overlapping(0), overlapping(1, n=1500)
    reference = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    )  # fmt: skip
    reference.fit(*(part.double().numpy() for part in train))
    predicted = reference.predict(test[0].double().numpy())
    expected = 100 * (predicted == test[1].numpy()).mean()
    assert knn(*train, *test, k=k, temperature=temperature) == pytest.approx(expected, abs=0.07)  # one image


def test_the_weights_of_the_votes_decide():
    """Two neighbours of one class at a right angle lose against one of another class in the same direction."""
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([1, 0, 0])
    assert knn(train, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), k=3) == 100


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_the_linear_probe_classifies_as_scikit_learns_logistic_regression(penalty):
    """Its objective is mean cross-entropy + penalty * sum of squares; scikit-learn's is C * sum + half of the squares."""
    train, test = overlapping(0), overlapping(1, n=2000)
    reference = LogisticRegression(C=1 / (2 * penalty * len(train[1])), tol=1e-8, max_iter=10000)
    reference.fit(*(part.double().numpy() for part in train))
    expected = 100 * reference.score(*(part.double().numpy() for part in test))
    assert linear_probe(*train, *test, penalty=penalty) == pytest.approx(expected, abs=0.15)  # three images


def test_the_penalty_of_the_linear_probe_counts():
    """With fewer images than features, weights without a penalty fit the noise."""
    train, test = overlapping(0, n=60, width=80, apart=0.2), overlapping(1, n=2000, width=80, apart=0.2)
    by_penalty = [linear_probe(*train, *test, penalty=penalty) for penalty in (0.0, 1e-4, 1e-1)]
    assert len(set(by_penalty)) == 3
    assert linear_probe(*train, *test) == by_penalty[1]  # the default


def test_features_are_mean_patch_tokens_standardized_by_the_training_split():
    torch.manual_seed(0)
    encoder = Encoder(ModelConfig(patch_size=8, width=24, depth=1, heads=2, decoder_width=24, decoder_heads=2))
    run = FinetuneParameters(patch_size=8, width=24, depth=1, decoder_width=24, precision="float32")
    cpu = torch.device("cpu")
    train, test = (
        Split(torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8), torch.zeros(n, dtype=torch.int64), ("a",))
        for n in (300, 150)
    )
    with torch.no_grad():
        raw = [encoder(split.images_nCHW.float() / 127.5 - 1)[:, 1:].mean(1) for split in (train, test)]
    mean, deviation = raw[0].mean(0), raw[0].std(0)
    found = features(encoder, train, test, run, cpu)
    for part, expected in zip(found, raw, strict=True):
        torch.testing.assert_close(part, (expected - mean) / deviation, rtol=1e-3, atol=1e-3)


def test_the_defaults_are_the_papers():
    """Wu et al. 2018, section 3.4: temperature 0.07; 20 neighbours, for 200 of ImageNet's are too many here."""
    defaults = {name: p.default for name, p in inspect.signature(knn).parameters.items()}
    assert (defaults["k"], defaults["temperature"]) == (20, 0.07)


def test_no_gradient_is_kept():
    train, test = overlapping(0), overlapping(1)
    assert not nearest(train[0].requires_grad_(), test[0], 3)[0].requires_grad


def test_one_training_image_is_enough_for_a_deviation():
    mean_D, deviation_D = moments(torch.tensor([[1.0, 2.0]]))
    assert mean_D.tolist() == [1.0, 2.0]
    assert deviation_D.tolist() == pytest.approx([1e-6, 1e-6])
    several_nD = torch.randn(5, 3)
    assert moments(several_nD)[1].equal(several_nD.std(0) + 1e-6)
