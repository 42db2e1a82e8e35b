"""Half precision on a CPU: half tensors, float32 sums, and the headroom of every tensor."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.errors import ExportError
from export.fidelity import torch_runner
from export.metrics import psnr
from export.network import half
from export.network.rewrites import to_floating_type


def test_sums_are_computed_in_float32_and_rounded_once():
    """2,049 ones: float16 cannot represent the sum, and adding them one by one stops at 2,048."""
    ones, weight = torch.ones(1, 4098, 1, 1).half(), torch.ones(1, 4098, 1, 1).half()
    with torch.no_grad(), half.Half():
        result = torch.conv2d(ones, weight)
    assert result.dtype == torch.float16
    assert float(result) == 4096  # 4,098 rounded once to a multiple of four, ties to even


def test_values_too_large_for_float16_overflow():
    with torch.no_grad(), half.Half():
        assert torch.isinf(torch.conv2d(torch.full((1, 1, 1, 1), 300.0).half(), torch.full((1, 1, 1, 1), 300.0).half()))


def test_a_bfloat16_product_is_summed_in_float32_and_rounded_once():
    torch.manual_seed(0)
    image, weight = torch.randn(1, 64, 8, 8).bfloat16(), torch.randn(32, 64, 1, 1).bfloat16()
    with torch.no_grad(), half.Half():
        result = torch.conv2d(image, weight)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, torch.conv2d(image.float(), weight.float()).bfloat16())


@given(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False))
def test_tf32_keeps_ten_bits_and_rounds_to_nearest(value):
    rounded = float(half._round_to_tf32(torch.tensor([value])))
    assert abs(rounded - value) <= abs(value) * 2**-11
    assert int(torch.tensor([rounded]).view(torch.int32)) & 0x1FFF == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tf32_represents_every_half_exactly(dtype):
    """All 65,536 bit patterns."""
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    finite = values[values.isfinite()]
    assert torch.equal(half._round_to_tf32(finite), finite)


def test_ranges_hold_the_largest_magnitude_of_every_float16_tensor(tiny_network):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = to_floating_type(tiny_network, "fp16")
    result = half.measure_ranges(network, {"a": image.numpy()})
    with torch.no_grad(), half.Half():
        embedded = network.patch_embed(image.half())
    by_name = {r.tensor: r for r in result}
    assert by_name["patch_embed: convolution"].peak == pytest.approx(float(embedded.abs().max()), rel=1e-3)
    assert [r.bits for r in result] == sorted(r.bits for r in result)
    convolutions = [name for name in by_name if name.endswith(": convolution")]
    assert len(convolutions) == sum(isinstance(m, torch.nn.Conv2d) for m in network.modules())
    norms = [name for name in by_name if name.endswith(": native_layer_norm")]
    assert len(norms) == 2 * network.architecture.depth
    assert str(len(result)) in half.format_ranges(result)[-1]


@pytest.mark.parametrize(("peak", "bits"), [(65504.0, 0.0), (16376.0, 2.0), (0.0, math.inf), (math.inf, -math.inf)])
def test_headroom_is_counted_in_bits(peak, bits):
    assert half.Range("x", peak).bits == pytest.approx(bits)


def test_less_than_two_bits_of_headroom_fail_the_build():
    half.require_headroom([half.Range("x", 16000.0)])
    with pytest.raises(ExportError, match=r"latent: mul reaches 2e\+04: 1\.7 bits .* bf16"):
        half.require_headroom([half.Range("latent: mul", 20000.0)])


def test_the_islands_matter(tiny_network, monkeypatch):
    """A network with large activations: without the float32 islands it overflows, with them it does not."""
    network = copy.deepcopy(tiny_network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("qkv.weight"):
                # q·kᵀ over 4,096 pixels passes 65,504; normalised, the function is the same.
                parameter[: len(parameter) * 2 // 3] *= 150
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    halves, run = to_floating_type(network, "fp16"), torch_runner(tiny_network)
    assert psnr(torch_runner(halves)(image), run(image)) > 55
    without = halves.half()  # the temperature too, and no cast to float32 from here on
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    with torch.no_grad(), half.Half():
        assert not torch.isfinite(without(torch.from_numpy(image))).all()
