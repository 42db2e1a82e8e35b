"""Request parameters: valid values and their effect."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imaging import InvalidOption, InvalidPhotograph, Options, core_from_file, decode, file_from_core
from imaging.codec import FORMATS
from imaging.frame import resize
from imaging.options import OUTPUTS
from tests.conftest import ROOT
from tests.photographs import encode_16_bits, encode_image, open_image, pixels, pixels_16_bits, profile

PHOTO = encode_image(pixels(600, 800))
CORE = core_from_file(PHOTO)
BRIGHT = CORE ** np.float32(0.7)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("docs/photographs.md", r"\| `format` \| ([^|]+) \|"),
        ("model_repository/enhance/config.pbtxt", r"#   format +(.*?)  "),
        ("model_repository/enhance/configs/cpu.pbtxt", r"#   format +(.*?)  "),
    ],
)
def test_every_list_of_formats_is_complete(path, line):
    assert re.search(line, (ROOT / path).read_text(encoding="utf-8"))[1].strip() == ", ".join(OUTPUTS)


def test_the_table_of_formats_is_complete():
    text = (ROOT / "docs/photographs.md").read_text("utf-8")
    named = [name.upper() for name in re.findall(r"^\| ([A-Z]\w+) \| .*\| .*\|$", text, re.MULTILINE)]
    assert named == ["HEIC" if kind == "HEIF" else kind for kind in FORMATS]


def test_no_parameters_mean_the_defaults():
    assert Options.from_parameters({}) == Options()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"strength": "0.5"}, Options(strength=0.5)),
        ({"strength": 0}, Options(strength=0.0)),
        ({"quality": "80"}, Options(quality=80)),
        ({"quality": 80}, Options(quality=80)),
        ({"format": "JPG"}, Options(format="jpeg")),
        ({"format": "webp", "size": "512", "gps": "strip"}, Options(format="webp", size="512", gps="strip")),
        ({"size": 512}, Options(size="512")),
        ({"triton_enable_empty_final_response": True}, Options()),
    ],
)
def test_parameters_may_be_numbers_or_text(parameters, expected):
    assert Options.from_parameters(parameters) == expected


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"strenght": 1}, "unknown parameter 'strenght': the parameters are format, quality, size, strength, gps"),
        ({"strength": 1.5}, "strength is 1.5: it has to be a number from 0 to 1"),
        ({"strength": "nan"}, "strength is 'nan'"),
        ({"strength": "much"}, "strength is 'much'"),
        ({"quality": 0}, "quality is 0: it has to be a number from 1 to 100"),
        ({"quality": [1]}, "quality"),
        ({"quality": 10**400}, "quality"),
        ({"format": "gif"}, "format is 'gif': it has to be one of jpeg, png, webp, tiff, bmp, avif"),
        ({"format": "heic"}, "format is 'heic'"),
        ({"size": "1024"}, "size is '1024': it has to be one of native, 512"),
        ({"gps": "yes"}, "gps is 'yes'"),
    ],
)
def test_an_invalid_parameter_is_named(parameters, reason):
    with pytest.raises(InvalidOption, match=reason):
        Options.from_parameters(parameters)


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text loads Unicode's tables
@given(st.dictionaries(st.sampled_from(["format", "quality", "size", "strength", "gps", "other"]), JSON))
def test_all_parameters_are_parsed_or_rejected(parameters):
    try:
        options = Options.from_parameters(parameters)
    except InvalidOption:
        return
    assert 0 <= options.strength <= 1
    assert 1 <= options.quality <= 100


def enhanced(data=PHOTO, core=CORE, restored=BRIGHT, **options):
    return file_from_core(data, core, restored, Options.from_parameters(options))


def test_strength_blends_with_the_photograph():
    none, half, whole = (decode(enhanced(strength=s, format="png")).pixels.astype(int) for s in (0, 0.5, 1))
    assert np.abs(none - decode(PHOTO).pixels).max() == 0
    assert np.abs(half - (none + whole) / 2).max() <= 1
    assert (whole - none).mean() > 10


def test_size_512_is_the_networks_own_result():
    small = open_image(enhanced(size="512", format="png"))
    assert small.size == (512, 384)
    expected = resize(np.ascontiguousarray(BRIGHT.transpose(1, 2, 0)), (384, 512))
    assert np.abs(np.asarray(small) / 255 - expected).max() < 0.003


@pytest.mark.parametrize(
    "data",
    [
        encode_image(np.dstack([pixels(), pixels()[..., 0]]), "PNG"),
        encode_16_bits("PNG", pixels_16_bits(4)),
        encode_image(pixels()[..., 0], "PNG"),
        encode_image(pixels(), icc_profile=profile("p3")),
    ],
    ids=["alpha", "16 bits", "grey", "P3"],
)
def test_size_512_keeps_depth_alpha_and_space(data):
    core = core_from_file(data)
    before, after = decode(data), decode(enhanced(data, core, core, size="512"))
    assert after.pixels.shape == (384, 512, before.pixels.shape[2])
    assert (after.pixels.dtype, after.space) == (before.pixels.dtype, before.space)


def test_options_can_be_combined():
    result = open_image(enhanced(format="webp", quality=50, size="512", strength=0.3))
    assert (result.format, result.size) == ("WEBP", (512, 384))


def test_an_output_that_is_not_finite_is_an_error():
    broken = BRIGHT.copy()
    broken[1, 200, 200] = np.nan
    with pytest.raises(ArithmeticError, match="must not be served"):
        enhanced(restored=broken)


def test_a_truncated_photograph_is_rejected():
    with pytest.raises(InvalidPhotograph):
        enhanced(PHOTO[:-50])
