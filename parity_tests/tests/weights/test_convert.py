"""The converter: bitwise round trips, values in the right places, and one clear error for whatever does not fit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flax_impl
import flax_impl.optim
import torch_impl
import torch_impl.optim
from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.errors import UserError
from common.weights import exchange
from flax_impl import convert
from flax_impl import weights as flax_weights
from flax_impl.model import build
from parity_tests.material import narrow, smallest
from parity_tests.sides import make_pair
from torch_impl import pth, weights
from torch_impl.optim import OPTIMIZERS

SMALL = narrow(ARCHS["alexnet_bn"].adapt(height=63, width=63, classes=5))


def _state(arch: Arch, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in exchange.shapes(arch).items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("name", ARCHS)
def test_round_trips_are_bitwise(name: str, dtype: Any) -> None:
    arch = narrow(ARCHS[name])
    state = _state(arch, dtype=dtype)
    variables = convert.from_torch(state, arch)
    back = convert.to_torch(variables, arch)
    assert list(back) == list(state)
    for key in state:
        assert back[key].dtype == state[key].dtype
        np.testing.assert_array_equal(back[key], state[key])
    again = convert.from_torch(back, arch)
    jax.tree.map(np.testing.assert_array_equal, variables, again)


@pytest.mark.parametrize("name", ARCHS)
def test_the_names_are_those_of_the_modules(name: str) -> None:
    arch = narrow(ARCHS[name])
    with torch.device("meta"):
        state = torch_impl.build(arch).state_dict()
    ours = {key: tuple(value.shape) for key, value in state.items() if not key.endswith(exchange.COUNTER)}
    assert ours == exchange.shapes(arch)
    shapes = jax.eval_shape(lambda: build(arch).init(jax.random.key(0), jnp.zeros((1, *arch.image)), train=False))
    converted = convert.from_torch(_state(arch), arch)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(np.shape, converted)


def test_fc6_is_reordered_and_square_fc7_transposed() -> None:
    arch = SMALL
    height, width, channels = arch.feature_size
    state = _state(arch)
    params = convert.from_torch(state, arch)["params"]
    kernel = params["fc6"]["kernel"].reshape(height, width, channels, -1)
    weight = state["fc6.weight"].reshape(-1, channels, height, width)
    assert kernel[1, 2, 3, 4] == weight[4, 3, 1, 2]
    assert state["fc7.weight"].shape[0] == state["fc7.weight"].shape[1]
    np.testing.assert_array_equal(params["fc7"]["kernel"], state["fc7.weight"].T)


def test_nothing_is_shared_with_the_source() -> None:
    model = torch_impl.build(SMALL)
    variables = convert.from_torch(model.state_dict(), SMALL)
    before = variables["batch_stats"]["conv1"]["norm"]["mean"].copy()
    model(torch.randn(2, 3, 63, 63))  # updates the running statistics in place
    np.testing.assert_array_equal(variables["batch_stats"]["conv1"]["norm"]["mean"], before)


def test_torchvision_names_are_understood() -> None:
    from torchvision.models import alexnet

    state = alexnet(num_classes=7).state_dict()
    arch = ARCHS["alexnet"].adapt(classes=7)
    variables = convert.from_torch(state, arch)
    for name, array in convert.to_torch(variables, arch).items():
        np.testing.assert_array_equal(array, state[exchange.to_torchvision(name)].numpy())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_travels(name: Any) -> None:
    """Two steps in PyTorch, the memory carried to Flax; two in Flax, carried back: then both go on alike."""
    from dataclasses import replace

    from common.recipes.spec import Optimizer
    from parity.compare import Bounds, compare_run
    from parity_tests.material import first_batches
    from parity_tests.subjects import subjects

    subject = subjects()["batch norm"]
    recipe = replace(subject.recipe, optimizer=Optimizer(name=name, lr=1e-3, momentum=0.9 * (name == "sgd")))
    left, right = make_pair(recipe, subject.arch, 4)
    batches = [batch for batch in first_batches(subject.data, recipe, 7) if len(batch.labels) == recipe.batch_size]
    assert len(batches) == 6
    for batch in batches[:2]:
        left.step(batch)
    memory = torch_impl.optim.optimizer_state(left.state.optimizer, left.state.model)
    variables = jax.tree.map(jnp.asarray, convert.from_torch(left.state.model.state_dict(), subject.arch))
    state = right.state
    opt_state = flax_impl.optim.load_optimizer(exchange.OptimizerState(2, memory.slots), state.opt_state, subject.arch)
    # As a step leaves it: all on the device, so that one program serves all steps.
    loaded = state.replace(step=jnp.full_like(state.step, 2), opt_state=opt_state, **variables)
    right.state = jax.device_put(loaded, state.device)
    compare_run(left, right, batches[2:4], batches[2:4], Bounds(1e-9))
    third, _ = make_pair(recipe, subject.arch, 4)
    pth.fill(third.state.model, convert.to_torch(right.state.variables, subject.arch))
    back = flax_impl.optim.optimizer_state(right.state.opt_state, subject.arch)
    torch_impl.optim.load_optimizer(back, third.state.optimizer, third.state.model)
    third.state.schedule.load_state_dict(left.state.schedule.state_dict())
    third.state.optimizer.param_groups[0]["lr"] = left.state.optimizer.param_groups[0]["lr"]
    third.state.step = 4
    compare_run(third, right, batches[4:], batches[4:], Bounds(1e-9))


def test_optimizer_state_of_another_optimizer_is_refused() -> None:
    from dataclasses import replace

    from parity_tests.subjects import subjects

    subject = subjects()["adam"]
    recipe = replace(subject.recipe, precision="float32")
    _, right = make_pair(recipe, subject.arch, 4)
    slots = {"momentum_buffer": _state(subject.arch)}
    with pytest.raises(UserError, match=r"exp_avg/conv1\.conv\.weight.* is missing"):
        flax_impl.optim.load_optimizer(exchange.OptimizerState(1, slots), right.state.opt_state, subject.arch)


def _without(state: Any) -> Any:
    return {name: array for name, array in state.items() if name != "fc7.bias"}


def _poisoned(state: Any) -> Any:
    state["conv2.norm.running_var"][0] = np.nan
    return state


def _twice(state: Any) -> Any:
    return state | {"features.0.weight": state["conv1.conv.weight"]}


def _to_int8(state: Any) -> Any:
    return state | {"fc7.bias": state["fc7.bias"].astype(np.int8)}


WRONG = {
    "twice": (_twice, r"conv1\.conv\.weight is there twice"),
    "integers": (_to_int8, r"fc7\.bias is int8; float16, float32 and float64 are taken"),
    "a counter of another layer": (lambda s: s | {"fc7.num_batches_tracked": np.zeros(3)}, r"fc7\.num_.* is unknown"),
    "a single number": (lambda s: s | {"fc8.bias": np.array(1, np.float32)}, r"fc8\.bias is \(\), not \(5,\)"),
    "missing": (_without, r"fc7\.bias \(64,\) is missing"),
    "unknown": (lambda s: s | {"fc9.bias": np.zeros(3)}, r"fc9\.bias \(3,\) is unknown"),
    "transposed": (lambda s: s | {"fc6.weight": s["fc6.weight"].T}, r"fc6\.weight is \(1152, 64\), not \(64, 1152\)"),
    "flattened": (lambda s: s | {"conv1.conv.weight": s["conv1.conv.weight"].ravel()}, r"conv1\.conv\.weight is"),
    "NaN": (_poisoned, r"conv2\.norm\.running_var holds NaN"),
    "other classes": (lambda s: s | {"fc8.bias": np.zeros(9), "fc8.weight": np.zeros((9, 64))}, r"with 5 classes"),
}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("side", ["from_torch", "to_torch", "safetensors to Flax", "safetensors to PyTorch"])
def test_what_does_not_fit_is_refused_whole(fault: str, side: str, tmp_path: Path) -> None:
    change, message = WRONG[fault]
    if side == "to_torch" and fault in ("twice", "a counter of another layer"):
        return  # a tree has neither
    state = change(_state(SMALL))
    model = torch_impl.build(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match=message):
        _load(side, fault, state, model, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _load(side: str, fault: str, state: Any, model: torch.nn.Module, file: Path) -> None:
    if side == "from_torch":
        convert.from_torch(state, SMALL)
    elif side == "to_torch":
        convert.to_torch(_broken_variables(convert.from_torch(_state(SMALL), SMALL), fault), SMALL)
    else:
        exchange.write(file, state, SMALL)
        if side == "safetensors to Flax":
            flax_weights.load(file, SMALL)
        else:
            weights.load(file, model, SMALL)


def _broken_variables(variables: dict[str, Any], fault: str) -> dict[str, Any]:
    params, stats = variables["params"], variables["batch_stats"]
    match fault:
        case "missing":
            del params["fc7"]["bias"]
        case "unknown":
            params["fc9"] = {"bias": np.zeros(3)}
            variables["params"]["fc9.bias"] = params.pop("fc9")["bias"]
        case "transposed":
            params["fc6"]["kernel"] = params["fc6"]["kernel"].T
        case "flattened":
            params["conv1"]["conv"]["kernel"] = params["conv1"]["conv"]["kernel"].ravel()
        case "NaN":
            stats["conv2"]["norm"]["var"][0] = np.nan
        case "integers":
            params["fc7"]["bias"] = params["fc7"]["bias"].astype(np.int8)
        case "a single number":
            params["fc8"]["bias"] = np.float32(1)
        case "other classes":
            params["fc8"] = {"kernel": np.zeros((64, 9)), "bias": np.zeros(9)}
    return variables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to_sparse(), "fc7.bias cannot become a numpy array"),
        (lambda t: t.to("meta"), "fc7.bias cannot become a numpy array"),
        (lambda t: t.bfloat16(), "fc7.bias cannot become a numpy array .*BFloat16"),
        (lambda t: t.to(torch.complex64), "fc7.bias is complex64"),
    ],
)
def test_tensors_that_numpy_cannot_hold_are_named(change: Any, message: str) -> None:
    state = dict(torch_impl.build(SMALL).state_dict())
    state["fc7.bias"] = change(state["fc7.bias"])
    with pytest.raises(UserError, match=message):
        convert.from_torch(state, SMALL)


def test_a_model_in_training_converts() -> None:
    arch = narrow(ARCHS["alexnet_cifar"])
    parameters = dict(torch_impl.build(arch).named_parameters())
    variables = convert.from_torch(parameters, arch)
    np.testing.assert_array_equal(variables["params"]["fc8"]["bias"], parameters["fc8.bias"].detach().numpy())


def test_names_are_texts_and_wrappers_are_explained() -> None:
    state: dict[Any, Any] = _state(SMALL)
    with pytest.raises(UserError, match="7 is none"):
        convert.from_torch(state | {7: np.zeros(3)}, SMALL)
    with pytest.raises(UserError, match="DataParallel"):
        convert.from_torch({f"module.{name}": array for name, array in state.items()}, SMALL)


LOADERS = {
    "flax": lambda path: flax_weights.load(path, SMALL),
    "torch": lambda path: weights.load(path, torch_impl.build(SMALL), SMALL),
}


@pytest.mark.parametrize("load", LOADERS)
def test_a_file_of_another_network_with_equal_shapes_is_refused(load: str, tmp_path: Path) -> None:
    from dataclasses import replace

    tanh = replace(SMALL, name="tanh", activation="tanh")
    exchange.write(tmp_path / "tanh.safetensors", _state(tanh), tanh)
    with pytest.raises(UserError, match="holds tanh, whose blocks, pools or activation"):
        LOADERS[load](tmp_path / "tanh.safetensors")


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    exchange.write(file, _state(SMALL), SMALL)
    file.write_bytes(file.read_bytes()[:cut])
    for load in (lambda: flax_weights.load(file, SMALL), lambda: weights.load(file, torch_impl.build(SMALL), SMALL)):
        with pytest.raises(UserError, match=r"model\.safetensors is not a readable"):
            load()


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"fc6.weight": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pth", "plain.pth"):
        with pytest.raises(UserError, match=name):
            pth.read_pth(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a file of weights", "is not one that torch.save wrote"),
        (b"PK\x03\x04 cut short", "damaged or cut short"),
        (b"\x10\0\0\0\0\0\0\0{}", "is a .safetensors file: give it that suffix"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_foreign_pth_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "foreign.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"foreign\.pth.*{message}"):
        pth.read_pth(tmp_path / "foreign.pth")


def test_a_pth_under_the_other_suffix_is_explained(tmp_path: Path) -> None:
    torch.save(torch_impl.build(SMALL).state_dict(), tmp_path / "named.safetensors")
    with pytest.raises(UserError, match=r"is a file that torch\.save wrote.*torch_impl\.weights"):
        exchange.read(tmp_path / "named.safetensors")


def _command(monkeypatch: pytest.MonkeyPatch, main: Any, *arguments: Any) -> None:
    monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
    main()


@pytest.mark.parametrize(("classes", "fresh"), [(4, ("fc4",)), (5, ()), (6, ("fc4",)), (50, ("fc4",))])
def test_a_last_layer_of_other_classes_stays_fresh(classes: int, fresh: tuple[str, ...]) -> None:
    """Of more as of fewer; and without any dense layer in a file all of them do."""
    arch = smallest().adapt(classes=5)
    state = _state(arch.adapt(classes=classes))
    loaded = exchange.check_partial(state, arch, "a file")
    assert loaded.fresh == fresh
    assert loaded.tensors.keys() == {name for name in exchange.shapes(arch) if name.split(".")[0] not in fresh}
    alone = exchange.check_partial(exchange.backbone(state, arch), arch, "a file")
    assert alone.fresh == ("fc3", "fc4")
    assert {name.split(".")[0] for name in alone.tensors} == {"conv1", "conv2"}


def test_a_file_says_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command keeps a file's own architecture, and refuses another."""
    given, made = tmp_path / "given.safetensors", tmp_path / "made.safetensors"
    exchange.write(given, _state(SMALL), SMALL)
    with pytest.raises(UserError, match="says that it holds alexnet_bn, not alexnet"):
        _command(monkeypatch, weights.main, given, made, "--arch", "alexnet")
    assert not made.exists()
    _command(monkeypatch, weights.main, given, made)
    assert exchange.read_arch(exchange.read(made)[1], "made") == SMALL


@pytest.mark.parametrize("main", [weights.main, flax_weights.main])
def test_a_destination_is_checked_first(main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given.safetensors"
    exchange.write(given, _state(SMALL), SMALL)
    (tmp_path / "folder.safetensors").mkdir()
    for dest, message in (
        (tmp_path / "made.pth", "must end in .safetensors"),
        (tmp_path / "folder.safetensors", "is a folder"),
        (given / "made.safetensors", "Cannot make the folder"),
    ):
        with pytest.raises(UserError, match=message):
            _command(monkeypatch, main, given, dest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.safetensors", "given.safetensors"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(UserError, match=r"Cannot write .*No space left"):
        exchange.write(tmp_path / "made.safetensors", _state(SMALL), SMALL)
    assert not list(tmp_path.iterdir())


def test_flax_points_to_the_command_for_pth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"python -m torch_impl\.weights .*given\.pth"):
        _command(monkeypatch, flax_weights.main, tmp_path / "given.pth", tmp_path / "made.safetensors")


def test_pth_to_safetensors_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import alexnet

    state = alexnet(num_classes=3).state_dict()
    torch.save(state, tmp_path / "given.pth")
    _command(monkeypatch, weights.main, tmp_path / "given.pth", tmp_path / "made.safetensors")
    arch = ARCHS["alexnet"].adapt(classes=3)
    loaded = flax_weights.load(tmp_path / "made.safetensors", arch)
    np.testing.assert_array_equal(loaded["params"]["fc8"]["bias"], state["classifier.6.bias"].numpy())
    assert exchange.read_arch(exchange.read(tmp_path / "made.safetensors")[1], "made") == arch


def test_real_weights_fit(tmp_path: Path) -> None:
    """torchvision's own convolutions, where they are at hand, as the backbone of a network of ten classes."""
    import os

    given = os.environ.get("ALEXNET_FEATURES")
    if not given:
        pytest.skip("ALEXNET_FEATURES does not name torchvision's convolution weights")
    arch = ARCHS["alexnet"].adapt(classes=10)
    model = torch_impl.create("alexnet", num_classes=10)
    fresh = weights.load_partial(Path(given), model, arch)
    assert fresh == ("fc6", "fc7", "fc8")
    variables = convert.from_torch(model.state_dict(), arch)
    other, fresh = flax_weights.load_partial(Path(given), convert.from_torch(_state(arch), arch), arch)
    assert fresh == ("fc6", "fc7", "fc8")
    jax.tree.map(
        np.testing.assert_array_equal,
        {name: variables["params"][name] for name, _ in arch.named_convs()},
        {name: other["params"][name] for name, _ in arch.named_convs()},
    )
    raw, _ = exchange.read(Path(given))
    np.testing.assert_array_equal(model.state_dict()["conv1.conv.weight"].numpy(), raw["features.0.weight"])


def test_channels_are_counted_over_all_groups() -> None:
    """A kernel holds those of one group; the classes are the last bias's."""
    lenet = ARCHS["lenet"]
    grouped = replace(lenet.adapt(channels=2), convs=(replace(lenet.convs[0], groups=2), *lenet.convs[1:]))
    state = {name: np.zeros(shape) for name, shape in exchange.shapes(grouped.adapt(channels=6, classes=4)).items()}
    assert state["conv1.conv.weight"].shape[1] == 3
    assert exchange.fit(state, grouped) == grouped.adapt(channels=6, classes=4)


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_network_computes_in_the_precision_asked_for(stored: Any, precision: str, tmp_path: Path) -> None:
    """Whatever its file was written in."""
    arch, file = narrow(ARCHS["lenet"]), tmp_path / "x.safetensors"
    tensors = {name: np.full(shape, 0.25, stored) for name, shape in exchange.shapes(arch).items()}
    exchange.write(file, tensors, arch)
    state = weights.load_model(file, arch, precision).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {getattr(torch, precision)}
    assert all(bool((tensor == 0.25).all()) for tensor in state.values())


def test_given_weights_take_the_place_of_drawn_ones_in_the_runs_precision(tmp_path: Path) -> None:
    """A float64 run that starts from a float32 file stays one, and nothing of what was drawn is left."""
    arch, file = narrow(ARCHS["lenet"]), tmp_path / "x.safetensors"
    exchange.write(
        file, {name: np.full(shape, 0.25, np.float32) for name, shape in exchange.shapes(arch).items()}, arch
    )
    model = torch_impl.build(arch).double()
    assert weights.load_partial(file, model, arch) == ()
    assert {(tensor.dtype, *tensor.unique().tolist()) for tensor in model.state_dict().values()} == {
        (torch.float64, 0.25)
    }
    variables = convert.from_torch(torch_impl.build(arch).double().state_dict(), arch)
    loaded, fresh = flax_weights.load_partial(file, variables, arch)
    assert fresh == ()
    assert {(str(leaf.dtype), *np.unique(leaf).tolist()) for leaf in jax.tree.leaves(loaded)} == {("float64", 0.25)}
