"""The named recipes, one per published run. Any field can be overridden on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from inspect import getdoc

from common.errors import lookup
from common.recipes.spec import FineTune, Mix, Optimizer, Preprocess, Recipe, Schedule

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RECIPES: dict[str, Recipe] = {}
ABOUT: dict[str, str] = {}
DEFAULT = "digits"


def register(build: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Enter a recipe in `RECIPES` under its function's name, and its docstring in `ABOUT`."""
    RECIPES[build.__name__] = build()
    ABOUT[build.__name__] = getdoc(build) or ""
    return build


def described(name: str) -> str:
    """What the help of a command says: all of the recipe that it takes, and a line of each other one."""
    width = max(map(len, RECIPES))
    first = {other: " ".join(re.split(r"\.(?:\s|$)", about)[0].split()) for other, about in ABOUT.items()}
    about = f"{ABOUT.get(name, '')}\n\nEvery field of a recipe is an option; the defaults below are those of {name}."
    return "\n".join([about, "", "The recipes:", *(f"  {other:{width}}  {first[other]}" for other in first)])


def get_recipe(name: str) -> Recipe:
    """Look up a named recipe.

    Raises:
        UserError: there is none of this name; the message names the nearest.
    """
    return lookup(RECIPES, name, "recipe")


@register
def digits() -> Recipe:
    """The default: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels resized to 32 x 32 on the device.

    Source: ours; the dataset is the UCI "Optical Recognition of Handwritten Digits" test set, which scikit-learn
    carries. Expect at least 97 % of the 360 test images within 90 s of training on two CPU cores.
    """
    return Recipe(
        name="digits",
        dataset="digits",
        arch="alexnet_cifar",
        init="he",
        epochs=8,
        batch_size=64,
        optimizer=Optimizer(name="adamw", lr=3e-4, weight_decay=0.01),
        schedule=Schedule(milestones=(6,)),
        preprocess=Preprocess(resize=32, mean=(0.5,), std=(0.5,)),
    )


@register
def imagenet() -> Recipe:
    """torchvision's reference run, `references/classification/train.py --model alexnet --lr 1e-2`.

    Source: torchvision's model page and references: SGD 0.01, momentum 0.9, weight decay 1e-4, x0.1 every 30 of 90
    epochs, random resized crop, flip, batch 256 in all. Published: top-1 56.522, top-5 79.066 (%).
    """
    return Recipe(
        name="imagenet",
        dataset="imagenet2012",
        arch="alexnet",
        init="torch",
        epochs=90,
        batch_size=256,
        optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(milestones=(30, 60)),
        preprocess=Preprocess(
            host_resize=256, random_resized_crop=True, crop=224, flip=True, mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
    )


@register
def imagenet_2012() -> Recipe:
    """The paper's own run.

    Source: Krizhevsky et al., NIPS 2012, sections 4.1 and 5: 227 x 227 crops of the central 256 x 256, flips, PCA
    colour noise of standard deviation 0.1, batch 128, momentum 0.9, weight decay 5e-4, rate 0.01 divided by 10 three
    times over roughly 90 epochs "when the validation error stopped improving": here after epochs 30, 50 and 70.
    Pixels keep the paper's scale of 0 to 255, their mean subtracted. Published: top-1 error 40.7 %, top-5 18.2 %
    for one such network, averaging ten crops.
    """
    return Recipe(
        name="imagenet_2012",
        dataset="imagenet2012",
        arch="alexnet_2012",
        init="normal_2012",
        epochs=90,
        batch_size=128,
        optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=Schedule(milestones=(30, 50, 70)),
        preprocess=Preprocess(
            host_resize=256, crop=227, flip=True, pca_std=0.1, mean=IMAGENET_MEAN, std=(1 / 255,) * 3
        ),
    )


@register
def cifar10() -> Recipe:
    """CIFAR-10 at 32 x 32, as the tutorials train it, on the network that their classifier belongs to.

    Source: the tutorials' settings: SGD 0.01, momentum 0.9, weight decay 5e-4, x0.1 every 30 of 100 epochs, crop
    with padding 4, flip, batch 128. They expect 75 to 80 %, of a network that cannot run as printed.
    """
    return Recipe(
        name="cifar10",
        dataset="cifar10",
        arch="alexnet_cifar",
        init="kaiming",
        epochs=100,
        batch_size=128,
        optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=Schedule(milestones=(30, 60, 90)),
        preprocess=Preprocess(
            pad=4,
            crop=32,
            flip=True,
            mean=(0.4914, 0.4822, 0.4465),
            # The tutorials' figures: the mean of each image's own deviation. The pixels' is (0.247, 0.243, 0.262).
            std=(0.2023, 0.1994, 0.2010),
        ),
    )


@register
def cifar10_finetune() -> Recipe:
    """torchvision's ImageNet weights with a new last layer, all of it trained on CIFAR-10 at 224 x 224.

    Source: a published tutorial's run: AdamW 1e-5, weight decay 0.01, batch 128, no augmentation, 30 epochs.
    Published test accuracy: 0.8324 after epoch 1, 0.9203 at best (epoch 29).
    """
    return Recipe(
        name="cifar10_finetune",
        dataset="cifar10",
        arch="alexnet",
        init="torch",
        epochs=30,
        batch_size=128,
        optimizer=Optimizer(name="adamw", lr=1e-5, weight_decay=0.01),
        preprocess=Preprocess(resize=224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        pretrained="all",
    )


@register
def cifar10_finetune_backbone() -> Recipe:
    """torchvision's convolutions with a fresh classifier, which is trained alone for two epochs, then all of it.

    Source: ours; the schedule that fine-tuning guides describe: backbone frozen, then at a tenth of the rate.
    Published with all weights carried over: 0.9203.
    """
    return replace(
        cifar10_finetune(),
        name="cifar10_finetune_backbone",
        epochs=10,
        optimizer=Optimizer(name="adamw", lr=1e-4, weight_decay=0.01),
        schedule=Schedule("cosine", warmup_epochs=1),
        pretrained="backbone",
        finetune=FineTune("dense", freeze_epochs=2, backbone_lr=0.1),
    )


@register
def photos() -> Recipe:
    """A folder of photographs, a folder for each class, on torchvision's network: what `make photos` trains.

    Source: ours; the schedule of `cifar10_finetune_backbone`, and the size of ImageNet's photographs. Batch and epochs
    are fitted to the folder. With all of torchvision's weights not run yet; from its convolutions alone, on 480
    pictures of four of CIFAR-10's classes, it reached 84 to 87 % (docs/data.md).
    """
    return replace(
        cifar10_finetune_backbone(),
        name="photos",
        dataset="folder:photos",
        epochs=8,
        batch_size=32,
        preprocess=Preprocess(host_resize=256, crop=224, flip=True, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        pretrained="all",
        val_fraction=0.15,
        patience=5,
    )


@register
def photos_scratch() -> Recipe:
    """The same without given weights: a small network with batch norm at 32 x 32, which learns at all on a CPU.

    Source: ours; the network of `cifar10_best`, the optimizer of `digits`. Batch and epochs are fitted to the folder.
    On the same pictures it reached 71 to 77 %.
    """
    return replace(
        photos(),
        name="photos_scratch",
        arch="alexnet_cifar_best",
        init="he",
        epochs=30,
        optimizer=Optimizer(name="adamw", lr=3e-4, weight_decay=0.01),
        schedule=Schedule("cosine", warmup_epochs=1),
        preprocess=Preprocess(host_resize=36, crop=32, flip=True, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        pretrained="no",
        finetune=FineTune(),
        patience=15,
    )


@register
def cifar10_best() -> Recipe:
    """What the techniques are worth on CIFAR-10: an AlexNet with batch norm, trained as networks are today.

    Source: ours; its settings follow He et al., "Bag of tricks", arXiv:1812.01187, sections 3 and 5: cosine, warm-up,
    no decay on biases, label smoothing, mixing. Aims at 90 %.
    """
    return replace(
        cifar10(),
        name="cifar10_best",
        arch="alexnet_cifar_best",
        init="he",
        optimizer=Optimizer(lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_biases=False),
        schedule=Schedule("cosine", warmup_epochs=5),
        mix=Mix(mixup=0.2, cutmix=1.0),
        label_smoothing=0.1,
        precision="bfloat16",
    )


@register
def fashion_mnist() -> Recipe:
    """Fashion-MNIST on the book's AlexNet, 28 x 28 resized to 224 x 224.

    Source: Dive into Deep Learning, "Deep Convolutional Neural Networks (AlexNet)", Gluon version: Xavier
    initialisation, pixels in [0, 1], plain SGD 0.01, batch 128. Published test accuracy after the first five epochs:
    0.756, 0.804, 0.835, 0.854, 0.866.
    """
    return Recipe(
        name="fashion_mnist",
        dataset="fashion_mnist",
        arch="alexnet_fashion",
        init="xavier",
        epochs=10,
        batch_size=128,
        optimizer=Optimizer(lr=0.01),
        preprocess=Preprocess(resize=224),
    )


@register
def fashion_mnist_lenet() -> Recipe:
    """LeNet on Fashion-MNIST at 28 x 28, for comparison with `fashion_mnist`, whose other settings it keeps.

    Source: as `fashion_mnist`. A plain PyTorch loop reached 0.686, 0.745, 0.723 and 0.769 in its first epochs.
    """
    return replace(fashion_mnist(), name="fashion_mnist_lenet", arch="lenet", preprocess=Preprocess())


@register
def fashion_mnist_best() -> Recipe:
    """The same techniques on Fashion-MNIST, its 28 x 28 padded to 32 x 32. Aims at 94 %.

    Source: ours; as `cifar10_best`, with milder mixing: the images are simpler.
    """
    return replace(
        cifar10_best(),
        name="fashion_mnist_best",
        dataset="fashion_mnist",
        epochs=50,
        preprocess=Preprocess(pad=4, crop=32, flip=True, mean=(0.2860,), std=(0.3530,)),
        mix=Mix(cutmix=1.0),
    )


@register
def cifar10_fast() -> Recipe:
    """CIFAR-10 at 32 x 32 in few epochs. Aims at 78 %, where the tutorials' runs end; in PyTorch it reached 80.4 %.

    Source: ours; `cifar10_best` with a larger batch and rate, and neither mixing nor the epochs that it needs. The
    run is in docs/results.md.
    """
    return replace(
        cifar10_best(),
        name="cifar10_fast",
        epochs=10,
        batch_size=512,
        optimizer=Optimizer(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_biases=False),
        schedule=Schedule("cosine", warmup_epochs=2),
        mix=Mix(),
    )


@register
def fashion_mnist_fast() -> Recipe:
    """Fashion-MNIST at 32 x 32 in few epochs. Aims at the 86.6 % that the book's AlexNet reaches in 5 epochs.

    Source: ours; as `cifar10_fast`. Not yet run to its end.
    """
    return replace(
        cifar10_fast(),
        name="fashion_mnist_fast",
        dataset="fashion_mnist",
        epochs=4,
        schedule=Schedule("cosine", warmup_epochs=1),
        preprocess=fashion_mnist_best().preprocess,
    )
