"""AlexNet in PyTorch."""

from torch_impl.model import AlexNet, LeNet, build, create

__all__ = ["AlexNet", "LeNet", "build", "create"]
