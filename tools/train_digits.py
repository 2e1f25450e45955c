"""Train the bundled teacher and write everything in src/phosphene/bundled but its licence.

    python tools/train_digits.py [--out DIR]

Data: the 1,797 8x8 digits that scikit-learn ships, the test part of "Optical Recognition of Handwritten Digits" (UCI,
CC BY 4.0). A fixed, stratified half trains the network; the other half is written out as test data, the training half
never. Takes about a minute on one core; one thread and float32, so that the same machine writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from phosphene.models.digits import Digits, digits  # noqa: E402  (the path must be known first)

SEED, EPOCHS, BATCH, LR = 0, 120, 64, 0.1


def halves(labels: np.ndarray) -> tuple[list[int], list[int]]:
    """Indices of the training and the test half: of each class every second image of a shuffled order."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    train, test = [], []
    for k in range(10):
        of_class = order[labels[order] == k]
        odd = k % 2  # classes of odd size give their spare image to either half in turn
        train += of_class[odd::2].tolist()
        test += of_class[1 - odd :: 2].tolist()
    return sorted(train), sorted(test)


def augmented(images: Tensor, numbers: torch.Generator) -> Tensor:
    """Each image ``(N, 1, 8, 8)`` turned, scaled, sheared and shifted a little, with black coming in."""
    N = len(images)
    draw = torch.empty(6, N).uniform_(-1, 1, generator=numbers)
    angle, shear = 0.2 * draw[0], 0.15 * draw[1]
    wide, tall = 1 + 0.12 * draw[2], 1 + 0.12 * draw[3]
    across, down = 0.25 * draw[4], 0.25 * draw[5]  # 1 pixel
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([wide * cos, shear - sin, across, sin, tall * cos, down], dim=1)
    grid = F.affine_grid(rows.view(N, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(images: Tensor, labels: Tensor, mean: float, std: float) -> Digits:
    """`images` ``(N, 1, 8, 8)`` in [0, 1]; SGD with a one-cycle rate."""
    torch.manual_seed(SEED)
    numbers = torch.Generator().manual_seed(SEED)
    net = digits()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images), generator=numbers).split(BATCH):
            if len(index) < BATCH:
                continue
            inputs = (augmented(images[index], numbers) - mean) / std
            loss = F.cross_entropy(net(inputs), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def settle(net: Digits, inputs: Tensor) -> None:
    """Replace the running statistics by exact ones of the training images: what synthesis will be held to."""
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # one batch: its statistics themselves
    net.train()
    with torch.no_grad():
        net(inputs)
    net.eval()


def main() -> None:
    """Split, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "src" / "phosphene" / "bundled")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
    learn, test = halves(data.target)
    images, labels = torch.from_numpy(pixels).unsqueeze(1).float() / 255, torch.from_numpy(data.target).long()
    mean, std = round(float(images[learn].mean()), 4), round(float(images[learn].std()), 4)
    net = train(images[learn], labels[learn], mean, std)
    settle(net, (images[learn] - mean) / std)
    with torch.no_grad():
        right = (net((images[test] - mean) / std).argmax(1) == labels[test]).sum().item()

    weights = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    save_file(weights, out / "digits.safetensors")
    (out / "digits.safetensors").chmod(0o644)
    np.savez_compressed(out / "digits_test.npz", images=pixels[test], labels=data.target[test].astype(np.uint8))
    write(out / "digits_index.json", {"of": "sklearn.datasets.load_digits", "train": learn, "test": test})
    accuracy = round(100 * right / len(test), 4)
    facts = {"mean": [mean], "std": [std], "accuracy": accuracy, "test_images": len(test), "train_images": len(learn)}
    write(out / "digits.json", facts)
    print(f"{accuracy} % of {len(test)} test images")


def write(path: Path, content: dict[str, object]) -> None:
    """JSON in one line."""
    path.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
