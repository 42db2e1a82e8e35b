"""Train the network of demo/package, and measure it on held-out scenes.

    python -m demo.train PANORAMAS              train -> demo/package, demo/results
    python -m demo.train PANORAMAS --measure    only measure demo/package

PANORAMAS is a folder of equirectangular OpenEXR files (``python -m demo.fetch_panoramas`` downloads them).

Task: one exposure in, exposure fusion out (``demo.camera`` defines both), every view stretched to a square. Loss: L1,
0.3 x L1 with doubled weight for bright pixels (windows), 0.2 x L1 of the saturation.

Runs are seeded. Another processor or thread count rounds differently: the network is as good, but not byte-identical.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from demo import measure, pairs
from demo.camera import LUMINANCE
from demo.curve import Image, Pair
from demo.package_files import TEST_PAIRS, write_package
from export.network.architecture import OWNER_EPS, restormer
from export.network.restormer import Restormer
from export.package.model_package import network_from_package, package_from_folder
from export.package.naming import OWNER
from imaging import SIDE

ARCHITECTURE = restormer(dim=16, blocks=(1, 1, 1, 1), refinement=1, reduces_level1=True, eps=OWNER_EPS)
STEPS_AN_EPOCH = 100
WINDOW_THRESHOLD = 0.7  #: luminance of the target above which a pixel is bright (a window, a lamp)
WINDOW_WEIGHT = 2.0
WINDOW_LOSS, SATURATION_LOSS = 0.3, 0.2
#: Side of the training views, how many views a scene has of it, views in a batch, and the share of such batches.
VIEWS = ((128, 120, 2, 0.6), (192, 40, 1, 0.2), (256, 30, 1, 0.2))
Batch = tuple[Tensor, Tensor]  #: inputs and targets


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the weighted sum of the three losses of ``[N, 3, H, W]`` tensors."""
    error = (output - target).abs()
    luminance = torch.einsum("nchw,c->nhw", target, torch.from_numpy(LUMINANCE))
    weights = torch.where(luminance > WINDOW_THRESHOLD, WINDOW_WEIGHT, 1.0)[:, None]
    saturation = (_saturation(output) - _saturation(target)).abs().mean()
    return error.mean() + WINDOW_LOSS * (error * weights).mean() + SATURATION_LOSS * saturation


def _saturation(image: Tensor) -> Tensor:
    """Return the HSV saturation; the denominator is kept above zero, so that noise in dark pixels does not count."""
    high, low = image.amax(dim=1), image.amin(dim=1)
    return (high - low) / (high + 0.1)


class Sampler:
    """Draw random batches from views held in memory as 8 bits. Batch ``n`` is the same in every run."""

    def __init__(self, scenes: dict[str, Image], seed: int) -> None:
        self._seed = seed
        self._pools = [self._render_views(list(scenes.values()), side, count) for side, count, _, _ in VIEWS]

    def _render_views(self, scenes: list[Image], side: int, count: int) -> np.ndarray:
        """Render views as ``[N, 2, side, side, 3]``: input and target."""
        print(f"rendering {count * len(scenes)} views of {side} pixels", file=sys.stderr, flush=True)
        rngs = [np.random.default_rng((self._seed, side, number)) for number in range(len(scenes))]
        views = [
            np.round(np.stack(pair) * 255).astype(np.uint8)
            for scene, rng in zip(scenes, rngs, strict=True)
            for pair in pairs.render_training_pairs(scene, count, side, rng)
        ]
        return np.stack(views)

    def batch(self, number: int) -> Batch:
        rng = np.random.default_rng((self._seed, number))
        kind = rng.choice(len(VIEWS), p=[share for *_, share in VIEWS])
        chosen = self._pools[kind][rng.integers(len(self._pools[kind]), size=VIEWS[kind][2])]
        return _batch_from_views(chosen[:, :, :, ::-1] if rng.random() < 0.5 else chosen)


def _batch_from_views(views: np.ndarray) -> Batch:
    pairs_first = torch.from_numpy(np.ascontiguousarray(views)).permute(1, 0, 4, 2, 3).float() / 255
    image, target = (each.contiguous(memory_format=torch.channels_last) for each in pairs_first)
    return image, target


def train(scenes: dict[str, Image], validation: list[Pair], options: argparse.Namespace) -> dict[str, Any]:
    """Train; return the checkpoint of the last epoch."""
    torch.manual_seed(options.seed)
    network: Restormer = cast(Any, Restormer(ARCHITECTURE)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.epochs * STEPS_AN_EPOCH)
    history: list[dict[str, float]] = []
    sampler, started = Sampler(scenes, options.seed), time.monotonic()
    for epoch in range(1, options.epochs + 1):
        train_loss = _train_epoch(network, optimizer, scheduler, sampler, epoch)
        figures: dict[str, float] = {"epoch": epoch, "train_loss": train_loss, **_validate(network, validation)}
        minutes = (time.monotonic() - started) / 60 / epoch * (options.epochs - epoch)
        print(
            f"epoch {epoch}/{options.epochs}  training loss {train_loss:.4f}  held-out loss {figures['val_loss']:.4f}  "
            f"L1 {figures['val_l1']:.4f}  {minutes:.0f} min left",
            file=sys.stderr,
            flush=True,
        )
        history.append(figures)
    weights = {OWNER.external(name): tensor.contiguous() for name, tensor in network.state_dict().items()}
    return {
        "epoch": options.epochs,
        "model_state_dict": weights,
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
        "val_loss": figures["val_loss"],
        "val_l1": figures["val_l1"],
        "args": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "history": history,
    }


def _train_epoch(
    network: Restormer,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    sampler: Sampler,
    epoch: int,
) -> float:
    """Train for an epoch; return the mean loss."""
    total = 0.0
    for step in range((epoch - 1) * STEPS_AN_EPOCH, epoch * STEPS_AN_EPOCH):
        image, target = sampler.batch(step)
        value = loss(network.train()(image), target)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        total += float(value.detach())
    return total / STEPS_AN_EPOCH


def _validate(network: Restormer, validation: list[Pair]) -> dict[str, float]:
    batches = [_batch_from_views(np.round(np.stack(pair)[None] * 255).astype(np.uint8)) for pair in validation]
    with torch.inference_mode():
        outputs = [network.eval()(image) for image, _ in batches]
    losses = [float(loss(output, target)) for output, (_, target) in zip(outputs, batches, strict=True)]
    errors = [float((o.clamp(0, 1) - target).abs().mean()) for o, (_, target) in zip(outputs, batches, strict=True)]
    return {"val_loss": float(np.mean(losses)), "val_l1": float(np.mean(errors))}


def training_config(options: argparse.Namespace, scenes: list[str]) -> dict[str, object]:
    """Describe the training, for the package's ``config.json``."""
    return {
        "training": {
            "resolution": SIDE,  # what the package is served at
            "view_sides": [side for side, *_ in VIEWS],
            "view_aspects": [f"{width}:{height}" for width, height in pairs.ASPECTS],
            "batch_size": VIEWS[0][2],
            "learning_rate": options.learning_rate,
            "optimizer": "AdamW",
            "scheduler": "CosineAnnealingLR",
            "epochs": options.epochs,
            "steps_per_epoch": STEPS_AN_EPOCH,
            "data_split": {"train": scenes, "validation": list(pairs.HELD_OUT), "test": TEST_PAIRS.name},
        },
        "loss_function": {
            "components": {
                "l1": {"weight": 1.0},
                "window_aware": {"weight": WINDOW_LOSS, "threshold": WINDOW_THRESHOLD, "window_weight": WINDOW_WEIGHT},
                "saturation": {"weight": SATURATION_LOSS},
            }
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panoramas", type=Path)
    parser.add_argument("--measure", action="store_true", help="only measure the package in --package")
    parser.add_argument("--epochs", type=int, default=24, help=f"epochs of {STEPS_AN_EPOCH} steps")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--package", type=Path, default=Path("demo/package"))
    parser.add_argument("--results", type=Path, default=Path("demo/results"), help="folder for the measured figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    scenes = pairs.read_panoramas(options.panoramas)
    held_out = {name: scenes.pop(name) for name in pairs.HELD_OUT}
    if not options.measure:
        validation = [pair for scene in held_out.values() for pair in pairs.render_level_pairs(scene, (3, 2))]
        checkpoint = train(scenes, validation, options)
        write_package(options.package, checkpoint, ARCHITECTURE, training_config(options, sorted(scenes)))
    network = network_from_package(package_from_folder(options.package))
    curves = measure.fit_curves(scenes)
    result = measure.compare_held_out(network, curves, held_out)
    options.results.mkdir(parents=True, exist_ok=True)
    for name, document in {"shipped": result, "curve": curves}.items():
        text = json.dumps(document, indent=2) + "\n"
        (options.results / f"{name}.json").write_text(text, encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
