"""What a classifier's scores tell of the test images."""

import pytest
import torch

from mae_core.data.images import Split
from mae_core.evaluation.classification import LARGEST_MATRIX, predictions


@pytest.mark.parametrize("n_classes", [3, LARGEST_MATRIX, LARGEST_MATRIX + 1])
def test_a_matrix_of_very_many_classes_is_left_to_the_predictions(n_classes):
    labels_n = torch.arange(2 * n_classes) % n_classes
    scores_nC = torch.eye(n_classes)[labels_n].roll(1, 0)  # each image gets the class of the one before it
    test = Split(torch.zeros(2 * n_classes, 3, 4, 4, dtype=torch.uint8), labels_n, tuple(map(str, range(n_classes))))
    told = predictions(scores_nC, test)
    assert told["true"][:3] == [0, 1, 2]
    assert told["predicted"][:3] == [n_classes - 1, 0, 1]
    if n_classes > LARGEST_MATRIX:
        assert "confusion" not in told
    else:
        expected = 2 * torch.eye(n_classes, dtype=torch.int64).roll(-1, 1)
        assert told["confusion"] == expected.tolist()
