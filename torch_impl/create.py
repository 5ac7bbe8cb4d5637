"""A named network in one call. Read next to `flax_impl/create.py`."""

from __future__ import annotations

from common.arch.initializers import get_init
from common.arch.zoo import get_arch
from torch_impl.init import initialize
from torch_impl.model import AlexNet, LeNet, build


def create(
    name: str, *, num_classes: int | None = None, init: str = "torch", seed: int = 0, pretrained: bool = False
) -> AlexNet | LeNet:
    """A named network, ready to use.

    Args:
        name: a key of `common.arch.zoo.ARCHS`.
        num_classes: logits, if other than the architecture's own.
        init: a key of `common.arch.initializers.INITS`, drawn with `seed`.
        pretrained: load torchvision's ImageNet weights (`alexnet` only; downloaded once). With another number of
            classes the last layer stays fresh.

    Raises:
        UserError: unknown name, or weights that cannot be had or do not fit.
    """
    arch = get_arch(name).adapt(classes=num_classes)
    model = build(arch)
    initialize(model, get_init(init), seed)
    if pretrained:
        from torch_impl.weights import (
            load_pretrained,
        )  # not before `python -m` does

        load_pretrained(model, arch)
    return model
