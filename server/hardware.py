"""List the GPUs that the server knows, with the values that it sets in the network's config for each.

On other GPUs the network gets the delay and the instances of `model_repository/restormer/config.pbtxt`. The largest
batch is that of the engine's profile everywhere. Memory may limit the instances; a MIG slice has its GPU's name.

The values were calculated, not measured (docs/gpu-checklist.md says how to measure them). Memory bandwidth limits this
network, not arithmetic; the times below are the minimum for an engine in fp16 (`make roofline GPU=a100`).

To add a GPU, add a row. Its name must be a word of the name that nvidia-smi prints, in lower case.
"""

from __future__ import annotations

from dataclasses import dataclass

#: GPU memory of an instance for each photograph of the engine's largest batch, in MiB (a calculation): in half
#: precision a channel of 512x512 takes 0.5 MiB, and the last decoder level of the paper's network holds two tensors of
#: 510 channels (in and out of the depthwise convolution of the feed-forward), two of 96 and the skip connection of 48:
#: 630. float32 takes twice as much. The owner's base network has half as many channels there.
INSTANCE_MIB = 640
USABLE = 0.8  #: share of the GPU's memory for instances; the rest is for CUDA, weights, graphs and the tensors' copies


@dataclass(frozen=True)
class Values:
    """The values of one GPU.

    ``delay_us`` is how long the dynamic batcher waits for a batch to fill while an instance is idle. ``instances`` is
    how many instances of the network run on each GPU.
    """

    delay_us: int
    instances: int


GPUS = {
    # 2.04 TB/s: 13.0 ms a photograph, 104 ms a batch of eight. The delay is a fifth of a photograph. One instance:
    # copying a batch in and out (2 x 24 MiB over PCIe 4, about 2 ms) is a fiftieth of its run time, and memory is saved
    # on a 40 GB card. A second instance would compute while the first waits for its next batch; `make tune` tries it.
    "a100": Values(delay_us=2600, instances=1),
    # 3.35 TB/s: 7.8 ms a photograph, 62 ms a batch of eight. The delay is a fifth of a photograph. A longer one
    # gains little: a batch shares only the weights, 51 MB of the 26 GB that a photograph moves. Two instances: copying
    # takes a sixtieth of a batch's run time (PCIe 5, about 1 ms), but with a queue policy Triton forms no batch
    # before an instance is free, and may notice a free one only with the next request (docs/production.md); meanwhile
    # the other instance computes. The cost is a second set of activations, some GB of 80.
    "h100": Values(delay_us=1500, instances=2),
    # 4.8 TB/s: 5.5 ms a photograph, 44 ms a batch of eight. The delay is a fifth of a photograph. Two instances as on
    # the H100, with more memory to spare.
    "h200": Values(delay_us=1100, instances=2),
}
