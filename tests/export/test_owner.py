"""The owner's network and the paper's, read from checkpoints of every convention, against the equations.

``benchmarks.network.paper`` is the reference: it shares no code with ``export`` and reads the checkpoint's own names.
"""

import dataclasses

import onnxruntime
import pytest
import torch

from benchmarks.network import paper
from export.metrics import psnr
from export.network.architecture import OWNER_EPS, PAPER_EPS, owner_network, restormer
from export.network.cpu_form import channels_last, cpu_graph
from export.network.graph import onnx_bytes, onnx_from_network
from export.network.restormer import Restormer
from export.network.rewrites import rewrite_network
from export.package.model_package import network_from_package, package_from_folder
from export.package.naming import OWNER, OWNER_OLD, PAPER
from export.precision import PRECISIONS
from export.targets import cpu

SMALL = {"dim": 24, "blocks": (1, 1, 1, 1), "refinement": 1}
CASES = {
    "owner tiny": (owner_network("tiny"), OWNER),
    "owner tiny, older names": (owner_network("tiny"), OWNER_OLD),
    "owner base": (owner_network(), OWNER),
    "owner with bias": (restormer(**SMALL, bias=True, reduces_level1=True, eps=OWNER_EPS), OWNER),
    "paper": (restormer(**SMALL), PAPER),
    "paper with bias": (restormer(**SMALL, bias=True), PAPER),
}
#: Where the ONNX exporter, which takes a second a block, is tried as well.
FORMS = [pytest.param(CASES[name], id=name) for name in ("owner with bias", "paper")]
SIDE = 32
TOLERANCE = 1e-5


def trained_like(architecture):
    """Make a network with random weights that make every detail visible.

    The embedding is so faint that channels vary by about 1e-5 at each pixel of the first norm, where ``eps`` counts;
    norms and temperatures are away from 1 and 0; one q vector is zero.
    """
    torch.manual_seed(3)
    network = Restormer(architecture).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or "temperature" in name:
                parameter.uniform_(0.4, 1.6) if not name.endswith("bias") else parameter.uniform_(-0.3, 0.3)
            elif name.startswith("patch_embed") or name.endswith("bias"):
                parameter.normal_(std=1e-3)
        attention = network.encoder_level1[0].attn
        for layer in (attention.qkv, attention.qkv_dwconv):
            layer.weight[0] = 0
            if layer.bias is not None:
                layer.bias[0] = 0
        network.output.weight *= 0.3 / residual(network, photograph()).std()
    return network


def photograph():
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))


def residual(network, image):
    with torch.inference_mode():
        return network(image) - image


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request, tmp_path_factory):
    """A checkpoint on disk, its weights in double precision, and the equations' residual with them."""
    architecture, convention = request.param
    named = {convention.external(n): t for n, t in trained_like(architecture).state_dict().items()}
    folder = tmp_path_factory.mktemp("package")
    torch.save({"model_state_dict": {f"module.{n}": t for n, t in named.items()}}, folder / "model_checkpoint.pt")
    weights, image = {n: t.double() for n, t in named.items()}, photograph().double()
    return architecture, convention, folder, paper.restormer(weights, image, eps=architecture.eps) - image


def relative(actual, expected):
    return float((actual - expected).abs().max() / expected.std())


def test_a_checkpoint_computes_the_equations(case):
    architecture, convention, folder, expected = case
    package = package_from_folder(folder)
    assert (package.architecture, package.convention) == (architecture, convention)
    network = network_from_package(package)
    assert expected.std() > 0.1
    shallow = network.patch_embed(photograph())
    assert 1e-6 < shallow.var(dim=1, unbiased=False).median() < 1e-4
    error = relative(residual(network.double(), photograph().double()), expected)
    print(f"relative error {error:.1e}")
    assert error < TOLERANCE


def test_the_wrong_eps_fails(case):
    architecture, _, folder, expected = case
    package = package_from_folder(folder)
    other = PAPER_EPS if architecture.eps == OWNER_EPS else OWNER_EPS
    swapped = dataclasses.replace(package.architecture, eps=other)
    network = network_from_package(dataclasses.replace(package, architecture=swapped))
    error = relative(residual(network.double(), photograph().double()), expected)
    print(f"relative error {error:.1e}")
    assert error > 10 * TOLERANCE


@pytest.mark.parametrize("case", FORMS, indirect=True)
def test_every_form_of_the_network_computes_the_same(case, tmp_path):
    """The rewritten network to 1e-5; the ONNX graphs, plain and for the CPU, in float32 to 90 dB."""
    _, _, folder, expected = case
    image = photograph()
    network = rewrite_network(network_from_package(package_from_folder(folder)))
    plain, for_cpu = onnx_from_network(network, side=SIDE), cpu_graph(network, side=SIDE)
    session = onnxruntime.InferenceSession(onnx_bytes(plain), providers=["CPUExecutionProvider"])
    (tmp_path / "cpu.onnx").write_bytes(onnx_bytes(for_cpu))
    compiled = cpu.compile_engine(tmp_path / "cpu.onnx", cpu.settings(PRECISIONS["fp32"]))
    outputs = {
        "ONNX": session.run(None, {"input": image.numpy()})[0],
        "CPU graph in OpenVINO": cpu.runner_from_model(compiled)(image.numpy()),
    }
    wanted = (expected + image).numpy()
    for form, output in outputs.items():
        print(f"{form}: {psnr(output, wanted):.1f} dB")
        assert psnr(output, wanted) > 90, form
    for form in (network.double(), channels_last(network.double(), side=SIDE)):
        assert relative(residual(form, image.double()), expected) < TOLERANCE


def test_an_explicit_eps_of_architecture_json_wins(tmp_path):
    network = trained_like(owner_network("tiny"))
    named = {OWNER.external(n): t for n, t in network.state_dict().items()}
    torch.save({"model_state_dict": named}, tmp_path / "model_checkpoint.pt")
    (tmp_path / "architecture.json").write_text('{"implementation_details": {"layer_norm_eps": 1e-5}}')
    assert package_from_folder(tmp_path).architecture.eps == PAPER_EPS
