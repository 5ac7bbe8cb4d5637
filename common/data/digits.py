"""scikit-learn's handwritten digits, which an installed package carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common.data.dataset import Dataset, whole
from common.data.sources import Arrays
from common.data.spec import DatasetSpec

# Places of the training images, then of the 360 for testing, as scikit-learn's `train_test_split` drew a fifth of each
# class from seed 0.
_SPLIT = Path(__file__).with_name("digits_split.npy")
_TEST = 360


def load_digits(spec: DatasetSpec) -> tuple[Dataset, Dataset]:
    """scikit-learn's digits: 16 grey levels spread over 0 to 255, a fixed stratified fifth for testing."""
    assert spec.image is not None
    rows, order = _rows(), np.load(_SPLIT)
    images = np.rint(rows[:, :-1].reshape(-1, *spec.image) * (255 / 16)).astype(np.uint8)
    labels = rows[:, -1].astype(np.int32)
    train, test = order[:-_TEST], order[-_TEST:]
    names = [str(digit) for digit in range(10)]
    return (
        whole("digits", "train", spec.image, names, Arrays(images[train], labels[train])),
        whole("digits", "test", spec.image, names, Arrays(images[test], labels[test])),
    )


def _rows() -> np.ndarray:
    """64 pixels and a label for each digit, (1797, 65).

    The package is not imported for them if its file is where it was: that would take longer than a framework's import.
    """
    found = find_spec("sklearn")
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if file and file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.column_stack([pixels, labels])
