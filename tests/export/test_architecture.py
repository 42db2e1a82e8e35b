"""The architecture read from tensors is the one that they were made from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import ExportError
from export.network.architecture import OWNER_EPS, PAPER_EPS, architecture_from_weights, restormer
from export.network.restormer import Restormer

depths = st.integers(1, 3)


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.tuples(depths, depths, depths, depths),
    decoder_blocks=st.none() | st.tuples(depths, depths, depths),
    refinement=st.integers(0, 2),
    heads=st.tuples(*[st.sampled_from((1, 2, 4, 8))] * 4),
    expansion=st.floats(1.0, 4.0),
    bias=st.booleans(),
    bias_free_norm=st.booleans(),
    dual_pixel=st.booleans(),
    reduces_level1=st.booleans(),
    eps=st.sampled_from((OWNER_EPS, PAPER_EPS)),
    in_channels=st.sampled_from((1, 3, 6)),
)
def test_round_trip(**hyper_parameters):
    architecture = restormer(dim=8, **hyper_parameters)
    with torch.device("meta"):
        weights = Restormer(architecture).state_dict()
    assert architecture_from_weights(weights, eps=architecture.eps) == architecture


def test_another_network_is_rejected_with_the_first_missing_tensor():
    with pytest.raises(ExportError, match="patch_embed.weight"):
        architecture_from_weights({"conv1.weight": torch.empty(64, 3, 7, 7)}, eps=OWNER_EPS)


def test_a_missing_stage_is_named():
    with torch.device("meta"):
        weights = Restormer(restormer(dim=8)).state_dict()
    rest = {name: tensor for name, tensor in weights.items() if not name.startswith("latent.")}
    with pytest.raises(ExportError, match="latent"):
        architecture_from_weights(rest, eps=OWNER_EPS)
