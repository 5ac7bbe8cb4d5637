"""Other tools' hands on the models: tracers, images of a wrong shape, and architectures that one framework refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

import flax_impl
import torch_impl
from common.arch.spec import Arch, BatchNorm, ConvSpec, DenseSpec, LocalResponseNorm, MaxPool
from common.arch.zoo import ARCHS
from common.errors import UserError
from common.recipes.spec import Preprocess
from common.recipes.zoo import get_recipe
from common.training.loop import fit
from common.training.options import TrainOptions
from common.weights.export import check_onnx
from parity_tests.material import narrow

SMALL = Arch(
    "small",
    (8, 8, 2),
    (ConvSpec(4, 3, padding=1, norm=BatchNorm(), after=(LocalResponseNorm(), MaxPool(3, 2, 1))), ConvSpec(6, 2)),
    (DenseSpec(5), DenseSpec(3)),
    adaptive_pool=2,
)


@pytest.mark.parametrize("name", ["small", *ARCHS])
def test_torch_fx_traces_them(name: str) -> None:
    model = torch_impl.build(SMALL if name == "small" else narrow(ARCHS[name])).eval()
    height, width, channels = model.arch.image
    images = torch.randn(2, channels, height, width)
    expected = model(images)
    assert torch.equal(torch.fx.symbolic_trace(model)(images), expected)
    found = create_feature_extractor(model, {"conv2": "inner", [*dict(model.named_children())][-1]: "logits"})(images)
    assert found["inner"].shape[1] == model.arch.convs[1].features
    assert torch.equal(found["logits"], expected)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((2, 8, 8), "one image is a batch of 1, its first axis"),
        ((64,), "the input has the shape (64,), and it takes images as"),
        ((1, 3, 8, 8), "the input has 3 channels, the network takes 2: it takes images as"),
        ((1, 2, 1, 1), "an image of 1x1 is too small"),
    ],
)
def test_images_of_another_shape_get_a_sentence(shape: tuple[int, ...], told: str) -> None:
    """Also while a network is compiled; the shapes are PyTorch's, of which Flax's are the others."""
    model, linen = torch_impl.build(SMALL).eval(), flax_impl.model.build(SMALL)
    with pytest.raises(UserError) as in_torch:
        model(torch.zeros(shape))
    variables = linen.init(jax.random.key(0), jnp.zeros((1, 8, 8, 2)), train=False)
    last = (*shape[:-3], *shape[-2:], shape[-3]) if len(shape) > 2 else shape
    with pytest.raises(UserError) as in_flax:
        jax.jit(lambda images: linen.apply(variables, images, train=False))(jnp.zeros(last))
    for raised, taken in ((in_torch, "(N, 2, 8, 8), NCHW"), (in_flax, "(N, 8, 8, 2), NHWC")):
        assert told in str(raised.value)
        assert taken in str(raised.value) or "too small" in told


def conv(**changes: Any) -> Callable[[], Arch]:
    return lambda: replace(SMALL, convs=(replace(SMALL.convs[0], **changes), SMALL.convs[1]))


FAULTS: dict[str, tuple[Callable[[], Arch], str]] = {
    "padding below 0": (conv(padding=-1), r"conv1's padding is -1; it must be at least 0"),
    "padding in words": (conv(padding="SAME"), r"conv1's padding is 'SAME'; it must be a whole number"),
    "half a stride": (conv(stride=0.5), r"conv1's stride is 0\.5; it must be a whole number"),
    "pool's padding below 0": (conv(after=(MaxPool(3, 2, -1),)), r"conv1's padding is -1"),
    "pool's padding above half": (conv(after=(MaxPool(3, 2, 2),)), r"padding of conv1's pool is 2; .* at most half"),
    "norm without eps": (conv(norm=BatchNorm(eps=0)), r"conv1's norm has eps 0"),
    "norm's momentum": (conv(norm=BatchNorm(momentum=1.5)), r"momentum 1\.5"),
    "no features": (conv(features=0), r"conv1's features is 0; it must be at least 1"),
    "groups": (conv(groups=3), r"conv1 cannot split 2 input and 4 output channels into 3 groups"),
    "kernel": (conv(kernel=11), r"8x8 is too small: conv1 needs 9x9"),
    "pool of -1": (lambda: replace(SMALL, adaptive_pool=-1), r"adaptive_pool is -1; it must be at least 1"),
    "pool of 0": (lambda: replace(SMALL, adaptive_pool=0), r"adaptive_pool is 0; it must be at least 1"),
    "activation": (lambda: replace(SMALL, activation="gelu"), r"activation is 'gelu'; it must be one of relu"),  # type: ignore[arg-type]
    "a list": (lambda: replace(SMALL, convs=[*SMALL.convs]), r"convs is a list; it must be a tuple"),  # type: ignore[arg-type]
    "image": (lambda: replace(SMALL, image=(8, 8)), r"image is \(8, 8\); it must be height, width and channels"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_one_framework_alone_would_take_is_refused(fault: str) -> None:
    make, told = FAULTS[fault]
    with pytest.raises(UserError, match=f"^small: .*{told}"):
        make()


def test_batch_norm_of_one_value_a_channel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch refuses to train so, and Flax makes zeros."""
    arch = replace(SMALL, convs=(replace(SMALL.convs[0], kernel=8, padding=0, after=()), ConvSpec(6, 1)))
    monkeypatch.setitem(ARCHS, "small", arch)
    recipe = replace(get_recipe("cifar10"), arch="small", batch_size=4, preprocess=Preprocess())
    recipe.model_arch((8, 8, 2), 3)
    with pytest.raises(UserError, match=r"norm1 has one value a channel .* batches of 1 \(batch_size 4, accumulate 4"):
        replace(recipe, accumulate=4).model_arch((8, 8, 2), 3)
    replace(recipe, accumulate=2).model_arch((8, 8, 2), 3)
    small = replace(recipe, accumulate=2).model_arch((8, 8, 2), 3)
    for examples in (2, 8, 12, 1438):
        replace(recipe, accumulate=2).check_rest(small, examples)
    for examples in (1, 3, 9, 1437):
        with pytest.raises(UserError, match=f"accumulate 2, which {examples:,} examples leave over"):
            replace(recipe, accumulate=2).check_rest(small, examples)
    digits = replace(recipe, dataset="digits", accumulate=2, preprocess=Preprocess())
    monkeypatch.setitem(ARCHS, "small", arch.adapt(channels=1))
    with pytest.raises(UserError, match=r"accumulate 2, which 1,437 examples leave over"):  # as a run of them is
        fit(mock.MagicMock(check_precision=mock.Mock(side_effect=AssertionError)), digits, TrainOptions())
    monkeypatch.setitem(ARCHS, "small", arch)
    for more in ((8, 9), (9, 8), (9, 9)):
        replace(recipe, accumulate=4).model_arch((*more, 2), 3)
    monkeypatch.setitem(ARCHS, "small", replace(arch, convs=(replace(arch.convs[0], norm=None), *arch.convs[1:])))
    replace(recipe, accumulate=4).model_arch((8, 8, 2), 3)


def test_an_onnx_file_is_of_its_operator_sets_time() -> None:
    onnx = pytest.importorskip("onnx")
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 2]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", info[:1], info[1:])
    for opset, version in ((13, 7), (15, 8), (18, 8), (19, 9)):
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
        assert onnx.load_from_string(check_onnx(proto, opset)).ir_version == version
