"""What a paper asks of a figure: its look, its size, its words; and that it is drawn in given axes."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from typer.testing import CliRunner

import analysis
from analysis.errors import InputError
from analysis.figures import ticks, words
from analysis.figures.drawing import CYCLE, shades
from sweeps.cli.app import build_app

C = np.repeat(np.geomspace(1e18, 1e20, 4), 5)
N = np.tile(np.geomspace(0.3, 3, 5), 4) * 0.155 * (C / 6) ** 0.5106  # about the optimum
FRAME = pd.DataFrame({"N": N, "D": C / (6 * N), "budget": C})
FRAME["loss"] = 1.8 + 420 * N**-0.345 + 1500 * FRAME.D**-0.36
PLAIN = FRAME.drop(columns="budget")


def contrast(color: str) -> float:
    """Of a colour on white, by WCAG's relative luminance: 1 to 21."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 1.05 / (float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)


@pytest.fixture
def app():
    return build_app("laws", "figures")


def test_every_colour_is_seen_on_white_and_the_largest_budget_is_the_strongest():
    for color in (*CYCLE, *shades(9)):
        assert contrast(color) >= 3.0, color
    strengths = [contrast(c) for c in shades(6)]
    assert strengths == sorted(strengths)


def test_isoflop_over_sizes_is_drawn_with_words_of_its_axis():
    found = analysis.plot(FRAME, only="isoflop")
    assert [d.name for d in found] == ["isoflop"]
    left, right = found["isoflop"].axes
    assert left.get_xlabel() == "parameters N"
    assert right.get_xlabel() == "training tokens D"
    assert right.get_ylabel() == ""  # one y axis of losses, named once
    assert found["isoflop"]._repr_png_().startswith(b"\x89PNG")
    assert "data:image/png;base64" in found._repr_html_()


def test_a_figure_is_drawn_in_axes_of_the_callers():
    figure = Figure()
    axes = figure.subplots(1, 2)
    [found] = analysis.plot(FRAME, only="power_laws", ax=axes, to=1e22)
    assert found.figure is figure
    assert list(found.axes) == list(axes)
    beyond = found.drawn[found.drawn.kind == "extrapolation"]
    assert beyond.x.max() == pytest.approx(1e22)
    with pytest.raises(InputError, match="has 2 panels and 1 axes were given"):
        analysis.plot(FRAME, only="power_laws", ax=axes[0])
    with pytest.raises(InputError, match="one figure fits there and"):
        analysis.plot(FRAME, ax=axes[0])


def test_a_law_of_sizes_and_tokens_goes_on_to_a_compute_with_its_band():
    [found] = analysis.plot(PLAIN, "chinchilla", only="law", to=1e23)
    rows = found.drawn
    line = rows[(rows.series == "frontier") & (rows.kind == "extrapolation")]
    band = rows[(rows.series == "frontier") & (rows.kind == "band") & (rows.x > 1e22)]
    assert line.x.max() == pytest.approx(1e23)
    best = min(
        1.8 + 420 * n**-0.345 + 1500 * (1e23 / 6 / n) ** -0.36
        for n in np.geomspace(1e9, 1e13, 2000)
    )
    assert line.y.iloc[-1] == pytest.approx(best, rel=1e-3)
    assert (band.y <= band.y_high).all()
    assert set(rows[rows.kind == "points"].panel) == {"tokens", "compute"}


@pytest.mark.parametrize(
    ("law", "frame", "panel"),
    [
        ("data-only", pd.DataFrame({"D": C, "loss": 2 + 1e4 * C**-0.3}), "n_tokens"),
        ("frontier", pd.DataFrame({"C": C[::5], "loss": 2 + 1e4 * C[::5] ** -0.3}), "train_flops"),
        ("power", pd.DataFrame({"x": C, "y": 3e-4 * C**0.5 * 1.01 ** (C > 1e19)}), "power"),
        ("accuracy", pd.DataFrame({"loss": np.linspace(2, 4, 12), "y": np.linspace(0.8, 0.3, 12)}), "val_loss"),
        ("y = a*x**b + c*x", pd.DataFrame({"x": C / 1e18, "y": (C / 1e18) ** 0.5 + 0.1 * C / 1e18}), "x"),
    ],
)  # fmt: skip
def test_every_law_of_one_variable_has_its_figure(law, frame, panel):
    [found] = analysis.plot(frame, law, only="law_")
    rows = found.drawn
    assert set(rows.panel) == {panel}
    assert {"points", "fit", "band"} <= set(rows.kind)
    assert found.figure.axes[0].get_xlabel()


def test_plot_takes_what_a_journal_asks_for(app, tmp_path):
    path, style = tmp_path / "runs.csv", tmp_path / "paper.mplstyle"
    FRAME.to_csv(path, index=False)
    style.write_text("font.size: 7\n")
    options = ["--only", "isoflop", "--format", "svg", "--width", "3.25", "--style", str(style)]
    done = CliRunner().invoke(app, ["plot", str(path), "--out", str(tmp_path / "f"), *options])
    assert done.exit_code == 0, done.exception
    assert [p.rpartition("/")[2] for p in done.stdout.split()] == [
        "isoflop.svg",
        "isoflop.csv",
        "isoflop.txt",
    ]
    svg = (tmp_path / "f" / "isoflop.svg").read_text()
    assert 'width="234pt"' in svg  # 3.25 inches
    assert "parabola per budget" in (tmp_path / "f" / "isoflop.txt").read_text()
    for wrong, message in (
        (["--only", "isoflops"], "no figure of that name; did you mean 'isoflop'"),
        (["--format", "jpg"], "--format 'jpg' is unknown"),
        (["--width", "0"], "inches between 1 and 100"),
        (["--style", "nowhere"], "no such file or style"),
    ):
        done = CliRunner().invoke(app, ["plot", str(path), "--out", str(tmp_path / "g"), *wrong])
        assert message in str(done.exception)


def test_no_label_is_cut_off_at_the_right_edge():
    wide = pd.DataFrame({"x": np.geomspace(1e16, 1e20, 9), "y": np.geomspace(1, 100, 9) ** 0.9})
    for drawing in (*analysis.plot(wide, "power"), *analysis.plot(PLAIN, only="law")):
        drawing.picture()
        width = drawing.figure.bbox.width
        for ax in drawing.axes:
            ends = [t.get_window_extent().x1 for t in ax.get_xticklabels() if t.get_text()]
            low, high = ax.get_xlim()
            shown = [low <= t <= high for t in ax.get_xticks()]
            assert max(e for e, s in zip(ends, shown, strict=True) if s) < width


def test_repeated_tokens_have_their_figure():
    n, unique = np.tile(np.geomspace(1e7, 1e9, 8), 8), np.repeat(np.geomspace(1e8, 3e9, 8), 8)
    d = unique * np.random.default_rng(2).choice([1, 2, 5, 10, 40], 64)
    worth = unique * (1 + 15.4 * (1 - np.exp(-(d / unique - 1) / 15.4)))
    frame = pd.DataFrame({"N": n, "D": d, "U": unique})
    frame["loss"] = 1.9 + 520 * n**-0.35 + 1490 * worth**-0.35
    found = analysis.plot(
        frame, only="law"
    )  # without a law: some runs saw more tokens than there are
    assert [f.name for f in found] == ["law_repeated"]
    rows = found["law_repeated"].drawn
    points = rows[(rows.panel == "epochs") & (rows.kind == "points")]
    assert sorted(points.y) == pytest.approx(sorted(worth / unique), rel=1e-3)
    law = rows[(rows.series == "law") & (rows.kind == "fit")]
    assert law.y.max() == pytest.approx(1 + 15.4 * (1 - np.exp(-39 / 15.4)), rel=1e-3)


def test_an_accuracy_is_drawn_under_its_own_name():
    frame = pd.DataFrame({"loss": np.linspace(2, 4, 12)})
    frame["hella_swag"] = 0.25 + 0.6 / (1 + np.exp(4 * (frame.loss - 2.8)))
    found = analysis.plot(
        frame, columns={"loss": "loss", "y": "hella_swag"}, only=("law", "observed")
    )
    assert [f.name for f in found] == ["law_accuracy", "observed_accuracy"]
    assert not found.refusals
    assert found[0].axes[0].get_ylabel() == "hella swag"
    assert found[1].axes[0].get_ylabel() == "observed hella swag"


def test_ticks_of_loops_are_loops_and_stand_apart():
    ax = Figure().add_subplot()
    ax.set(xscale="log", xlim=(1, 40))
    ticks.of_values(ax, "x", range(1, 33))
    shown = [ax.xaxis.get_major_formatter()(v, 0) for v in ax.xaxis.get_major_locator()()]
    assert shown == ["1", "2", "4", "8", "16", "32"]
    assert words.label("mean_recurrence") == "mean recurrence \u03bc (loops)"
    assert words.parameter("gamma_mu") == "\u03b3_\u03bc"


def test_plot_and_fit_say_what_a_table_looks_like(app, tmp_path):
    path = tmp_path / "runs.csv"
    PLAIN.to_csv(path, index=False)
    done = CliRunner().invoke(app, ["fit", str(path), "--json", "--interval", "none"])
    assert json.loads(done.stdout)["law"] == "chinchilla"
    assert "a table of loss, D, N looks like chinchilla" in done.stderr
