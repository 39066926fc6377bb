"""The README's picture of plans, from the committed records."""

import pytest

from tqbench.plans_figure import PANELS, draw_plans, main

pytest.importorskip("matplotlib", reason="pictures need matplotlib")


@pytest.fixture
def results(request):
    folder = request.config.rootpath / "benchmarks" / "results"
    if not folder.is_dir():
        pytest.skip("not a checkout")
    return folder


def test_every_panel_shows_both_plans_and_the_trained_rivals(results):
    for axes in draw_plans(results).axes:
        labels = [line.get_label() for line in axes.get_lines()]
        assert {"tqann chain", "tqann calibrated", "FAISS PQ", "FAISS OPQ+PQ"} <= set(labels)
        for line in axes.get_lines():
            assert len(line.get_xdata()) >= 3
            assert ((line.get_ydata() > 0) & (line.get_ydata() <= 1)).all()
    assert len(draw_plans(results).axes) == len(PANELS)


def test_the_picture_is_written_beside_the_records(results, tmp_path):
    for names in PANELS.values():
        for name in names:
            (tmp_path / f"{name}.json").write_bytes((results / f"{name}.json").read_bytes())
    assert main(["--results", str(tmp_path)]) == 0
    assert (tmp_path / "plans.png").read_bytes().startswith(b"\x89PNG")
