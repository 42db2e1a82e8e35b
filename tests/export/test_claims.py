"""The quality that a package claims: read from JSON and prose, compared in the digits stated."""

import pytest

from export.package.claims import claims_from_folder

OWNERS = {
    "config.json": (
        '{"performance": {"validation": {"l1": 0.0530}, "test": {"l1": 0.0515, "psnr": 23.57, "ssim": 0.9273}}}'
    ),
    "training_info.json": '{"epoch": 38, "val_l1": 0.053031462111643383, "val_psnr": 0.0, "val_ssim": 0.0}',
    "MANIFEST.txt": (
        "Loss: L1 1.0, window 0.3\nTest set: L1=0.0515, PSNR=23.57, SSIM=0.9273\n± 0.0137, ± 2.35 dB, ± 0.0225\n"
    ),
}


def claims(tmp_path, **files):
    for name, content in files.items():
        path = tmp_path / {"config": "config.json", "info": "training_info.json", "manifest": "MANIFEST.txt"}[name]
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return claims_from_folder(tmp_path)


def stated(result, split="test"):
    return {metric: str(claim) for metric, claim in result.of(split).items()}


def test_the_owners_files(tmp_path):
    for name, text in OWNERS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    result = claims_from_folder(tmp_path)
    assert stated(result) == {"l1": "0.0515 ± 0.0137", "psnr": "23.57 ± 2.35", "ssim": "0.9273 ± 0.0225"}
    assert stated(result, "validation") == {"l1": "0.0530"}
    assert result.of("test")["l1"].source == "config.json, MANIFEST.txt"
    assert not result.remarks  # zeros are placeholders, neither claims nor errors


@pytest.mark.parametrize(
    "manifest",
    [
        "L1: 0.0515 ± 0.0137\nPSNR (dB): 23.57 dB ± 2.35 dB\nSSIM 0.9273 +/- 0.0225",
        "| L1 | 0.0515 ± 0.0137 |\n| **PSNR** | 23.57 ± 2.35 |\n| ssim | 0.9273 ± 0.0225 |",
        "Validation\nL1 = 0.0530\nTest\nL1=0.0515, PSNR=23.57, SSIM=0.9273 (± 0.0137, ± 2.35 dB, ± 0.0225)",
        "L1=0.0515 ± 0.0137 PSNR=23.57 ± 2.35 SSIM=0.9273 ± 0.0225".encode("utf-16"),
        "L1=0.0515 ± 0.0137 PSNR=23.57 ± 2.35 SSIM=0.9273 ± 0.0225".encode("latin-1"),
    ],
)
def test_prose(tmp_path, manifest):
    result = claims(tmp_path, manifest=manifest)
    assert stated(result) == {"l1": "0.0515 ± 0.0137", "psnr": "23.57 ± 2.35", "ssim": "0.9273 ± 0.0225"}
    assert not result.remarks


@pytest.mark.parametrize(
    ("mean", "deviation", "agrees"),
    [
        (0.05154, 0.01371, True),
        (0.05146, 0.01365, True),
        (0.05156, 0.0137, False),
        (0.05144, 0.0137, False),
        (0.0515, 0.0138, False),
    ],
)
def test_a_value_that_rounds_to_the_claim_agrees(tmp_path, mean, deviation, agrees):
    claim = claims(tmp_path, manifest="L1=0.0515 ± 0.0137").of("test")["l1"]
    assert claim.agrees(mean, deviation) is agrees


def test_the_last_zero_of_a_json_number_counts(tmp_path):
    short, full = (
        claims(tmp_path, config=f'{{"performance": {{"test": {{"l1": {t}}}}}}}') for t in ("0.053", "0.0530")
    )
    assert short.of("test")["l1"].agrees(0.0532, 0)
    assert not full.of("test")["l1"].agrees(0.0532, 0)


def test_digits_beyond_the_reported_ones_are_not_compared(tmp_path):
    claim = claims(tmp_path, info='{"val_l1": 0.053031462111643383}').of("validation")["l1"]
    assert claim.agrees(0.05307, 0)
    assert not claim.agrees(0.0531, 0)


def test_sources_that_contradict_each_other_are_a_remark(tmp_path):
    config = '{"performance": {"test": {"psnr": 23.57}}}'
    assert not claims(tmp_path, config=config, manifest="PSNR=23.6").remarks
    result = claims(tmp_path, config=config, manifest="PSNR=24.1 ± 2.35")
    assert stated(result) == {"psnr": "23.57"}
    assert "MANIFEST.txt says test PSNR = 24.1" in result.remarks[0]


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[" * 100_000,
        b"\xff\xfe\x00",
        '{"performance": 3}',
        '{"performance": {"test": [0.0515]}}',
        '{"performance": {"test": {"l1": NaN}}}',
        '{"performance": {"test": {"l1": Infinity}}}',
        '{"performance": {"test": {"l1": "0.0515 or so"}}}',
        '{"performance": {"test": {"l1": true}}}',
        '{"performance": {"test": {"l1": null}}}',
        '{"performance": {"test": {"l1": {"mean": 0.05}}}}',
        '{"performance": {"test": {"psnr": 1e99999}}}',
        '{"performance": {"test": {"psnr": 1e99999999999999999999}}}',
        '{"performance": {"test": {"psnr": -3}}}',
    ],
)
def test_malformed_claims_become_remarks(tmp_path, config):
    result = claims(tmp_path, config=config)
    assert not result.claims
    assert result.remarks
    assert all(remark.startswith("config.json") and "\n" not in remark for remark in result.remarks)


def test_a_package_without_claims(tmp_path):
    assert claims(tmp_path, manifest="weights only, SSIM with 7x7 windows") == claims_from_folder(tmp_path / "nowhere")
