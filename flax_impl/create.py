"""A named network in one call. Read next to `torch_impl/create.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.arch.initializers import get_init
from common.arch.zoo import get_arch
from flax_impl.init import initialize
from flax_impl.model import AlexNet, LeNet, build


def create(
    name: str, *, num_classes: int | None = None, init: str = "torch", seed: int = 0, pretrained: bool | str = False
) -> tuple[AlexNet | LeNet, dict[str, Any]]:
    """A named network and its variables, ready for `model.apply(variables, images, train=False)`.

    Args:
        name: a key of `common.arch.zoo.ARCHS`.
        num_classes: logits, if other than the architecture's own.
        init: a key of `common.arch.initializers.INITS`, drawn with `seed`.
        pretrained: load torchvision's ImageNet weights (`alexnet` only), from the file that `make weights` writes
            or from the one named. With another number of classes the last layer stays fresh.

    Raises:
        UserError: unknown name, or weights that cannot be had or do not fit.
    """
    arch = get_arch(name).adapt(classes=num_classes)
    model = build(arch)
    variables = initialize(model, get_init(init), seed)
    if pretrained:
        from flax_impl.weights import (
            load_pretrained,
        )  # not before `python -m` does

        variables, _ = load_pretrained(variables, arch, None if pretrained is True else Path(pretrained))
    return model, variables
