"""What the targets of a build share: the network, its float32 reference, the INT8 plan and the float16 ranges.

Each is made once, when a target first asks for it.
"""

from collections.abc import Mapping
from functools import cached_property

from export import fidelity
from export import onnx_runtime as ort
from export.errors import ExportError, GateError
from export.fidelity import Fidelity, NotRun, Stage
from export.files import checkpoint_path, sha256
from export.network import coverage, half, int8
from export.network.coverage import Convolution
from export.network.restormer import Restormer
from export.network.rewrites import rewrite_network, to_floating_type
from export.package.model_package import Package, network_from_package, package_from_folder
from export.package.trained_frame import require_frame
from export.planning import calibration_images, plan_from_request
from export.precision import Precision
from export.progress import say, step
from export.request import Request
from imaging import SIDE

RANGE_PHOTOGRAPHS = 4  #: photographs that float16 ranges are measured on


class BuildContext:
    """One package in one precision. Raises `ExportError` for a package that cannot become an engine.

    ``network`` is the rewritten network in float32. ``reference`` holds the photographs and the outputs of the network
    before any rewrite; ``gate`` is the minimum PSNR against these.
    """

    def __init__(self, request: Request, precision: Precision) -> None:
        self.request, self.precision = request, precision
        self.gate = precision.gate if request.gate is None else request.gate
        with step("reading the package"):
            self.package: Package = package_from_folder(request.package)
            network = network_from_package(self.package)
        architecture = self.package.architecture
        say(f"    {architecture.describe()} · {self.package.parameters:,} parameters")
        for remark in self.package.remarks:
            say(f"    remark: {remark}")
        require_frame(self.package.frame, request.side_override)
        if (architecture.in_channels, architecture.out_channels) != (3, 3):
            raise ExportError(
                f"{request.package}: the server takes RGB to RGB, this network is {architecture.describe()}"
            )
        with step("PyTorch float32 on the photographs"):
            self.reference = fidelity.reference_from_request(network, request)
        self.network: Restormer = rewrite_network(network)

    @cached_property
    def checkpoint_sha256(self) -> str:
        """SHA-256 of the package's checkpoint."""
        return sha256(checkpoint_path(self.request.package))

    @cached_property
    def int8_plan(self) -> int8.Plan | None:
        """The INT8 plan; None in another precision."""
        if self.precision.name != "int8":
            return None
        return plan_from_request(self.request, self.network, self.reference, self.checkpoint_sha256, self.gate)

    @property
    def int8_ranges(self) -> Mapping[str, float] | None:
        """The largest input magnitudes of the plan's modules; None in another precision."""
        return None if self.int8_plan is None else self.int8_plan.ranges

    @cached_property
    def float16_ranges(self) -> list[half.Range]:
        """The range of every float16 tensor on calibration photographs."""
        with step("range of every float16 tensor"):
            images = calibration_images(self.request.calibration, SIDE, RANGE_PHOTOGRAPHS)
            return half.measure_ranges(to_floating_type(self.network, "fp16"), images)

    def measure_torch(self, floating_type: str, ranges: Mapping[str, float] | None) -> list[Stage]:
        """Measure PyTorch: rewritten in float32, then emulating the precision as a target executes it.

        ``floating_type`` is the precision of everything but the modules in ``ranges``, which run in INT8.
        """
        name = self.precision.name
        network = self.network if ranges is None else int8.fake_quantize(self.network, ranges)
        with step("fidelity of PyTorch, rewritten and in the precision"):
            stages: list[Stage] = [self._rewritten_stage]
            if name != "fp32":
                types = f"INT8 grid, {floating_type}" if ranges is not None else name
                run = fidelity.torch_runner(to_floating_type(network, floating_type), tf32=name == "tf32")
                stages.append(self.reference.measure(f"torch {name}", f"{types}, emulated", run))
        return stages

    def require_headroom(self) -> None:
        """Print the largest float16 tensors. Raises `ExportError` where one has too little headroom."""
        for line in half.format_ranges(self.float16_ranges):
            say(f"    {line}")
        half.require_headroom(self.float16_ranges)

    def measure_onnx_runtime(self, graph: bytes, provider: str = ort.CPU) -> Stage:
        """Measure the ONNX graph in ONNX Runtime.

        On a CPU an output that is not finite fails the build. On a GPU, where the engine itself is measured, failures
        are only reported.
        """
        stage = "ONNX Runtime" + ("" if provider == ort.CPU else f", {provider.removesuffix('ExecutionProvider')}")
        try:
            run, executes = ort.runner_from_graph(graph, provider, tf32=self.precision.name == "tf32")
        except ExportError as error:
            return NotRun(stage=stage, reason=str(error)[:110])
        try:
            with step(f"fidelity of {stage}"):
                return self.reference.measure(stage, executes, run)
        except ExportError as error:
            if provider == ort.CPU:
                raise
            return NotRun(stage=stage, reason=str(error)[:110])

    def measure_batch(self, executes: str, run: fidelity.Runner) -> list[Stage]:
        """Compare a batch with the same photographs run alone, if the engine takes batches.

        Raises `GateError` if one differs by more than the gate allows.
        """
        size = min(fidelity.BATCH, self.request.options.max_batch)
        if size == 1:
            return []
        reached = self.reference.measure_batch(f"batch of {size}, against batch of 1", executes, run, size)
        if reached.psnr < self.gate:
            raise GateError(
                f"in a batch of {size}, {reached.worst} is {reached.psnr:.1f} dB from its output alone; the gate is "
                f"{self.gate:.0f} dB: nothing was published"
            )
        return [reached]

    def require_share(self, layers: list[Convolution]) -> None:
        """Raise `GateError` if too little of the convolutions' work executes in the precision."""
        reached = coverage.share_in_type(layers, self.precision.arithmetic)
        if reached < self.precision.min_share:
            is_int8 = self.precision.name == "int8"
            kind = "1x1 convolutions" if is_int8 else "convolutions"
            hint = "; the plan and its curve are above. A lower --gate allows more layers" if is_int8 else ""
            raise GateError(
                f"only {reached:.0%} of the {kind}' work would execute in {self.precision.name}, the minimum is "
                f"{self.precision.min_share:.0%}: nothing was published{hint}"
            )

    @cached_property
    def _rewritten_stage(self) -> Fidelity:
        return self.reference.measure("torch float32, rewritten", "float32", fidelity.torch_runner(self.network))
