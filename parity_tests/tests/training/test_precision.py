"""A precision is what it says, a run says how it computes, and `--deterministic` comes before everything else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
import torch

import flax_impl.device
import flax_impl.train
import torch_impl.device
import torch_impl.train
from common.arithmetic import MARKS, check_products, named, operands
from common.errors import UserError
from common.recipes.spec import Precision, Schedule
from common.recipes.zoo import RECIPES
from common.training.options import TrainOptions
from parity_tests.mutants import rounded
from parity_tests.sides import make_states
from parity_tests.subjects import subjects

DEVICES: dict[str, Any] = {"torch": torch_impl.device, "flax": flax_impl.device}
LOOPS: dict[str, Any] = {"torch": torch_impl.train, "flax": flax_impl.train}
CPU: dict[str, Any] = {"torch": torch.device("cpu"), "flax": jax.devices("cpu")[0]}
both = pytest.mark.parametrize("framework", DEVICES)


@pytest.mark.parametrize(("bits", "name"), [(23, "float32"), (10, "tf32"), (7, "bfloat16"), (3, "less than bfloat16")])
def test_arithmetic_is_named_by_what_is_left_of_the_marks(bits: int, name: str) -> None:
    marks = rounded(torch.tensor([*MARKS.values()]), bits)
    assert named(marks.tolist()) == name
    assert named((marks + 2.0**-20).tolist()) == name  # as sums in Winograd's domain may round
    assert named([float("nan")] * len(MARKS)) == "less than bfloat16"


def test_the_operands_leave_the_marks_alone() -> None:
    rows, one, images, filters = operands()
    np.testing.assert_array_equal(rows @ one, rows)
    np.testing.assert_array_equal(filters.sum((0, 1)), np.eye(filters.shape[2]))
    for found in (rows[:, 0], images[:, 3, 4, 5]):
        np.testing.assert_array_equal(found[: len(MARKS)], np.array([*MARKS.values()], np.float32))


@both
def test_float32_that_is_none_is_refused(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: dense layers whose operands are rounded on the way in, as a GPU may do it."""
    device = DEVICES[framework]
    assert device.check_precision("float32", CPU[framework]) == {"dense": "float32", "convolution": "float32"}
    if framework == "torch":
        linear = torch.nn.functional.linear
        monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w, *b: linear(rounded(x, 10), rounded(w, 10), *b))
    else:
        multiply = device._multiply
        monkeypatch.setattr(device, "_multiply", lambda rows, *rest: multiply(rounded_array(rows), *rest))
    for precision in ("float32", "bfloat16"):
        with pytest.raises(UserError, match=rf"precision is {precision}.* computes dense products in tf32: "):
            device.check_precision(precision, CPU[framework])
    assert device.check_precision("tf32", CPU[framework]) == {"dense": "tf32", "convolution": "float32"}


def rounded_array(array: jax.Array) -> jax.Array:
    return jax.numpy.asarray(rounded(torch.from_numpy(np.array(array)), 10).numpy())


@both
def test_tf32_is_refused_where_there_is_none(framework: str) -> None:
    with pytest.raises(UserError, match=r"precision is tf32, which cpu .* does not multiply in: take float32"):
        DEVICES[framework].check_precision("tf32", CPU[framework])


def test_both_kinds_of_products_are_named() -> None:
    with pytest.raises(UserError, match="dense products in tf32 and convolution products in bfloat16"):
        check_products("float32", {"dense": "tf32", "convolution": "bfloat16"}, "a GPU")


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_state_sets_what_its_process_computes_in(precision: Precision) -> None:
    """Whatever was set before: TF32 for `tf32` alone, in every switch of either framework."""
    subject, fast = subjects()["plain"], precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not fast
    jax.config.update("jax_default_matmul_precision", "highest" if fast else "tensorfloat32")
    try:
        make_states(replace(subject.recipe, precision=precision), subject.arch, 4)
        assert jax.config.values["jax_default_matmul_precision"] == ("tensorfloat32" if fast else "highest")
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (fast, fast)
    finally:
        for device in DEVICES.values():
            device.set_precision("float32")


@both
def test_a_run_says_how_it_computes_and_a_resumed_one_what_has_changed(
    framework: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--deterministic` is asked for once, before a device is."""
    calls: list[str] = []
    device = DEVICES[framework]
    pick = device.pick_device
    monkeypatch.setattr(device, "be_deterministic", lambda: calls.append("deterministic"))

    def picked(name: str) -> Any:
        calls.append("device")
        return pick(name)

    monkeypatch.setattr(device, "pick_device", picked)
    recipe = replace(RECIPES["digits"], arch="lenet", epochs=1, init="he", schedule=Schedule())  # one program for all
    recipe = replace(recipe, preprocess=replace(recipe.preprocess, resize=16))
    fit, options = LOOPS[framework].fit, TrainOptions(out=tmp_path / "run", device="cpu", deterministic=True)
    fit(recipe, options)
    assert calls[0] == "deterministic"
    assert calls.count("deterministic") == 1
    found = json.loads((tmp_path / "run" / "manifest.json").read_text())["arithmetic"]
    products = {"dense": "float32", "convolution": "float32"}
    assert found == {"products": products, "deterministic": True, "compiled": False}
    assert "note:" not in capsys.readouterr().err
    fit(replace(recipe, epochs=2), replace(options, resume=True))
    assert "note:" not in capsys.readouterr().err
    fit(replace(recipe, epochs=3), replace(options, resume=True, deterministic=False))
    assert "note: the run began with deterministic True, now False: what follows may" in capsys.readouterr().err
    assert calls.count("deterministic") == 2
