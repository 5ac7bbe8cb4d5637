"""The loops that ours are measured against, in PyTorch: what a tutorial writes, and torchvision's network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from time import perf_counter
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.settings import Contestant, Data
from common.arch.spec import Arch, MaxPool
from common.data.synthetic import pixels


def network(arch: Arch) -> nn.Module:
    """torchvision's `alexnet`, or for small images the same kind of network as tutorials write it."""
    if arch.name == "alexnet" and arch.convs[0].features == 64:
        return torchvision.models.alexnet(num_classes=arch.classes)
    layers: list[nn.Module] = []
    channels = arch.image[2]
    for spec in arch.convs:
        layers += [nn.Conv2d(channels, spec.features, spec.kernel, spec.stride, spec.padding), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(pool.size, pool.stride) for pool in spec.after if isinstance(pool, MaxPool)]
        channels = spec.features
    layers.append(nn.Flatten())
    width = arch.feature_size[0] * arch.feature_size[1] * channels
    for dense in arch.dense[:-1]:
        layers += [nn.Dropout(dense.dropout), nn.Linear(width, dense.features), nn.ReLU(inplace=True)]
        width = dense.features
    return nn.Sequential(*layers, nn.Linear(width, arch.classes))


class Photos(Dataset[tuple[Tensor, int]]):
    """Stored images, each decoded and augmented on the host, as tutorials do it with torchvision's transforms."""

    def __init__(self, arch: Arch, examples: int) -> None:
        data = pixels(arch, examples)
        self.images, self.labels = data.source.read(data.ids, None)
        mean, std = [0.5] * arch.image[2], [0.25] * arch.image[2]
        self.transform = v2.Compose(
            [
                v2.ToPILImage(),
                v2.RandomCrop(arch.image[0], padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def batches(contestant: Contestant, arch: Arch, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The tutorial's DataLoader with two workers over many batches, or one fixed batch of normal noise for ever."""
    if contestant.loop == "tutorial":
        photos = Photos(arch, 64 * contestant.batch)
        loader = DataLoader(photos, contestant.batch, shuffle=True, num_workers=2, pin_memory=device.type == "cuda")
        while True:
            for images, labels in loader:
                yield images.to(device), labels.to(device)
    height, width, channels = arch.image
    images = torch.randn(contestant.batch, channels, height, width, device=device)
    yield from cycle([(images, torch.randint(arch.classes, (contestant.batch,), device=device))])


class PlainTorch:
    """An eager loop in NCHW: zero_grad, forward, loss, backward, step, and the loss read at every step."""

    def __init__(self, contestant: Contestant, arch: Arch) -> None:
        self.device = torch.device("cuda" if contestant.device == "gpu" else "cpu")
        self.dtype = torch.bfloat16 if contestant.precision == "bfloat16" else None
        self.model: Any = network(arch).to(self.device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.criterion = nn.CrossEntropyLoss()
        self.batches = batches(contestant, arch, self.device)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train one step; returns the loss before it."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            loss = self.criterion(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def launch(self, steps: int, data: Data) -> float:
        """Train; returns the seconds spent waiting for input."""
        waited = 0.0
        for _ in range(steps):
            started = perf_counter()
            images, labels = next(self.batches)
            waited += perf_counter() - started
            self.read(self.step(images, labels))
        return waited

    def read(self, loss: Tensor) -> None:
        """Read the loss, for which the device is waited for."""
        loss.item()

    def wait(self) -> None:
        """Until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def lowered(self) -> None:
        """See `benchmarks.worker.Runs`."""


class StrongTorch(PlainTorch):
    """The same with what is known to make it fast: channels last, cuDNN's fastest, compiled, fused, no read-back."""

    def __init__(self, contestant: Contestant, arch: Arch) -> None:
        super().__init__(contestant, arch)
        torch.backends.cudnn.benchmark = True
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
        self.model = torch.compile(self.model)  # `compile()` of an nn.Sequential alone does nothing in torch 2.11
        images, labels = next(self.batches)
        self.batches = cycle([(images.to(memory_format=torch.channels_last), labels)])

    def read(self, loss: Tensor) -> None:
        """Leave the loss on the device."""
