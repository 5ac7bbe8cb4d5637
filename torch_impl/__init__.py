"""AlexNet in PyTorch."""

from common.commands.early import answer

answer(__name__)  # help, before the seconds that the framework takes to be imported

from common.system import wait_briefly  # noqa: E402

wait_briefly()

from torch_impl.create import create  # noqa: E402
from torch_impl.model import AlexNet, LeNet, build  # noqa: E402

__all__ = ["AlexNet", "LeNet", "build", "create"]
