"""Flax's programs, compiled for an H100 that is not there: what XLA makes of them, and faults that must be found."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from common.errors import UserError
from parity_tests.hlo import Program
from parity_tests.results import Record

BATCH = 128
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def compiles(test: Callable[..., None]) -> Callable[..., None]:
    """Takes its time, and needs the plugin."""
    reason = "JAX has no CUDA plugin here: pip install '.[flax,cuda13]'"
    return pytest.mark.full(pytest.mark.skipif(not any(map(find_spec, PLUGINS)), reason=reason)(test))


@compiles
def test_every_program(record: Record) -> None:
    """Of every architecture in float32, and of `alexnet` in bfloat16; their figures are filed."""
    from parity_tests import programs

    result, found = programs.survey()
    record(programs.FILE, result)
    assert not found
    assert all(row["kernels"] and row["bytes"] for row in result["programs"])
    trained = {(row["arch"], row["precision"]): row for row in result["programs"] if row["part"] == "train"}
    for (name, _), row in trained.items():  # the input's gradient alone is not asked for
        forward = 2 * row["batch"] * programs.case(name, row["precision"], row["batch"]).arch.multiply_adds
        assert 2 * forward < row["flops"] <= 3 * forward, name


def _nothing(x: jax.Array) -> jax.Array:
    return (x * 2.0).sum()


def _float64(x: jax.Array) -> jax.Array:
    return (x.astype(jnp.float64) * 2.0).sum().astype(jnp.float32)


def _callback(x: jax.Array) -> jax.Array:
    jax.debug.callback(lambda value: None, x.sum())
    return x.sum()


def _channels_first(x: jax.Array) -> jax.Array:
    kernel = jnp.ones((16, 8, 3, 3), x.dtype)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (_nothing, ""),
        (_float64, "float64: "),
        (_callback, "_callback waits for the host: debug_callback"),
        (_channels_first, "images in another order: |convolution not channels last: "),
    ],
)
@compiles
def test_a_planted_fault_is_found(function: Callable[..., Any], fault: str, x64: None) -> None:
    from parity_tests import hlo, programs

    images = jax.ShapeDtypeStruct((BATCH, 8, 32, 32), jnp.float32)
    try:
        compiled = programs.compile_for(jax.jit(function), images)
        found = programs.faults(hlo.Program(compiled.as_text()), BATCH)
    except UserError as error:
        found = [str(error)]
    assert bool(found) == bool(fault)
    assert all(re.match(fault, line) for line in found), found


# A step as XLA prints it, made up: 2 images of 8 x 8 x 3, once through a convolution, four times through a loop.
TEXT = """HloModule jit_step, is_scheduled=true

%fused_add (param_0: f32[2,8,8,4]) -> f32[2,8,8,4] {
  %param_0 = f32[2,8,8,4]{3,2,1,0} parameter(0)
  ROOT %add.1 = f32[2,8,8,4]{3,2,1,0} add(%param_0, %param_0), metadata={op_name="jit(step)/add"}
}

%body (state: (s32[], f32[2,8,8,4])) -> (s32[], f32[2,8,8,4]) {
  %state = (s32[], f32[2,8,8,4]{3,2,1,0}) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %now = f32[2,8,8,4]{3,2,1,0} get-tuple-element(%state), index=1
  %loop_add_fusion = f32[2,8,8,4]{3,2,1,0} fusion(%now), kind=kLoop, calls=%fused_add
  ROOT %next = (s32[], f32[2,8,8,4]{3,2,1,0}) tuple(%turn, %loop_add_fusion)
}

ENTRY %main (images: f32[2,8,8,3], kernel: f32[4,3,3,3]) -> f32[2,8,8,4] {
  %images = f32[2,8,8,3]{3,2,1,0} parameter(0)
  %kernel = f32[4,3,3,3]{3,2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %conv = (f32[2,8,8,4]{3,2,1,0}, u8[512]{0}) custom-call(%images, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", backend_config={"a":"(b)"}
  %features = f32[2,8,8,4]{3,2,1,0} get-tuple-element(%conv), index=0
  %first = (s32[], f32[2,8,8,4]{3,2,1,0}) tuple(%zero, %features)
  %loop = (s32[], f32[2,8,8,4]{3,2,1,0}) while(%first), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %last = f32[2,8,8,4]{3,2,1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501
IMAGES, KERNEL, FEATURES = 4 * 2 * 8 * 8 * 3, 4 * 4 * 3 * 3 * 3, 4 * 2 * 8 * 8 * 4  # bytes


def test_a_program_is_read() -> None:
    program = Program(TEXT)
    assert program.kinds() == {"convolutions": 1, "fusions": 4}
    assert program.bytes() == IMAGES + KERNEL + FEATURES + 4 * (FEATURES + FEATURES)
    assert program.flops() == 2 * (2 * 8 * 8 * 4) * (3 * 3 * 3)
    assert list(program.dtypes()) == ["f32", "s32", "u8"]
    assert not program.host_calls() + program.not_channels_last() + program.reordered(2)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("add(%param_0, %param_0)", 'custom-call(%param_0), custom_call_target="xla_ffi_python_gpu_callback"', "add.1"),
        ("s32[] constant(0)", "s32[] outfeed(%images)", "zero"),
        ("f32[2,8,8,3]{3,2,1,0} parameter(0)", "f32[2,8,8,3]{2,1,3,0} parameter(0)", "conv"),
        ("add(%param_0, %param_0)", "transpose(%param_0), dimensions={0,2,1,3}", "add.1"),
        ("f32[2,8,8,4]{3,2,1,0} add(%param_0, %param_0)", "f32[2,8,8,4]{2,1,3,0} copy(%param_0)", "add.1"),
    ],
)
def test_a_fault_in_a_text_is_found(old: str, new: str, fault: str) -> None:
    assert old in TEXT
    program = Program(TEXT.replace(old, new, 1))
    assert program.host_calls() + program.not_channels_last() + program.reordered(2) == [fault]
