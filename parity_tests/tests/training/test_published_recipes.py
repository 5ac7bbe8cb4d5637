"""Every recipe, dataset and shared constant against its source, field by field.

Both frameworks train by one `Recipe`, so no comparison between them can see a wrong one. The tables below are read off
the sources that they name, not off `common`, and hold every field: one that is changed, dropped or added fails. What is
ours is pinned, too; results that were measured are filed with the settings that they are of.
"""

from __future__ import annotations

import json
import os
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torchvision.models import AlexNet_Weights

from common.config import to_dict
from common.data.load import load_dataset
from common.data.spec import DATASETS
from common.data.tfds import load_photographs
from common.recipes.spec import IMAGENET_PCA, Optimizer, Recipe
from common.recipes.zoo import DEFAULT, IMAGENET_MEAN, IMAGENET_STD, RECIPES, get_recipe
from common.reports.predictions import has_light_border
from parity_tests.published import Table, differences, faults, leaves, unnamed
from parity_tests.tests.models.test_published import whole

# What a source does not mention is as the table of defaults has it, which is held to its own sources; but a run without
# these is none.
SAID = ("name", "dataset", "arch", "init", "epochs", "batch_size", "optimizer.name", "optimizer.lr")
COMMON: Table = {
    f"its source does not mention it; {source}": {path: value for path, value in values.items() if path not in SAID}
    for source, values in whole(Recipe).items()
}
IMAGENET_PIXELS = {"preprocess.mean": (0.485, 0.456, 0.406), "preprocess.std": (0.229, 0.224, 0.225)}
CIFAR_PIXELS = {"preprocess.mean": (0.4914, 0.4822, 0.4465), "preprocess.std": (0.2023, 0.1994, 0.2010)}
FASHION_PIXELS = {"preprocess.mean": (0.2860,), "preprocess.std": (0.3530,)}
CIFAR_CROPS = {"preprocess.pad": 4, "preprocess.crop": 32, "preprocess.flip": True}
BAG = "He et al., arXiv:1812.01187, sections 3.1 (warm-up of 5 epochs, no decay on biases) and 5.1 to 5.4"
OURS = "ours; what it comes to is filed with the settings that it had"
PHOTOS = {
    "optimizer.name": "adamw",
    "optimizer.weight_decay": 0.01,
    "schedule.name": "cosine",
    "preprocess.flip": True,
    "val_fraction": 0.15,
    "patience": 5,
}
DIGITS = {
    "dataset": "digits",
    "arch": "alexnet_cifar",
    "init": "he",
    "epochs": 8,
    "batch_size": 64,
    "optimizer.name": "adamw",
    "optimizer.lr": 0.0003,
    "optimizer.weight_decay": 0.01,
    "schedule.milestones": (6,),
    "preprocess.resize": 32,
    "preprocess.mean": (0.5,),
    "preprocess.std": (0.5,),
}

# By recipe: the sources, and what each gives.
TABLES: dict[str, Table] = {
    "digits": {
        OURS: {
            **DIGITS,
        },
    },
    "imagenet": {
        "torchvision, references/classification/README.md: --model alexnet --lr 1e-2, 8 GPUs of 32 images each": {
            "dataset": "imagenet2012",
            "arch": "alexnet",
            "batch_size": 8 * 32,
            "optimizer.lr": 0.01,
        },
        "torchvision, references/classification/train.py's defaults": {
            "epochs": 90,
            "optimizer.name": "sgd",
            "optimizer.momentum": 0.9,
            "optimizer.weight_decay": 0.0001,
            # --lr-step-size 30 of 90 epochs: a third step would come after the last one.
            "schedule.name": "step",
            "schedule.milestones": (30, 60),
            "schedule.gamma": 0.1,
            "preprocess.host_resize": 256,
            "preprocess.crop": 224,
        },
        "torchvision, references/classification/presets.py": {
            "preprocess.random_resized_crop": True,
            "preprocess.flip": True,
            **IMAGENET_PIXELS,
        },
        "torchvision, models/alexnet.py leaves PyTorch's own initialisation": {"init": "torch"},
    },
    "imagenet_2012": {
        "Krizhevsky et al., NIPS 2012, section 5": {
            "dataset": "imagenet2012",
            "arch": "alexnet_2012",
            "init": "normal_2012",
            "epochs": 90,
            "batch_size": 128,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.01,
            "optimizer.momentum": 0.9,
            "optimizer.weight_decay": 0.0005,
            "schedule.name": "step",
            "schedule.gamma": 0.1,
        },
        'ours, for section 5\'s "three times prior to termination"': {"schedule.milestones": (30, 50, 70)},
        "Krizhevsky et al., NIPS 2012, sections 2 (256 x 256) and 4.1": {
            "preprocess.host_resize": 256,
            "preprocess.crop": 227,
            "preprocess.flip": True,
            "preprocess.pca_std": 0.1,
        },
        "section 2: the mean is subtracted, and pixels keep 0 to 255; the mean is torchvision's": {
            "preprocess.mean": (0.485, 0.456, 0.406),
            "preprocess.std": (1 / 255, 1 / 255, 1 / 255),
        },
    },
    "cifar10": {
        "the CIFAR tutorials": {
            "dataset": "cifar10",
            "arch": "alexnet_cifar",
            "init": "kaiming",
            "epochs": 100,
            "batch_size": 128,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.01,
            "optimizer.momentum": 0.9,
            "optimizer.weight_decay": 0.0005,
            "schedule.name": "step",
            "schedule.milestones": (30, 60, 90),
            "schedule.gamma": 0.1,
            **CIFAR_CROPS,
            **CIFAR_PIXELS,
        },
    },
    "cifar10_finetune": {
        "a tutorial's run that ends at 0.9203": {
            "dataset": "cifar10",
            "arch": "alexnet",
            "epochs": 30,
            "batch_size": 128,
            "optimizer.name": "adamw",
            "optimizer.lr": 0.00001,
            "optimizer.weight_decay": 0.01,
            "preprocess.resize": 224,
            "pretrained": "all",
        },
        "torchvision, AlexNet_Weights.IMAGENET1K_V1.transforms()": IMAGENET_PIXELS,
        "torchvision, models/alexnet.py leaves PyTorch's own initialisation": {"init": "torch"},
    },
    "cifar10_finetune_backbone": {
        OURS: {
            "dataset": "cifar10",
            "arch": "alexnet",
            "init": "torch",
            "epochs": 10,
            "batch_size": 128,
            "optimizer.name": "adamw",
            "optimizer.lr": 0.0001,
            "optimizer.weight_decay": 0.01,
            "schedule.name": "cosine",
            "schedule.warmup_epochs": 1,
            "preprocess.resize": 224,
            "pretrained": "backbone",
            "finetune.head": "dense",
            "finetune.freeze_epochs": 2,
            "finetune.backbone_lr": 0.1,
        },
        "torchvision, AlexNet_Weights.IMAGENET1K_V1.transforms()": IMAGENET_PIXELS,
    },
    "photos": {
        "ours; one run of it on 600 pictures, no benchmark": {
            "dataset": "folder:photos",
            "arch": "alexnet",
            "init": "torch",
            "epochs": 8,
            "batch_size": 32,
            **PHOTOS,
        },
        "cifar10_finetune_backbone's": {
            "optimizer.lr": 0.0001,
            "schedule.warmup_epochs": 1,
            "finetune.head": "dense",
            "finetune.freeze_epochs": 2,
            "finetune.backbone_lr": 0.1,
        },
        "torchvision, AlexNet_Weights.IMAGENET1K_V1.transforms()": {
            "pretrained": "all",
            "preprocess.host_resize": 256,
            "preprocess.crop": 224,
            **IMAGENET_PIXELS,
        },
    },
    "photos_scratch": {
        "ours; one run of it on 600 pictures, no benchmark": {
            "dataset": "folder:photos",
            "arch": "alexnet_cifar_best",
            "init": "he",
            "epochs": 30,
            "batch_size": 32,
            "optimizer.lr": 0.0003,
            "schedule.warmup_epochs": 1,
            "preprocess.host_resize": 36,
            "preprocess.crop": 32,
            **PHOTOS,
            "patience": 15,
        },
        "torchvision, AlexNet_Weights.IMAGENET1K_V1.transforms()": IMAGENET_PIXELS,
    },
    "cifar10_best": {
        OURS: {
            "dataset": "cifar10",
            "arch": "alexnet_cifar_best",
            "epochs": 100,
            "batch_size": 128,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.05,
            "optimizer.momentum": 0.9,
            "optimizer.nesterov": True,
            "optimizer.weight_decay": 0.0005,
            "precision": "bfloat16",
            "init": "he",
        },
        "the CIFAR tutorials": {**CIFAR_CROPS, **CIFAR_PIXELS},
        BAG: {
            "schedule.name": "cosine",
            "schedule.warmup_epochs": 5,
            "optimizer.decay_biases": False,
            "label_smoothing": 0.1,
            "mix.mixup": 0.2,
        },
        "Yun et al., arXiv:1905.04899, section 3.1": {"mix.cutmix": 1},
    },
    "fashion_mnist": {
        "Dive into Deep Learning, Gluon version, chapter_convolutional-modern/alexnet.md": {
            "dataset": "fashion_mnist",
            "arch": "alexnet_fashion",
            "init": "xavier",
            "batch_size": 128,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.01,
            "preprocess.resize": 224,
        },
        "ours: the book stops after 5 in its Gluon version, after 10 in later ones": {"epochs": 10},
    },
    "fashion_mnist_lenet": {
        "fashion_mnist's": {
            "dataset": "fashion_mnist",
            "arch": "lenet",
            "init": "xavier",
            "epochs": 10,
            "batch_size": 128,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.01,
        },
    },
    "fashion_mnist_best": {
        OURS: {
            "dataset": "fashion_mnist",
            "arch": "alexnet_cifar_best",
            "epochs": 50,
            "batch_size": 128,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.05,
            "optimizer.momentum": 0.9,
            "optimizer.nesterov": True,
            "optimizer.weight_decay": 0.0005,
            "precision": "bfloat16",
            "init": "he",
            **CIFAR_CROPS,
        },
        "Fashion-MNIST's own 60,000 training images": FASHION_PIXELS,
        BAG: {
            "schedule.name": "cosine",
            "schedule.warmup_epochs": 5,
            "optimizer.decay_biases": False,
            "label_smoothing": 0.1,
        },
        "Yun et al., arXiv:1905.04899, section 3.1": {"mix.cutmix": 1},
    },
    "cifar10_fast": {
        OURS: {
            "dataset": "cifar10",
            "arch": "alexnet_cifar_best",
            "epochs": 10,
            "batch_size": 512,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.1,
            "optimizer.momentum": 0.9,
            "optimizer.nesterov": True,
            "optimizer.weight_decay": 0.0005,
            "precision": "bfloat16",
            "init": "he",
            "schedule.name": "cosine",
            "schedule.warmup_epochs": 2,
        },
        "the CIFAR tutorials": {**CIFAR_CROPS, **CIFAR_PIXELS},
        BAG: {"optimizer.decay_biases": False, "label_smoothing": 0.1},
    },
    "fashion_mnist_fast": {
        OURS: {
            "dataset": "fashion_mnist",
            "arch": "alexnet_cifar_best",
            "epochs": 4,
            "batch_size": 512,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.1,
            "optimizer.momentum": 0.9,
            "optimizer.nesterov": True,
            "optimizer.weight_decay": 0.0005,
            "precision": "bfloat16",
            "init": "he",
            "schedule.name": "cosine",
            "schedule.warmup_epochs": 1,
            **CIFAR_CROPS,
        },
        "Fashion-MNIST's own 60,000 training images": FASHION_PIXELS,
        BAG: {"optimizer.decay_biases": False, "label_smoothing": 0.1},
    },
}


def table_of(name: str) -> Table:
    return {**COMMON, "its key": {"name": name}, **TABLES[name]}


def test_no_recipe_is_without_a_table() -> None:
    assert TABLES.keys() == RECIPES.keys()
    assert DEFAULT == "digits"


@pytest.mark.parametrize("name", TABLES)
def test_every_field_of_a_recipe_is_its_sources(name: str) -> None:
    problems = differences(name, leaves(RECIPES[name]), table_of(name))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", TABLES)
def test_a_change_of_any_field_is_named_with_its_source(name: str) -> None:
    assert not unnamed(name, RECIPES[name], table_of(name))
    assert {path for path, _ in faults(RECIPES[name])} == leaves(RECIPES[name]).keys()
    assert len(leaves(RECIPES[name])) == count(to_dict(RECIPES[name]))  # a walk that stops early would pass everything


def count(content: Any) -> int:
    """The fields of a recipe as it is written to a file."""
    return sum(map(count, content.values())) if isinstance(content, dict) else 1


def test_a_field_that_no_table_has_is_named() -> None:
    recipe = get_recipe("digits")
    averaged = make_dataclass("Averaged", [("ema", float, field(default=0.0))], bases=(Recipe,), frozen=True)
    problems = differences("digits", leaves(averaged(**vars(recipe))), table_of("digits"))
    assert problems == ["digits: ema is 0.0, and no source in the table says what it must be."]
    lion = make_dataclass("Lion", [("beta3", float, field(default=0.99))], bases=(Optimizer,), frozen=True)
    wrong = replace(recipe, optimizer=lion(**vars(recipe.optimizer)))
    problems = differences("digits", leaves(wrong), table_of("digits"))
    assert problems == ["digits: optimizer.beta3 is 0.99, and no source in the table says what it must be."]


# Constants that several recipes share


def test_imagenets_pixels_are_torchvisions_own() -> None:
    """As the published weights want them; its page gives the accuracies of the recipe's docstring."""
    weights = AlexNet_Weights.IMAGENET1K_V1
    transforms = weights.transforms()
    assert tuple(transforms.mean) == IMAGENET_MEAN == IMAGENET_PIXELS["preprocess.mean"]
    assert tuple(transforms.std) == IMAGENET_STD == IMAGENET_PIXELS["preprocess.std"]
    spec = RECIPES["imagenet"].preprocess
    assert [spec.host_resize] == transforms.resize_size
    assert [spec.crop] == transforms.crop_size
    metrics = weights.meta["_metrics"]["ImageNet-1K"]
    assert (metrics["acc@1"], metrics["acc@5"]) == (56.522, 79.066)


# fb.resnet.torch, datasets/imagenet.lua: eigval, and eigvec with a column an eigenvector, a row a channel.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def test_the_colour_noise_is_fb_resnet_torchs() -> None:
    """A row a component in ours: the eigenvalue times its column."""
    expected = (np.array(EIGENVECTORS) * EIGENVALUES).T
    np.testing.assert_array_equal(
        IMAGENET_PCA, expected, err_msg="IMAGENET_PCA; fb.resnet.torch, datasets/imagenet.lua"
    )


# Images as they are stored, classes, examples to train and test on, tensorflow-datasets' name of the test split.
FACTS: dict[str, Table] = {
    "digits": {
        "UCI, Optical Recognition of Handwritten Digits: 1,797 of 8 x 8": {
            "image": (8, 8, 1),
            "classes": 10,
        },
        "ours: a fifth for testing": {"examples": (1437, 360), "test_split": "test"},
        "in words": {"source": "sklearn.datasets.load_digits"},
        "its pictures": {"dark": True},
    },
    "mnist": {
        "LeCun et al., Proc. IEEE 1998, section III": {
            "image": (28, 28, 1),
            "classes": 10,
            "examples": (60000, 10000),
            "test_split": "test",
        },
        "in words": {"source": "tensorflow-datasets mnist"},
        "its pictures": {"dark": True},
    },
    "fashion_mnist": {
        "Xiao et al., arXiv:1708.07747, section 2": {
            "image": (28, 28, 1),
            "classes": 10,
            "examples": (60000, 10000),
            "test_split": "test",
        },
        "in words": {"source": "tensorflow-datasets fashion_mnist"},
        "its pictures": {"dark": True},
    },
    "cifar10": {
        "Krizhevsky, Learning multiple layers of features from tiny images, 2009, section 3.1": {
            "image": (32, 32, 3),
            "classes": 10,
            "examples": (50000, 10000),
            "test_split": "test",
        },
        "in words": {"source": "tensorflow-datasets cifar10"},
        "its pictures": {"dark": False},
    },
    "imagenet2012": {
        "Russakovsky et al., arXiv:1409.0575, table 2; tested on the 50,000 for validation": {
            "image": None,
            "classes": 1000,
            "examples": (1281167, 50000),
            "test_split": "validation",
        },
        "in words": {"source": "tensorflow-datasets imagenet2012 (downloaded by hand)"},
        "its pictures": {"dark": False},
    },
}


def test_no_dataset_is_without_a_table() -> None:
    assert FACTS.keys() == DATASETS.keys()


@pytest.mark.parametrize("name", FACTS)
def test_every_field_of_a_dataset_is_its_sources(name: str) -> None:
    problems = differences(name, leaves(DATASETS[name]), FACTS[name])
    assert not problems, "\n".join(problems)
    assert not unnamed(name, DATASETS[name], FACTS[name])


def test_the_digits_are_as_scikit_learn_has_them() -> None:
    bunch, spec = load_digits(), DATASETS["digits"]
    assert (*bunch.images.shape[1:], 1) == spec.image
    assert len(bunch.target_names) == spec.classes
    assert len(bunch.target) == sum(spec.examples) == 1797
    assert [len(split) for split in load_dataset("digits")] == list(spec.examples)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10"])
def test_what_is_light_on_dark_has_dark_borders(name: str) -> None:
    if name == "digits":
        _, test = load_dataset(name)
        pixels, _ = test.source.read(test.ids[:300], None)
    else:  # one by one, and not all 60,000 into memory
        _prepared(name)
        _, test = load_photographs(name, DATASETS[name])
        entire: Any = lambda image, place: np.array(image.convert("RGB"))  # noqa: E731
        pixels, _ = test.source.read(test.ids[:300], entire)
    share = np.mean([has_light_border(each) for each in pixels])
    assert (share < 0.1) == DATASETS[name].dark, share


def _prepared(name: str) -> Path:
    """Where tensorflow-datasets keeps a dataset; skips where it is not."""
    root = os.environ.get("TFDS_DATA_DIR")
    versions = sorted(Path(root, name).glob("*/dataset_info.json")) if root else []
    if not versions:
        pytest.skip(f"TFDS_DATA_DIR names no folder with {name}: its pixels cannot be counted")
    return versions[-1].parent


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "imagenet2012"])
def test_prepared_data_holds_the_tables_sizes(name: str) -> None:
    folder = _prepared(name)
    splits = json.loads((folder / "dataset_info.json").read_text("utf-8"))["splits"]
    counts = {split["name"]: sum(int(count) for count in split["shardLengths"]) for split in splits}
    spec = DATASETS[name]
    assert (counts["train"], counts[spec.test_split]) == spec.examples
    features = json.loads((folder / "features.json").read_text("utf-8"))["featuresDict"]["features"]
    assert int(features["label"]["classLabel"]["numClasses"]) == spec.classes
    stored = features["image"]["image"].get("shape", {}).get("dimensions", ())
    assert spec.image is None or tuple(map(int, stored)) == spec.image


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "mean", "std", "each"),
    [("cifar10", *CIFAR_PIXELS.values(), True), ("fashion_mnist", *FASHION_PIXELS.values(), False)],
)
def test_means_and_deviations_are_the_pixels(
    name: str, mean: tuple[float, ...], std: tuple[float, ...], each: bool
) -> None:
    """Counted again on every training image. The tutorials' deviation for CIFAR-10 is the mean of each image's own.

    Copies of CIFAR-10 that were compressed on the way differ from the original by 0.002 at most; its pixels' own
    deviation, (0.247, 0.243, 0.262), lies 0.04 away.
    """
    _prepared(name)
    train, _ = load_dataset(name)
    pixels = train.source.read(train.ids, None)[0] / np.float32(255)
    deviations = pixels.std((1, 2)).mean(0) if each else pixels.std((0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(pixels.mean((0, 1, 2), dtype=np.float64), mean, atol=2e-4 if not each else 5e-4)
    np.testing.assert_allclose(deviations, std, atol=3e-3 if each else 2e-4)
    for recipe in RECIPES.values():
        if recipe.dataset == name and recipe.preprocess.pad:
            assert (recipe.preprocess.mean, recipe.preprocess.std) == (mean, std), recipe.name
