"""Where the idioms of the two frameworks part, layer by layer."""

from __future__ import annotations

from common.arch.spec import Arch, LocalResponseNorm

_BLOCK = (
    "PyTorch's activations are (N, C, H, W), Flax's (N, H, W, C); in memory both are channels last.",
    "PyTorch's Conv2d is told its input channels, Flax's Conv finds them when it is initialised.",
    'Padding is given in pixels: "SAME", Flax\'s default, pads a strided window unevenly, which PyTorch cannot.',
)
_TRAIN = "Flax is told on each call whether it trains (train=train); PyTorch's module remembers .train() or .eval()."
_LRN = (
    "Local response norm: PyTorch divides alpha by the window's size, the paper does not. The Arch holds the paper's, "
    "so torch_impl multiplies by the size."
)
_BATCH_NORM = (
    "Batch norm: PyTorch's momentum is the weight of the new batch, Flax's that of the old statistics (1 - momentum). "
    "PyTorch updates its running variance with the unbiased estimate; flax_impl.layers.BatchNorm does the same."
)
_POOL = "PyTorch needs a module for the adaptive pool, an nn.Identity where there is none; in Flax it is a function."
_FLATTEN = (
    "PyTorch flattens C, H, W and Flax H, W, C: the same numbers in another order. No transpose is left in either "
    "network; the converter reorders the inputs of the first dense layer's weights instead."
)
_DROPOUT = (
    "PyTorch's Dropout draws from a global generator, Flax's from the key passed as rngs={'dropout': key}. Training "
    "puts torch_impl.dropout in its place, which reproduces Flax's masks bit for bit.",
    "Flax is told deterministic=not train; PyTorch's module knows its mode. In evaluation, as measured here, both pass "
    "their input on.",
)
_FIRST_DROPOUT = "Its input is flattened in another order in each framework, so the mask is reordered with it."
_DENSE = (
    "PyTorch's Linear is told its inputs and keeps (out, in); Flax's Dense finds them and keeps (in, out).",
    "What is measured is the layer's output before the activation.",
)
_FIRST_DENSE = "Its inputs come in another order in each framework: see flatten."
_LOGITS = "These are the logits: neither network applies a softmax."


def notes(arch: Arch, layer: str) -> list[str]:
    """What differs between the two texts of a layer, a sentence or two each."""
    first, last = (list(arch.named_dense())[end][0] for end in (0, -1))
    if layer == "pool":
        return [_POOL]
    if layer == "flatten":
        return [_FLATTEN]
    if layer.startswith("drop"):
        return [*_DROPOUT, *([_FIRST_DROPOUT] if layer == first.replace("fc", "drop") else [])]
    if layer.startswith("fc"):
        return [*_DENSE, *([_FIRST_DENSE] if layer == first else []), *([_LOGITS] if layer == last else [])]
    spec = dict(arch.named_convs())[layer]
    found = [*_BLOCK, _TRAIN]
    if spec.norm:
        found.append(_BATCH_NORM)
    if any(isinstance(step, LocalResponseNorm) for step in spec.after):
        found.append(_LRN)
    return found
