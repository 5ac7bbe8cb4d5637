"""What a device multiplies float32 numbers in: a GPU may round them to TF32's ten bits, some CPUs to bfloat16's seven.

No setting is trusted: each framework multiplies numbers by 1 and looks what is left of them (`device.products`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.errors import UserError

# Each mark survives a product with 1 in its own arithmetic, and is rounded to 1 in every coarser one.
MARKS = {"float32": 1 + 2.0**-12, "tf32": 1 + 2.0**-9, "bfloat16": 1 + 2.0**-6}
NEAR = 2.0**-16  # not to the last place: a convolution may be computed in Winograd's domain, whose sums round
_SIDE = 256  # of the matrices: small enough products are multiplied without the units that round


def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What is multiplied, in float32.

    Returns:
        Rows (N, C) of the marks in turn, and the matrix (C, C) that leaves them alone; images (N, H, W, C) of a mark
        each, and the filters (3, 3, C, C) that do.
    """
    marks = np.resize(np.array([*MARKS.values()], np.float32), _SIDE)
    filters = np.zeros((3, 3, _SIDE // 4, _SIDE // 4), np.float32)
    filters[1, 1] = np.eye(_SIDE // 4)
    images = np.broadcast_to(marks[:12, None, None, None], (12, 16, 16, _SIDE // 4)).copy()
    return np.repeat(marks[:, None], _SIDE, 1), np.eye(_SIDE, dtype=np.float32), images, filters


def named(products: Sequence[float]) -> str:
    """The finest arithmetic whose mark is left; `products` begin with those of `MARKS`, in their order."""
    left = zip(MARKS.items(), products, strict=False)
    return next((name for (name, mark), x in left if abs(x - mark) < NEAR), "less than bfloat16")


def check_products(precision: str, found: Mapping[str, str], device: str) -> None:
    """Hold what was found to a recipe's precision: `float32` unless it is `tf32`, which one kind of product shows.

    Args:
        precision: of the recipe.
        found: the arithmetic of each kind of product.
        device: in words.

    Raises:
        UserError: it is another one.
    """
    if precision == "tf32":
        if "tf32" not in found.values():
            raise UserError(f"precision is tf32, which {device} does not multiply in: take float32 or bfloat16.")
    elif other := {kind: name for kind, name in found.items() if name != "float32"}:
        what = " and ".join(f"{kind} products in {name}" for kind, name in other.items())
        raise UserError(
            f"precision is {precision}, whose float32 is float32, but {device} computes {what}: "
            f"is a variable set that allows it (NVIDIA_TF32_OVERRIDE, DNNL_DEFAULT_FPMATH_MODE, XLA_FLAGS)?"
        )
