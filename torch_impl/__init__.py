"""AlexNet in PyTorch."""

from common.commands.early import answer

answer(__name__)  # help, before the seconds that the framework takes to be imported

from torch_impl.create import create  # noqa: E402
from torch_impl.model import AlexNet, LeNet, build  # noqa: E402

__all__ = ["AlexNet", "LeNet", "build", "create"]
