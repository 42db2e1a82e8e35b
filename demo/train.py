"""Trains the demo model package again, and measures it honestly.

    python -m demo.train PANORAMAS                    the shipped network -> demo/package, demo/results
    python -m demo.train PANORAMAS --fold hall        one fold: everything but ``hall``, measured on ``hall``
    python -m demo.train PANORAMAS --measure          no training: demo/package as it is, measured again

PANORAMAS is a folder of equirectangular OpenEXR files: fifteen photographs of real places by Poly Haven, CC0 1.0,
512x256, as packed in the npm package ``@pmndrs/assets`` 1.7.0 (``python -m demo.fetch_panoramas`` brings them).

Task: one exposure in, exposure fusion out (``demo.camera`` says exactly what both are). Loss: L1, plus 0.3 x L1 over
bright regions (windows), plus 0.2 x L1 of the saturation. The network works in bfloat16 autocast with float32 weights.
The package is written as a training run leaves it: weights, optimizer, scheduler, metrics, and the JSON files beside.

Runs are seeded; another processor or thread count rounds differently and gives a network as good, not the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo import curve as yardstick
from demo import pairs
from demo.camera import Image
from demo.pairs import Pair
from export.architecture import restormer
from export.metrics import Distance, distance
from export.network import Restormer
from export.package import network_from_package, package_from_folder

ARCHITECTURE = {"dim": 16, "blocks": (1, 1, 1, 1), "refinement": 1, "heads": (1, 2, 4, 8), "expansion": 2.66}
STEPS_AN_EPOCH = 100
WINDOW_THRESHOLD = 0.8  #: mean of the input's channels (sRGB) above which a pixel counts as window
WINDOW_WEIGHT = 0.3
SATURATION_WEIGHT = 0.2
LEARNING_RATE = 1e-3


def loss_terms(output: Tensor, target: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L1, L1 over the windows, and L1 of the saturation; tensors are ``[N, 3, H, W]``."""
    error = (output - target).abs()
    windows = (image.mean(dim=1, keepdim=True) > WINDOW_THRESHOLD).float()
    window = (error * windows).sum() / (windows.sum() * 3).clamp_min(1.0)
    return error.mean(), window, (_saturation(output) - _saturation(target)).abs().mean()


def _saturation(image: Tensor) -> Tensor:
    """HSV saturation, with the denominator kept away from zero so that noise in the dark does not count."""
    high, low = image.amax(dim=1), image.amin(dim=1)
    return (high - low) / (high + 0.1)


class Sampler:
    """Random batches: mostly four 128x128 crops, sometimes one 256x256, so that the scale is not learnt by heart."""

    def __init__(self, scenes: dict[str, Image], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._small = [p for i, s in enumerate(scenes.values()) for p in pairs.training_pairs(s, 120, 128, seed + i)]
        self._large = [
            p for i, s in enumerate(scenes.values()) for p in pairs.training_pairs(s, 16, 256, seed + 99 + i)
        ]

    def batch(self) -> tuple[Tensor, Tensor]:
        pool, count = (self._large, 1) if self._rng.random() < 0.2 else (self._small, 4)
        chosen = [pool[i] for i in self._rng.integers(len(pool), size=count)]
        stacked = np.stack([np.stack(pair) for pair in chosen])  # [N, 2, H, W, 3]
        if self._rng.random() < 0.5:
            stacked = stacked[:, :, :, ::-1]
        both = torch.from_numpy(np.ascontiguousarray(stacked)).permute(1, 0, 4, 2, 3)
        return both[0].contiguous(memory_format=torch.channels_last), both[1]


def enhanced(network: Restormer, image: Image) -> Image:
    """The network on one HxWx3 image, float32, clamped to [0, 1]."""
    with torch.inference_mode():
        output = network(torch.from_numpy(image).permute(2, 0, 1)[None])
    return output[0].permute(1, 2, 0).clamp(0, 1).numpy()


def measured(network: Restormer | None, test: list[Pair]) -> list[Distance]:
    """Distance to the target of each output; of each *input* when there is no network."""
    return [distance(enhanced(network, image) if network else image, target) for image, target in test]


def summary(distances: list[Distance]) -> dict[str, float]:
    """Mean and deviation (over the crops) of the three figures."""
    rows = {field.name: [getattr(d, field.name) for d in distances] for field in dataclasses.fields(Distance)}
    return {k: v for n, r in rows.items() for k, v in ((n, float(np.mean(r))), (f"{n}_deviation", float(np.std(r))))}


def trained(
    scenes: dict[str, Image], test: list[Pair], options: argparse.Namespace
) -> tuple[Restormer, dict[str, object]]:
    """Trains from scratch; returns the network and the checkpoint a training run would leave."""
    steps, seed = options.steps, options.seed
    torch.manual_seed(seed)
    sampler = Sampler(scenes, seed)
    network = Restormer(restormer(**ARCHITECTURE)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    running, started, metrics = 0.0, time.monotonic(), {}
    for step in range(1, steps + 1):
        image, target = sampler.batch()
        with torch.autocast("cpu", torch.bfloat16):
            output = network(image)
        plain, window, saturation = loss_terms(output.float(), target, image)
        loss = plain + WINDOW_WEIGHT * window + SATURATION_WEIGHT * saturation
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        running += float(plain.detach()) / STEPS_AN_EPOCH
        if step % STEPS_AN_EPOCH == 0 or step == steps:
            metrics = summary(measured(network.eval(), test))
            network.train()
            left = (time.monotonic() - started) / step * (steps - step)
            print(
                f"step {step}/{steps}  train L1 {running:.4f}  held-out L1 {metrics['l1']:.4f}  "
                f"PSNR {metrics['psnr']:.2f} dB  SSIM {metrics['ssim']:.4f}  {left / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )
            running = 0.0
    checkpoint = {
        "epoch": -(-steps // STEPS_AN_EPOCH),
        "model_state_dict": {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
        "metrics": {f"val_{name}": metrics[name] for name in ("l1", "psnr", "ssim")},
    }
    return network.eval(), checkpoint


def comparison(network: Restormer, curve: np.ndarray, test: list[Pair]) -> dict[str, dict[str, float]]:
    """The three things compared, on the same crops: the input, the global curve, the network."""
    curved = [distance(yardstick.curve_applied(curve, image), target) for image, target in test]
    return {
        "input": summary(measured(None, test)),
        "curve": summary(curved),
        "network": summary(measured(network, test)),
    }


def write_package(folder: Path, checkpoint: dict[str, object], config: dict[str, object], network: Restormer) -> None:
    """The model package: checkpoint, JSON files and a manifest with SHA-256 sums."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, folder / "model_checkpoint.pt")
    parameters = sum(p.numel() for p in network.parameters())
    documents = {
        "config.json": config,
        "architecture.json": {"name": "Restormer", **ARCHITECTURE, "bias": False, "layer_norm": "WithBias",
                              "in_channels": 3, "out_channels": 3, "parameters": parameters},
        "training_info.json": {"epoch": checkpoint["epoch"], **checkpoint["metrics"],
                               "validation_scenes": pairs.HELD_OUT, "torch": torch.__version__},
    }  # fmt: skip
    for name, document in documents.items():
        write_document(folder / name, document)
    lines = [f"Restormer demo, {parameters / 1e6:.2f}M parameters"]
    for path in sorted(folder.iterdir()):
        if path.name != "MANIFEST.txt":
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    (folder / "MANIFEST.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panoramas", type=Path)
    parser.add_argument("--fold", choices=pairs.INTERIORS, help="hold out this scene alone; write no package")
    parser.add_argument("--measure", action="store_true", help="measure the package that is there, train nothing")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--package", type=Path, default=Path("demo/package"))
    parser.add_argument("--results", type=Path, default=Path("demo/results"), help="folder for the measured figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    scenes = pairs.panoramas(arguments.panoramas)
    held_out = (arguments.fold,) if arguments.fold else pairs.HELD_OUT
    test = {name: pairs.level_pairs(scenes[name]) for name in held_out}
    training = {name: scene for name, scene in scenes.items() if name not in held_out}
    curve = yardstick.fitted_curve([pair for scene in training.values() for pair in pairs.level_pairs(scene)])
    if arguments.measure:
        network = network_from_package(package_from_folder(arguments.package))
    else:
        network, checkpoint = trained(training, [p for crops in test.values() for p in crops], arguments)
    result = {name: comparison(network, curve, crops) for name, crops in test.items()}

    arguments.results.mkdir(parents=True, exist_ok=True)
    name = f"fold_{arguments.fold}" if arguments.fold else "shipped"
    write_document(arguments.results / f"{name}.json", result)
    if not arguments.fold:
        write_document(arguments.results / "curve.json", curve.tolist())
    if not arguments.fold and not arguments.measure:
        config = {"task": "single exposure -> exposure fusion", "loss": "L1 + 0.3 window + 0.2 saturation",
                  "steps": arguments.steps, "learning_rate": LEARNING_RATE, "seed": arguments.seed,
                  "training_scenes": sorted(training)}  # fmt: skip
        write_package(arguments.package, checkpoint, config, network)
    print(json.dumps(result))


def write_document(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
