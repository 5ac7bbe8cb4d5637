"""Fresh parameters of both frameworks against the distributions that the schemes name, computed here from shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from math import sqrt
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from scipy import stats

import flax_impl
import torch_impl
from common.arch import initializers
from common.arch.initializers import INITS, get_init
from common.arch.spec import Arch, BatchNorm, ConvSpec, DenseSpec, MaxPool
from common.arch.zoo import ARCHS, OWN
from common.errors import UserError
from common.recipes.zoo import get_recipe
from common.weights.exchange import shapes
from flax_impl.convert import from_torch, to_torch
from flax_impl.init import initialize as initialize_flax
from flax_impl.state import init_state as init_flax
from parity_tests.material import narrow, smallest
from parity_tests.results import ROOT
from torch_impl.init import initialize as initialize_torch
from torch_impl.state import init_state as init_torch

Tensors = dict[str, np.ndarray]
Distribution = Any  # a frozen distribution of scipy.stats

# Few layers, since each takes XLA long to compile, of differing fans. The convolutions are the 2012 paper's.
PROBE = Arch(
    name="probe",
    image=(51, 51, 3),
    convs=(
        ConvSpec(96, kernel=11, stride=4, after=(MaxPool(3, 2),)),
        ConvSpec(256, kernel=5, padding=2, groups=2, after=(MaxPool(3, 2),)),
    ),
    dense=(DenseSpec(400), DenseSpec(120)),
)
LAYERS = {"conv": "conv1", "grouped conv": "conv2", "first dense": "fc3", "dense": "fc4"}
FRAMEWORKS = ("torch", "flax")

_P = 1e-5  # of the tests below; the seeds are fixed, so a pass stays a pass


def draw(framework: str, scheme: str, seed: int, arch: Arch = PROBE) -> Tensors:
    """Every parameter by name, in PyTorch's layout."""
    if framework == "torch":
        model = torch_impl.build(arch)
        initialize_torch(model, get_init(scheme), seed)
        return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with jax.default_device(jax.devices("cpu")[0]):
        return to_torch(initialize_flax(flax_impl.build(arch), get_init(scheme), seed), arch)


@cache
def drawn(framework: str, scheme: str) -> Tensors:
    """The draw that most tests look at."""
    return draw(framework, scheme, 1)


def uniform(bound: float) -> Distribution:
    return stats.uniform(-bound, 2 * bound)


def normal(std: float) -> Distribution:
    return stats.norm(0, std)


# The schemes as their sources give them, as functions of fan in and fan out: convolutions, dense layers, biases.
Kernel = Callable[[int, int], Distribution]


def fan_in_uniform(fan_in: int, fan_out: int) -> Distribution:
    return uniform(1 / sqrt(fan_in))


def he(fan_in: int, fan_out: int) -> Distribution:
    return normal(sqrt(2 / fan_in))


def he_fan_out(fan_in: int, fan_out: int) -> Distribution:
    return normal(sqrt(2 / fan_out))


def xavier(fan_in: int, fan_out: int) -> Distribution:
    return uniform(sqrt(6 / (fan_in + fan_out)))


def hundredth(fan_in: int, fan_out: int) -> Distribution:
    return normal(0.01)


SCHEMES: dict[str, tuple[Kernel, Kernel, Kernel | None]] = {
    "torch": (fan_in_uniform, fan_in_uniform, fan_in_uniform),
    "normal_2012": (hundredth, hundredth, None),
    "kaiming": (he_fan_out, hundredth, None),
    "he": (he, he, None),
    "xavier": (xavier, xavier, None),
}
ONES = {"normal_2012": {"conv2", "conv4", "conv5", "fc6", "fc7"}}  # section 5 of the paper


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Fan in and fan out of a weight (out, in, ...) in PyTorch's layout; a group's input channels only."""
    window = int(np.prod(shape[2:], dtype=int))
    return shape[1] * window, shape[0] * window


def weight(tensors: Tensors, layer: str, part: str = "weight") -> np.ndarray:
    return tensors[f"{layer}.conv.{part}" if layer.startswith("conv") else f"{layer}.{part}"]


def expected(scheme: str, layer: str, part: str) -> Distribution | None:
    conv, dense, bias = SCHEMES[scheme]
    kernel = bias if part == "bias" else conv if layer.startswith("conv") else dense
    name = f"{layer}.conv.weight" if layer.startswith("conv") else f"{layer}.weight"
    return kernel(*fans(shapes(PROBE)[name])) if kernel else None


def check_distribution(values: np.ndarray, distribution: Distribution) -> None:
    """Mean, standard deviation, range and the whole shape of a sample.

    Raises:
        AssertionError: a property that a sample of `distribution` has but once in about 1 / _P times.
    """
    x = np.sort(values.ravel().astype(np.float64))
    mean, std, n, z = distribution.mean(), distribution.std(), x.size, stats.norm.isf(_P / 2)
    kurtosis = distribution.stats("k") + 3
    assert abs(x.mean() - mean) < z * std / sqrt(n), f"mean {x.mean():.3g}, not {mean:.3g}"
    assert abs(x.std() / std - 1) < z * sqrt((kurtosis - 1) / (4 * n)), (
        f"standard deviation {x.std():.4g}, not {std:.4g}"
    )
    low, high = distribution.support()
    if np.isfinite(high):
        assert low * 1.000001 <= x[0], f"minimum {x[0]:.6g}"
        assert x[-1] <= high * 1.000001, f"maximum {x[-1]:.6g}"
    # The largest of n is above the quantile 1 - p / n with probability p, and below p ** (1 / n) likewise.
    assert distribution.ppf(_P ** (1 / n)) < x[-1] < distribution.isf(_P / n) * 1.000001, f"maximum {x[-1]:.4g}"
    assert stats.kstest(x, distribution.cdf).pvalue > _P, "another distribution"


def test_no_scheme_is_forgotten() -> None:
    assert SCHEMES.keys() == INITS.keys()


def test_fans_are_pytorchs_in_every_layer() -> None:
    """Of five convolutions and three dense layers, no two of which are alike."""
    deep = replace(narrow(ARCHS["alexnet_2012"], conv=8, dense=40), image=(67, 71, 3))
    widths = (DenseSpec(40), DenseSpec(24), DenseSpec(7))
    for arch in (replace(deep, dense=widths), PROBE):
        model = torch_impl.build(arch)
        layers = [name for name, _ in (*arch.named_convs(), *arch.named_dense())]
        for layer in layers:
            kernel: Any = weight(model.state_dict(), layer)
            assert initializers.fans(layer, arch) == torch.nn.init._calculate_fan_in_and_fan_out(kernel), layer


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("scheme", INITS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_weights_follow_the_scheme(framework: str, scheme: str, layer: str) -> None:
    values = weight(drawn(framework, scheme), layer)
    distribution = expected(scheme, layer, "weight")
    assert values.shape == shapes(PROBE)[f"{layer}.conv.weight" if values.ndim == 4 else f"{layer}.weight"]
    assert values.size > 30_000  # what it takes to tell a truncated normal
    check_distribution(values, distribution)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("scheme", INITS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_biases_follow_the_scheme(framework: str, scheme: str, layer: str) -> None:
    values, distribution = weight(drawn(framework, scheme), layer, "bias"), expected(scheme, layer, "bias")
    if distribution:
        check_distribution(values, distribution)
    else:
        assert (values == float(layer in ONES.get(scheme, ()))).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_biases_of_the_paper(framework: str) -> None:
    narrow = replace(ARCHS["alexnet_cifar"], dense=(DenseSpec(8), DenseSpec(8), DenseSpec(8)))
    tensors = draw(framework, "normal_2012", 0, narrow)
    biases = {name.split(".")[0]: values for name, values in tensors.items() if name.endswith("bias")}
    assert len(biases) == 8
    for layer, values in biases.items():
        assert (values == float(layer in ONES["normal_2012"])).all(), layer


def own_layout(framework: str) -> list[np.ndarray]:
    """The kernels as their framework draws them, where equal keys would give equal beginnings."""
    tensors = [values for name, values in drawn(framework, "he").items() if name.endswith("weight")]
    if framework == "torch":
        return tensors
    return [kernel for kernel in flatten_dict(from_torch(drawn(framework, "he"), PROBE)).values() if kernel.ndim > 1]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_layers_are_drawn_independently(framework: str) -> None:
    """No layer repeats another's numbers, and no output channel another's."""
    kernels = own_layout(framework)
    assert len(kernels) == 4
    beginnings = np.corrcoef([kernel.ravel()[:5000] for kernel in kernels]) - np.eye(4)
    assert np.abs(beginnings).max() < 0.1
    channels = weight(drawn(framework, "he"), "conv2").reshape(256, -1)[:50]
    assert np.abs(np.corrcoef(channels) - np.eye(50)).max() < 0.2


@pytest.mark.parametrize("scheme", INITS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_seed_gives_its_weights(framework: str, scheme: str) -> None:
    first, again, other = drawn(framework, scheme), draw(framework, scheme, 1), draw(framework, scheme, 2)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        random = name.endswith("weight") or scheme == "torch"
        assert (values != other[name]).mean() > 0.99 if random else (values == other[name]).all(), name


def same_bits() -> None:
    """Flax's draws, uniform and normal ones, alone and within another function, where they are compiled otherwise."""
    model = flax_impl.build(PROBE)
    for scheme in ("torch", "normal_2012"):
        alone = initialize_flax(model, get_init(scheme), 3)
        within = jax.jit(lambda scheme=scheme: initialize_flax(model, get_init(scheme), 3))()
        jax.tree.map(np.testing.assert_array_equal, alone, within)


def test_flax_draws_the_same_bits_within_another_function() -> None:
    """As users compile it, which tests do not."""
    command = [sys.executable, "-c", f"from {__name__} import same_bits; same_bits()"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_network_by_name_begins_with_its_scheme_and_seed(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And has so many classes as it is asked for; PyTorch's own scheme and seed 0 where nothing is."""
    arch, begun = replace(smallest(), name="named"), list[Any]()
    monkeypatch.setitem(OWN, arch.name, arch)
    module = import_module(f"{framework}_impl.create")
    monkeypatch.setattr(module, "initialize", lambda model, init, seed: begun.append((model.arch, init, seed)))
    module.create("named", num_classes=5, init="he", seed=4)
    module.create("named")
    assert begun == [(arch.adapt(classes=5), INITS["he"], 4), (arch, INITS["torch"], 0)]


@pytest.mark.parametrize("scheme", INITS)
def test_flax_draws_for_its_shapes_alone(scheme: str) -> None:
    model, init = flax_impl.build(PROBE), get_init(scheme)
    alone, shapes_alone = initialize_flax(model, init, 3), jax.eval_shape(lambda: initialize_flax(model, init, 3))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), alone) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes_alone)


def test_torch_leaves_its_global_generator_alone() -> None:
    model = torch_impl.build(ARCHS["lenet"])
    before = torch.get_rng_state()
    initialize_torch(model, get_init("he"), 0)
    assert torch.equal(torch.get_rng_state(), before)


NORMED = Arch(
    name="normed",
    image=(9, 9, 1),
    convs=(ConvSpec(4, 3, bias=False, norm=BatchNorm()), ConvSpec(4, 3, bias=False, norm=BatchNorm())),
    dense=(DenseSpec(3), DenseSpec(2)),
)
STARTS = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}


def check_norms(tensors: Tensors) -> None:
    norms = {name: values for name, values in tensors.items() if ".norm." in name and name.split(".")[-1] in STARTS}
    assert len(norms) == 8
    for name, values in norms.items():
        assert (values == STARTS[name.split(".")[-1]]).all(), name


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_batch_norm_starts_as_the_identity(framework: str) -> None:
    check_norms(draw(framework, "he", 0, NORMED))


def test_torch_resets_a_trained_batch_norm() -> None:
    model = torch_impl.build(NORMED)
    model(torch.randn(2, 1, 9, 9))
    initialize_torch(model, get_init("he"), 0)
    check_norms({name: tensor.numpy() for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_parameters_have_the_dtype_asked_for(framework: str, precision: str) -> None:
    arch, init = NORMED, get_init("torch")
    if framework == "torch":
        model = torch_impl.build(arch).to(getattr(torch, precision))
        initialize_torch(model, init, 0)
        found = {str(tensor.dtype).removeprefix("torch.") for tensor in model.parameters()}
    else:
        with jax.enable_x64(precision == "float64"):
            variables = initialize_flax(flax_impl.build(arch, param_dtype=np.dtype(precision)), init, 0)
        found = {str(leaf.dtype) for leaf in jax.tree.leaves(variables)}
    assert found == {precision}


def _truncated(std: float) -> Distribution:
    """The truncated normal that linen draws by default: cut at two deviations, then stretched to `std`."""
    return stats.truncnorm(-2, 2, scale=std / stats.truncnorm(-2, 2).std())


FAN_IN, FAN_OUT = fans((256, 48, 5, 5))  # conv2's; the smallest sample below is conv1's
FAULTS: dict[str, tuple[Distribution, Distribution]] = {
    "truncated normal": (normal(0.05), _truncated(0.05)),
    "truncated, not stretched": (normal(0.05), stats.truncnorm(-2, 2, scale=0.05)),
    "fan in for fan out": (normal(sqrt(2 / FAN_OUT)), normal(sqrt(2 / FAN_IN))),
    "fan out without groups": (normal(sqrt(2 / FAN_OUT)), normal(sqrt(2 / (FAN_OUT / 2)))),
    "gain 1 for sqrt(2)": (normal(sqrt(2 / FAN_IN)), normal(sqrt(1 / FAN_IN))),
    "uniform of the same deviation": (normal(0.05), uniform(0.05 * sqrt(3))),
    "normal of the same deviation": (uniform(0.05), normal(0.05 / sqrt(3))),
    "sqrt(5) gain taken for 1": (uniform(1 / sqrt(FAN_IN)), uniform(sqrt(3 / FAN_IN))),
    "shifted by a tenth of a deviation": (normal(0.05), stats.norm(0.005, 0.05)),
    "one percent too wide": (uniform(0.05), uniform(0.0505)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("size", [34_848, 307_200])
def test_the_check_rejects_a_planted_fault(fault: str, size: int) -> None:
    right, planted = FAULTS[fault]
    check_distribution(right.rvs(size, random_state=3), right)
    with pytest.raises(AssertionError):
        check_distribution(planted.rvs(size, random_state=3), right)


def test_the_shape_alone_tells_a_truncated_normal() -> None:
    """Its mean and deviation are the normal's own, so only the Kolmogorov-Smirnov test or the range can."""
    sample = _truncated(0.05).rvs(34_848, random_state=0)
    assert sample.std() == pytest.approx(0.05, rel=0.01)
    assert stats.kstest(sample, normal(0.05).cdf).pvalue < 1e-6


def test_unknown_scheme_gives_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no initialisation 'kaimng'\. Did you mean 'kaiming'\?"):
        get_init("kaimng")


def test_a_run_begins_with_the_scheme_and_the_seed_of_its_recipe() -> None:
    recipe, init = replace(get_recipe("digits"), init="xavier", seed=5), get_init("xavier")
    ours = torch_impl.build(NORMED)
    initialize_torch(ours, init, 5)
    found = init_torch(recipe, NORMED, 4, torch.device("cpu")).model.state_dict()
    for name, values in ours.state_dict().items():
        assert torch.equal(found[name], values), name
    state = init_flax(recipe, NORMED, 4, jax.devices("cpu")[0])
    jax.tree.map(np.testing.assert_array_equal, state.variables, initialize_flax(state.model, init, 5))
