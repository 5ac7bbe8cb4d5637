"""What the driver asks of a framework. `torch_impl/engine.py` and `flax_impl/engine.py` answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from common.arch.spec import Arch
from common.data.batch import Batch
from common.data.dataset import Dataset
from common.frameworks import Framework
from common.recipes.spec import Recipe
from common.runs.progress import Progress
from common.runs.scores import Scores
from common.training.options import TrainOptions
from common.world import World

State = TypeVar("State")
Step = tuple[Batch, Any]  # a batch, and the same on the device
AfterStep = Callable[[Batch, State, Mapping[str, Any]], object]


class Feed(Protocol):
    """Takes the batches of one split to the device."""

    def __call__(self, epoch: int = 0, *, train: bool = False, start: int = 0) -> Iterator[Step]:
        """The batches of one pass from step `start` on, each with its inputs on the device."""


class Engine(Protocol[State]):
    """One framework, as the driver sees it. A state is changed in place or not: only what is returned counts."""

    @property
    def framework(self) -> Framework:
        """Its name."""

    def be_deterministic(self) -> None:
        """Take only algorithms that repeat their results; comes before everything else."""

    def in_touch(self) -> AbstractContextManager[None]:
        """Say in a sentence that another process is gone."""

    def join(self, name: str) -> World:
        """Meet the other processes, if the environment says that there are any; `name` is `--device`."""

    def leave(self, own: World) -> None:
        """Part from them."""

    def check_precision(self, recipe: Recipe, options: TrainOptions) -> dict[str, str]:
        """What the device multiplies float32 numbers in, found by trying; refuses what is not the recipe's."""

    def begin(self, recipe: Recipe, arch: Arch, steps: int, options: TrainOptions) -> State:
        """The state before the first step, on its device, for epochs of so many steps."""

    def share(self, state: State, own: World, first: int) -> tuple[State, int]:
        """Give every process the state, and a number, that process 0 has."""

    def agree(self, goes_on: bool, own: World) -> bool:
        """Whether training goes on, as process 0 has it; every one has to call it."""

    def start_weights(self, state: State, init_from: Path | None) -> tuple[State, tuple[str, ...] | None]:
        """Load the weights that the recipe or `--init-from` asks for; names the layers that stay fresh."""

    def feeds(self, state: State, splits: Sequence[Dataset], own: World) -> Sequence[Feed]:
        """What takes each split's batches to the state's device."""

    def train_epoch(self, state: State, steps: Iterable[Step], after: AfterStep[State]) -> State:
        """The lesson's loop over batches; `after` is given each batch, the state, and what the step returned."""

    def train_alone(self, state: State, batch: Batch) -> State:
        """One step, waited for."""

    def add_up(self, sums: Mapping[str, Any], own: World) -> Mapping[str, Any]:
        """What a step returned, added over all processes; every one has to call it."""

    def steps_done(self, state: State) -> int:
        """Training steps so far."""

    def left_out(self, state: State) -> int:
        """Those of them that changed nothing, since float16's gradients overflowed."""

    def evaluate(self, state: State, feed: Any) -> Scores:
        """Score the network on a split."""

    def save(self, path: Path, state: State, progress: Progress) -> None:
        """Write a checkpoint, whole or not at all."""

    def checkpoint_bytes(self, state: State) -> int:
        """How large a checkpoint becomes, about: its tensors."""

    def load(self, path: Path, state: State) -> tuple[State, Progress]:
        """Read one; raises `DamagedError` where it is not as it was written."""

    def publish(self, path: Path, dest: Path, recipe: Recipe, arch: Arch, epoch: int, steps: int) -> None:
        """Write a checkpoint's network, after so many epochs of so many steps, as the .safetensors file that both
        frameworks open.
        """

    def describe(self, state: State) -> str:
        """The device in words."""

    def peak_memory(self, state: State) -> int:
        """The most bytes that were held at once."""

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether an error says that memory is full."""

    def nonfinite_layer(self, state: State, batch: Batch) -> str | None:
        """Where a training step's forward pass first meets NaN or infinity; None where it does not."""
