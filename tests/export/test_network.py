"""The network against the paper's equations, and its exact rewrites against the network."""

import pytest
import torch

from benchmarks.network import paper
from export.network.architecture import OWNER_EPS, owner_network, restormer
from export.network.restormer import Restormer, project
from export.network.rewrites import fold_norms, pad_feed_forward, split_projections

SMALL = {"dim": 8, "blocks": (1, 2, 1, 1), "refinement": 1, "heads": (1, 2, 4, 8)}
VARIANTS = {
    "standard": {},
    "bias": {"bias": True},
    "bias_free_norm": {"bias_free_norm": True},
    "no_refinement": {"refinement": 0},
    "deeper_decoder": {"decoder_blocks": (2, 1, 3)},
    "one_channel": {"in_channels": 1, "out_channels": 1},
    "dual_pixel": {"in_channels": 6, "dual_pixel": True},
    "owner": {"reduces_level1": True, "eps": OWNER_EPS},
    "owner_bias": {"reduces_level1": True, "eps": OWNER_EPS, "bias": True},
}


def network_of(**variant):
    """Make a network with random parameters, biases and LayerNorm weights included, in float64."""
    torch.manual_seed(1)
    network = Restormer(restormer(**{**SMALL, **variant})).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def image_for(network, side=24):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(2, network.architecture.in_channels, side, side + 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_is_the_network_of_the_paper(variant):
    network = network_of(**variant)
    image = image_for(network)
    with torch.inference_mode():
        # The network computes long sums in float32 by design; the paper's equations run in float64.
        expected, actual = paper.restormer(network.state_dict(), image, eps=network.architecture.eps), network(image)
    error = (actual - expected).abs().max() / expected.abs().max()
    print(f"largest relative error {error:.1e}")
    assert error < 1e-5


def test_sizes_are_those_of_the_public_checkpoint_and_of_the_owners_package():
    with torch.device("meta"):
        networks = [Restormer(architecture) for architecture in (restormer(), owner_network())]
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [26_126_644, 25_437_220]


@pytest.mark.parametrize("rewrite", [pad_feed_forward, fold_norms, split_projections])
@pytest.mark.parametrize("name", ["standard", "bias", "bias_free_norm", "owner_bias"])
def test_rewrites_are_exact(rewrite, name):
    network = network_of(**VARIANTS[name])
    result = rewrite(network)
    image = image_for(network)
    with torch.inference_mode():
        expected, actual = network(image), result(image)
    error = (actual - expected).abs().max() / expected.abs().max()
    print(f"largest relative error {error:.1e}")
    # Only the order of float32 sums inside the islands may differ.
    assert error < 1e-6


def test_padding_rounds_the_widths_up_in_a_copy():
    with torch.device("meta"):
        network = Restormer(owner_network())
    padded = pad_feed_forward(network)
    stages = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    assert [getattr(padded, s)[0].ffn.project_out.in_channels for s in stages] == [128, 256, 512, 1024]
    assert [getattr(network, s)[0].ffn.project_out.in_channels for s in stages] == [127, 255, 510, 1021]


def test_a_split_network_cannot_be_padded():
    with pytest.raises(TypeError, match="pad before splitting"):
        pad_feed_forward(split_projections(network_of()))


def test_float32_islands_keep_a_half_precision_network_finite():
    """Where plain half precision overflows (65,504), the islands do not: the product q·kᵀ, and the variance."""
    network = network_of(bias_free_norm=True).half()
    block = network.encoder_level1[0]
    loud = torch.randn(1, 8, 64, 64, generator=torch.Generator().manual_seed(3)).half() * 400
    with torch.inference_mode():
        q, k, _ = project(loud, block.attn.qkv, block.attn.qkv_dwconv, 3, (8, 64 * 64))
        assert torch.isfinite(q).all()
        assert torch.isinf(q @ k.transpose(-2, -1)).any()
        assert torch.isfinite(block.attn(loud)).all()
        assert torch.isinf((loud * loud).mean(dim=1)).any()
        assert torch.isfinite(block.norm1(loud)).all()
