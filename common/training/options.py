"""What a command says of a run besides its recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common.config import from_dict
from common.data.workers import check_system
from common.errors import UserError
from common.runs.folder import OPTIONS, RunFolder
from common.runs.logs import Log

Device = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True)
class TrainOptions:
    """What a command says besides the recipe; nothing here changes the numbers, but for a GPU's rounding.

    Attributes:
        out: the run folder; a new one below `runs` when not given.
        resume: continue the run in `out`; the command line says both by `--resume RUN`.
        init_from: start from these weights (a .safetensors, in PyTorch a .pth, a run folder, or a checkpoint of the
            same framework): a whole network, one with another last layer, or a backbone alone.
        data_dir: where tensorflow-datasets keeps its data (default: TFDS_DATA_DIR, else ~/tensorflow_datasets).
        device: to compute on; `auto` takes a GPU where there is one.
        log_every: steps between two rows of metrics.jsonl.
        log: where its rows go besides, for TensorBoard or for Weights & Biases, whose extras must be installed.
        checkpoint_every: steps between two checkpoints within an epoch, besides the one after each (default: none).
        keep: how many checkpoints stay, the newest, or `all`. The best stays as well, and two are left in any case, if
            the newest should be damaged.
        workers: processes that decode photographs ahead; 0 decodes in threads of this one.
        check_data: decode every photograph before the first step, and name all that cannot be.
        skip_bad: look for photographs that cannot be decoded, and go on without up to so many of a folder's; the
            manifest records which.
        deterministic: take only algorithms that repeat their results bit for bit, which a GPU does not by itself, and
            which take longer there; a CPU does anyway.
        compile: let PyTorch compile the step with torch.compile, which takes its time at the start; JAX always does,
            and keeps it for the next run below ~/.cache/alexnet-twice, or where JAX_COMPILATION_CACHE_DIR says.
    """

    out: Path | None = None
    resume: Annotated[bool, tyro.conf.Fixed, tyro.conf.Suppress, tyro.conf.arg(name="resumed")] = False
    init_from: Path | None = None
    data_dir: Path | None = None
    device: Device = "auto"
    log_every: int = 10
    log: tuple[Log, ...] = ()
    checkpoint_every: int | None = None
    keep: int | Literal["all"] = 1
    workers: int = 0
    check_data: bool = False
    skip_bad: int = 0
    deterministic: bool = False
    compile: bool = False

    @property
    def kept(self) -> int | None:
        """How many checkpoints stay, the best apart; None: all."""
        return None if self.keep == "all" else self.keep

    def recorded(self) -> dict[str, Any]:
        """What a resumed run goes on with unless it is told otherwise, places as they are called from anywhere."""
        fields = {name: value for name, value in vars(self).items() if name not in ("out", "resume")}
        return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in fields.items()}

    def of_run(self, run: RunFolder) -> TrainOptions:
        """These, with what the run in a folder was told; `init_from` and what is skipped only before it has begun.

        Raises:
            UserError: its options.json is not as it was written.
        """
        recorded = run.options
        if recorded is None:
            return replace(self, keep="all")  # of an older run, which kept all: none of them is to be lost
        file = str(run.path / OPTIONS)
        if not isinstance(recorded, dict):
            raise UserError(f"{file} is damaged: it holds no options.")
        told = from_dict({"out": None, "resume": False} | recorded, TrainOptions, file)
        told.check()
        if run.begun:  # then the manifest knows
            told = replace(told, init_from=None, check_data=False, skip_bad=0)
        return replace(told, out=self.out, resume=self.resume)

    def check(self) -> None:
        """Refuse values that no run can have.

        Raises:
            UserError: names the option.
        """
        for name in ("log_every", "checkpoint_every", "keep"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
        if self.skip_bad < 0:
            raise UserError(f"--skip-bad is {self.skip_bad}; it must be 0 or more.")
        check_workers(self.workers)


def check_workers(workers: int) -> None:
    """Refuse a number of worker processes that there cannot be.

    Raises:
        UserError: it is negative, or this system has none.
    """
    if workers < 0:
        raise UserError(f"--workers is {workers}; it must be 0 or more.")
    if workers:
        check_system()
