"""The theory checks: how a check is judged, what they find, and that they fail when a code is wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from paper import TurboQuantMSE, TurboQuantProd
from tqbench.checks import Check, at_least, at_most, close_to, counts, exit_status, skipped
from tqbench.errors import BenchError
from tqbench.paper import measure as measuring
from tqbench.paper import suite
from tqbench.paper.measure import CODES, Measured, PaperSettings, measure, unit_rows
from tqbench.paper.theory import BITS, LLOYD_MAX, bound, shannon, slope
from tqcli.main import cli
from tqcore.codebook import distortion

SMALL = PaperSettings(d=256, n=512, nq=128, rotations=2)


@pytest.fixture(scope="module")
def record():
    return suite.run_paper(PaperSettings(**suite.QUICK))


@pytest.fixture
def measured():
    """Every code exactly as theory has it, d = 512."""
    found = {}
    scalar = [1.0, *(distortion(512, b) for b in BITS)]
    for b in BITS:
        chain = suite.chain_mse(b, 2)
        found["mse", b] = Measured(scalar[b], 1 - scalar[b], 1e-4, scalar[b])
        found["chain", b] = Measured(chain, 1 - chain, 1e-4, chain)
        for name, error in {
            "mse + scale": scalar[b] / (1 - scalar[b]),
            "chain + scale": chain / (1 - chain),
            "prod": math.pi / 2 * scalar[b - 1],
            "prod, orthogonal": (math.pi / 2 - 1) * scalar[b - 1],
        }.items():
            found[name, b] = Measured(error, 1.0, 1e-4, error)
    return found


@pytest.mark.parametrize(
    ("value", "status"),
    [(1.0, "PASS"), (1.019, "PASS"), (0.981, "PASS"), (1.03, "WARN"), (0.95, "WARN"), (1.07, "FAIL")],
)
def test_close_to(value, status):
    check = close_to("g", "n", value, 1.0, 0.02, paper="1", reason="a note")
    assert (check.status, check.value, check.theory, check.paper) == (status, value, 1.0, "1")
    assert check.threshold == "within 2% of theory; WARN to 6%"
    assert check.reason.endswith("a note")
    assert ("off the theory" in check.reason) == (status != "PASS")


def test_limits_and_numbers_that_are_none():
    assert [at_most("g", "n", v, 2.0).status for v in (1.9, 2.0, 2.1)] == ["PASS", "PASS", "FAIL"]
    assert [at_least("g", "n", v, 2.0).status for v in (1.9, 2.0, 2.1)] == ["FAIL", "PASS", "PASS"]
    for value in (math.nan, math.inf, -math.inf):
        for check in (
            at_most("g", "n", value, 2.0),
            at_least("g", "n", value, 2.0),
            close_to("g", "n", value, 2.0, 1),
        ):
            assert (check.status, check.value, check.reason) == ("FAIL", None, f"got {value}")


def test_exit_status_and_counts():
    good, bad, absent = at_most("g", "a", 1, 2), at_most("g", "b", 3, 2), skipped("g", "c", "no GPU here")
    warned = close_to("g", "d", 1.03, 1.0, 0.02)
    assert counts([good, bad, absent, warned, good]) == {"PASS": 2, "WARN": 1, "FAIL": 1, "SKIP": 1}
    assert exit_status([good, warned, absent]) == 0
    assert exit_status([good, bad, warned]) == 1
    assert Check(**json.loads(json.dumps(absent.as_row()))) == absent


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Check("g", "n", 1.0, "t", "GOOD"),
            "status must be one of PASS, WARN, FAIL, SKIP, got 'GOOD'",
        ),
        (lambda: Check("g", "n", None, "t", "SKIP"), "reason must say why 'n' is skipped"),
        (lambda: Check("g", "n", 1.0, "t", "SKIP", reason="r"), "value must be None when skipped, got 1.0"),
        (lambda: Check("g", "n", None, "t", "PASS"), "value must be a number for PASS"),
        (lambda: close_to("g", "n", 1.0, 0.0, 0.1), "theory must not be 0 for 'n'"),
        (lambda: PaperSettings(seed=-1), "seed must be 0 or more, got -1"),
    ],
)
def test_bad_checks(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_theory():
    assert [round(bound(b), 4) for b in BITS] == [0.6802, 0.17, 0.0425, 0.0106]
    assert [shannon(b) for b in (1, 2.5)] == [0.25, 0.03125]
    assert slope([shannon(b) for b in BITS]) == pytest.approx(-2)
    assert slope([3.0, 1.5, 3.0], [1, 2, 3]) == pytest.approx(0)
    for b in BITS:
        assert LLOYD_MAX[b] == pytest.approx(distortion(65536, b), rel=2e-3)


def test_measures_agree_with_the_paper_line_by_line():
    """Algorithms 1 and 2 as written, on the same vectors and queries but other rotations."""
    ours = dict(measure(SMALL, 2))
    rng = np.random.default_rng(7)
    x, q = unit_rows(1024, 256, rng), unit_rows(256, 256, rng)
    algorithms = {"mse": TurboQuantMSE(256, 2, rng), "prod": TurboQuantProd(256, 2, rng)}
    decoded = {
        "mse": algorithms["mse"].dequant(algorithms["mse"].quant(x)),
        "prod": algorithms["prod"].dequant(*algorithms["prod"].quant(x)),
    }
    for name, found in decoded.items():
        exact, estimate = x @ q.T, found @ q.T
        assert ours[name].distortion == pytest.approx(np.mean(np.sum((x - found) ** 2, axis=1)), rel=0.02)
        assert ours[name].slope == pytest.approx(np.sum(exact * estimate) / np.sum(exact**2), abs=0.01)
        assert ours[name].variance == pytest.approx(256 * np.mean((exact - estimate) ** 2), rel=0.03)
    assert ours.keys() == CODES.keys()


def test_the_slope_is_within_its_standard_error():
    found = {name: m for b in (1, 3) for name, m in measure(SMALL, b) if name.startswith(("prod", "mse +"))}
    for name, m in found.items():
        assert 0 < m.slope_error < 0.01
        assert abs(m.slope - 1) < 5 * m.slope_error, name


def test_no_check_fails(record):
    assert record["counts"]["FAIL"] == record["counts"]["SKIP"] == 0
    assert record["counts"]["WARN"] <= 1
    values = {(row["group"].split()[0], row["name"]): row for row in record["checks"]}
    assert len(values) == len(record["checks"])
    assert values["Compression", "mse, d = 1536, 4 bits: bytes of code"]["value"] == 768
    assert values["Compression", "prod: ratio to float32, scalars included"]["value"] == pytest.approx(
        6144 / 776
    )
    third = values["Distortion", "mse, 3 bits"]
    assert third["value"] == pytest.approx(0.0344, rel=0.02)
    assert (third["paper"], "truncation" in third["reason"]) == ("0.03", True)
    assert values["Bias", "mse, 1 bit"]["value"] == pytest.approx(2 / math.pi, rel=0.01)
    assert values["Bias", "bias of mse over that of prod, 2 bits"]["review"] == "4.96x"
    assert values["Error", "prod, 4 bits"]["value"] == pytest.approx(0.0543, rel=0.03)


def test_seeds_change_the_data_and_nothing_else_does():
    first, again, other = (dict(measure(PaperSettings(64, 64, 16, 1, s), 2)) for s in (1, 1, 2))
    assert first == again
    assert all(first[name] != other[name] for name in CODES)


def test_theory_itself_passes(measured):
    checks = [*suite.distortion_checks(measured, 512), *suite.product_checks(measured, 512)]
    assert counts(checks)["PASS"] == len(checks)


@pytest.mark.parametrize(
    ("name", "bits", "wrong", "failing"),
    [
        ("mse", 3, {"distortion": 0.03}, "mse, 3 bits"),
        ("mse", 2, {"distortion": 0.18}, "mse, 2 bits, beside the paper's bound"),
        ("chain", 2, {"distortion": 0.06}, "chain, 2 bits, beside Shannon's limit"),
        ("chain", 4, {"distortion": 0.0096}, "chain over mse, 4 bits"),
        ("chain", 1, {"distortion": 0.5}, "chain: slope of log2 distortion per bit"),
        ("mse + scale", 1, {"slope": 0.637}, "mse + scale, 1 bit"),
        ("prod", 1, {"slope": 1.1}, "bias of mse over that of prod, 1 bit"),
        ("prod", 4, {"variance": 0.047}, "prod, 4 bits"),
        ("prod, orthogonal", 3, {"variance": 0.03}, "prod, orthogonal over mse + scale, 3 bits"),
        ("chain + scale", 1, {"variance": 1.5}, "chain + scale: slope of log2 error per bit"),
    ],
)
def test_a_wrong_value_fails(measured, name, bits, wrong, failing):
    measured[name, bits] = Measured(**(vars(measured[name, bits]) | wrong))
    checks = [*suite.distortion_checks(measured, 512), *suite.product_checks(measured, 512)]
    assert failing in [check.name for check in checks if check.status == "FAIL"]
    assert exit_status(checks) == 1


def test_a_rotation_that_spreads_nothing_fails(monkeypatch):
    class Still(suite.Quantizer):
        def rotate(self, x):
            return x

    monkeypatch.setattr(suite, "Quantizer", Still)
    failed = {check.name for check in suite.spread_checks(0) if check.status == "FAIL"}
    assert {
        "one-hot: kurtosis of the coordinates",
        "spiky: share of the energy in the largest coordinate",
    } <= failed


def test_codes_without_their_scale_fail(monkeypatch):
    """The paper's scale in place of the unbiased one."""
    monkeypatch.setitem(measuring.CODES, "mse + scale", CODES["mse"])
    found = {(name, b): m for b in BITS for name, m in measure(SMALL, b)}
    failed = {c.name for c in suite.product_checks(found, 256) if c.status == "FAIL"}
    assert {
        "mse + scale, 1 bit",
        "mse + scale, 2 bits",
        "bias of mse over that of mse + scale, 1 bit",
    } <= failed


@pytest.fixture
def run(record, tmp_path, monkeypatch):
    """`tq bench paper` on a record already measured."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, status, record=record):
        monkeypatch.setattr(suite, "run_paper", lambda _settings: record)
        result = CliRunner().invoke(cli, ["bench", "paper", *arguments])
        assert result.exit_code == status, result.output
        return result

    return invoke


def test_command_writes_everything(run, record, tmp_path):
    result = run("--quick", "--name", "mine", "--out", "results", "--json", status=0)
    assert json.loads(result.stdout) == record
    folder = tmp_path / "results"
    assert {path.name for path in folder.iterdir()} == {"mine.json", "mine.md", "mine.png", "mine.html"}
    assert json.loads((folder / "mine.json").read_text()) == record
    html, markdown = (folder / "mine.html").read_text(), (folder / "mine.md").read_text()
    assert "data:image/png;base64," in html
    assert not any(mark in html for mark in ("<script", "http://", "https://"))
    assert "![The theory of TurboQuant, measured](mine.png)" in markdown
    for row in record["checks"]:
        assert f"| {row['name']} |" in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {9}


def test_command_fails_when_a_check_does(run, record, tmp_path):
    failed = at_most("Compression", "size <b>|[red]", 3, 2).as_row()
    broken = record | {
        "checks": [*record["checks"], failed, skipped("Compression", "gone", "not here").as_row()],
        "counts": record["counts"] | {"FAIL": 1, "SKIP": 1},
    }
    printed = run("--name", "mine", "--out", ".", status=1, record=broken).stdout
    assert "1 FAIL, 1 SKIP" in printed
    assert "size <b>|[red]" in printed
    assert "wrote mine.json" in printed
    assert "size &lt;b&gt;|[red]" in (tmp_path / "mine.html").read_text()
    assert "size <b>\\|[red]" in (tmp_path / "mine.md").read_text()


def test_command_reports_bad_requests_in_one_line(run, tmp_path):
    result = run("--seed", "-1", status=2)
    assert result.stderr == "error: seed must be 0 or more, got -1\n"
    (tmp_path / "file").write_text("")
    result = run("--out", "file/folder", status=2)
    assert result.stderr.startswith("error: cannot write to file/folder")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from tqcli.main import cli\n"
        "try: cli(['bench', 'paper', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'matplotlib', 'rich', 'tqcore'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


def test_missing_matplotlib_is_named(record, tmp_path):
    from tqbench.check_report import write_check_report

    def draw(_record):
        raise ImportError("absent", name="matplotlib")

    with pytest.raises(BenchError, match="the report needs matplotlib: pip install"):
        write_check_report(record, tmp_path, "name", "title", "measured", draw)
    assert not list(tmp_path.iterdir())
