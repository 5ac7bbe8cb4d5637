"""scikit-learn's handwritten digits, which an installed package carries."""

from __future__ import annotations

import numpy as np

from common.data.dataset import Dataset, whole
from common.data.sources import Arrays
from common.data.spec import DatasetSpec

_DIGITS_TEST = 360  # a fifth of scikit-learn's 1,797


def load_digits(spec: DatasetSpec) -> tuple[Dataset, Dataset]:
    """scikit-learn's digits: 16 grey levels spread over 0 to 255, a fixed stratified fifth for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    assert spec.image is not None
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = train_test_split(np.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=0)
    names = [str(digit) for digit in bunch.target_names]
    return (
        whole("digits", "train", spec.image, names, Arrays(images[train], labels[train])),
        whole("digits", "test", spec.image, names, Arrays(images[test], labels[test])),
    )
