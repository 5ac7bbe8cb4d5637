"""AlexNet in PyTorch."""

from torch_impl.create import create
from torch_impl.model import AlexNet, LeNet, build

__all__ = ["AlexNet", "LeNet", "build", "create"]
