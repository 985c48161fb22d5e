"""The page of a fit: all sections, the fit's own numbers, nothing unescaped, nothing from elsewhere."""

import builtins
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from irlhf import comparisons, demonstrations
from irlhf.drawing import Picture, draw, inline, shorten_all
from irlhf.errors import ConfigError
from irlhf.fit import Status, fit_reward
from irlhf.likelihood import Term, exact, listed
from irlhf.report import verdicts, write_report
from irlhf.resampling import leave_one_out
from irlhf.sources import Source
from irlhf.wording import number, p_value, plural
from irlhf.worlds.tabular import Linear, Neural, Path, features, from_arrays, sample_paths
from irlhf.worlds.tabular.pictures import pictures
from tests.test_resampling import fitted, logit

EVIL = "<script>alert('x')</script> & \"$x_1$\" </svg>"
VOID = {"meta", "br", "img", "image", "path", "use", "rect", "circle", "line", "stop", "link"}


class Page(HTMLParser):
    """What a page holds: text and numbers by section, and every tag and attribute."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.section = "header"
        self.text: dict[str, str] = {}
        self.numbers: dict[str, list[float]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"] or ""
        if tag == "data":
            self.numbers.setdefault(self.section, []).append(float(attributes["value"] or "nan"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data


def problem(names=("near", "far"), n: int = 9, people: int = 40):
    """States on a line, left or right; persons walk and compare."""
    p = np.zeros((n, 2, n))
    for s in range(n):
        p[s, 0, max(s - 1, 0)] += 0.9
        p[s, 1, min(s + 1, n - 1)] += 0.9
        p[s, :, s] += 0.1
    world = from_arrays(p, actions=["left", EVIL], discount=0.9)
    x = np.arange(n) / n
    columns = features(world, np.stack([x, x**2], 1), names=list(names))
    policy = world.solve(Linear(columns, [3.0, -2.0])).log_policy.detach()
    paths = sample_paths(world, policy, [n // 2] * people, max_steps=15, seed=2)
    shown = demonstrations(None, paths, persons=[f"{EVIL}{i}" for i in range(people)], source=f"walks {EVIL}")
    listing = list(paths)
    told = comparisons([None] * 30, listing[:30], listing[10:40], [0, 1, 1] * 10)
    return world, columns, shown, told


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A fit of both kinds of feedback, and its page with everything on it."""
    world, columns, shown, told = problem(names=(EVIL, "far"))
    (kept, rest), (kept_told, rest_told) = shown.split(0.25), told.split(0.25)
    terms = [Term(kept, exact(world)), Term(kept_told, listed(world), Source(fit_temperature=True))]
    fit = fit_reward(Linear(columns), terms, start={"comparisons.log_temperature": 0.1})
    path = write_report(
        fit,
        tmp_path_factory.mktemp("page") / "report.html",
        held_out=[terms[0].on(rest), terms[1].on(rest_told)],
        pictures=pictures(fit),
        config={"fit": {"seed": 7, "skipped": None}, "data": [{"name": EVIL, "sha256": "c0ffee"}]},
        versions={"irlhf": EVIL},
        notes=[EVIL],
        transitions={
            "pooling": "pairs",
            "log_likelihood": -12.5,
            "n_parameters": 3,
            "n_observed": 40,
            "unseen": [(EVIL, 1)],
        },
    )
    return fit, path.read_text(encoding="utf-8"), terms, rest


def test_all_sections_are_there_and_well_formed(both):
    _, text, _, _ = both
    page = Page(text)
    assert not page.open, "every tag is closed"
    assert list(page.text)[:1] == ["header"]
    assert list(page.text)[1:] == ["sources", "parameters", "pictures", "prediction", "diagnostics", "made"]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)), "ids are unique, also across drawings"
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert targets and set(targets) <= set(ids)
    assert len([1 for tag, _ in page.tags if tag == "svg"]) >= 8


def test_nothing_comes_from_elsewhere_and_nothing_runs(both):
    _, text, _, _ = both
    page = Page(text)
    assert "http://" not in text and "https://" not in text and "//" not in re.sub(r"data:[^\"']*", "", text)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "link", "base", "form"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'")


def test_what_a_user_supplied_is_text(both):
    _, text, _, _ = both
    assert "<script" not in text and EVIL not in text
    page = Page(text)
    for section in ("header", "sources", "parameters", "prediction", "diagnostics", "made"):
        assert EVIL in page.text[section], section
    assert EVIL[:12] in page.text["pictures"]


def test_numbers_are_those_of_the_fit(both):
    fit, text, terms, rest = both
    numbers = Page(text).numbers
    kinds = [("hessian", None), ("opg", None), ("sandwich", None), ("sandwich", "person")]
    table = fit.table()
    expected = []
    for name in fit.params.index:
        errors = [fit.standard_errors(kind, cluster=cluster)[name] for kind, cluster in kinds]
        row = table.loc[name]
        expected += [fit.params[name], *errors, row["z"], row["p"], row["lower 95%"], row["upper 95%"]]
    expected += fit.derived().to_numpy().ravel().tolist()
    np.testing.assert_allclose(numbers["parameters"], expected)
    np.testing.assert_allclose(numbers["sources"], fit.log_likelihood)
    assert numbers["prediction"][0] == pytest.approx(fit.score(terms[0].on(rest)).sum())
    page = Page(text)
    assert number(fit.params["far"]) in page.text["parameters"]
    assert number(fit.log_likelihood.sum(), 7) in page.text["header"]


def test_the_verdict_names_status_likelihoods_and_baselines(both):
    _, text, _, _ = both
    header = " ".join(Page(text).text["header"].split())
    for words in (str(Status.CONVERGED), "the causal, exact likelihood", "the Bradley-Terry likelihood", "held out:"):
        assert words in header
    page = Page(text).text
    assert "uniform" in page["prediction"] and "cloning" in page["prediction"]
    assert "c0ffee" in page["made"] and "fit.seed" in page["made"] and "skipped" not in page["made"]
    assert "−12.50000" in page["made"]
    assert "1 pair" in page["diagnostics"]


def test_the_same_fit_gives_the_same_bytes(both, tmp_path):
    fit, _, _, _ = both
    drawn = pictures(fit)
    first = write_report(fit, tmp_path / "a.html", pictures=drawn).read_bytes()
    assert write_report(fit, tmp_path / "b.html", pictures=pictures(fit)).read_bytes() == first


def test_an_unidentified_fit_says_which_directions(tmp_path):
    world, _, shown, _ = problem()
    x = np.arange(9) / 9
    columns = features(world, np.stack([x, 2 * x, x**2], 1), names=["once", "twice", "square"])
    fit = fit_reward(Linear(columns), Term(shown, exact(world)))
    assert fit.status is Status.UNIDENTIFIED
    page = Page(write_report(fit, tmp_path / "r.html").read_text())
    assert "Not identified: +1.00 once -0.50 twice" in page.text["header"]
    assert "∞" in page.text["parameters"] and "Open circles" in page.text["parameters"]
    assert "says nothing about" in page.text["diagnostics"]
    assert "pictures" not in page.text


def test_comparisons_alone_are_left_out_one_by_one(both, tmp_path):
    rows, _ = logit(60)
    fit = fitted(rows)
    page = Page(write_report(fit, tmp_path / "r.html").read_text())
    found = leave_one_out(fit, draws=verdicts.LEFT_OUT_DRAWS)
    told = page.text["diagnostics"].partition("Left out, by datum")[2]
    assert f"{number(found.elpd, 6)} ± {number(found.error, 3)} nats" in told and found.verdict in told
    again = write_report(fit, tmp_path / "again.html").read_bytes()
    assert again == (tmp_path / "r.html").read_bytes()
    assert "Left out" not in Page(both[1]).text["diagnostics"]  # whose demonstrations take a solution for each draw


def test_a_separated_fit_warns_before_its_numbers(tmp_path):
    world, columns, _, _ = problem()
    right = demonstrations(None, [Path((0, 1, 2), (EVIL, EVIL))] * 3)
    fit = fit_reward(Linear(columns), Term(right, exact(world)))
    assert fit.status is Status.SEPARATED
    page = Page(write_report(fit, tmp_path / "r.html").read_text())
    assert "Separated" in page.text["header"] and "prior" in page.text["header"]
    assert "mean nothing" in page.text["parameters"]


def test_a_neural_reward_has_a_page_without_standard_errors(tmp_path):
    world, columns, shown, _ = problem()
    reward = Neural(columns, hidden=(80,))
    from irlhf.optimize import LBFGS

    fit = fit_reward(reward, Term(shown, exact(world)), optimizer=LBFGS(max_steps=2))
    page = Page(write_report(fit, tmp_path / "r.html", pictures=pictures(fit)).read_text())
    assert "Too many parameters" in page.text["parameters"]
    assert "Stopped" in page.text["header"]


def test_fixed_parameters_are_said_to_be_fixed(tmp_path):
    world, columns, shown, _ = problem()
    fit = fit_reward(Linear(columns), Term(shown, exact(world)), fixed={"far": 0.5})
    assert "fixed" in Page(write_report(fit, tmp_path / "r.html").read_text()).text["parameters"]


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_extra_gives_one_sentence(both, tmp_path, monkeypatch, missing):
    fit, _, _, _ = both
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=re.escape('pip install "irlhf[report]"')):
        write_report(fit, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_drawings_are_text_without_globals():
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg = draw(2, 1, lambda figure: figure.add_subplot().set_title(EVIL))
    assert dict(matplotlib.rcParams) == before
    assert "currentColor" in svg and "<script" not in svg and "&lt;script&gt;" in svg
    page = inline(svg, "p0", EVIL)
    assert "$x_1$" in re.sub("aria-label=[^>]*", "", page), "a label is not taken for a formula"
    assert "xmlns" not in page and "<script" not in page and 'id="p0-' in page


def test_labels_stay_apart_when_shortened():
    names = [f"a name that begins alike and says {k} only near the end of it all" for k in range(12)]
    short = shorten_all(names, 30)
    assert len(set(short)) == 12 and max(map(len, short)) <= 30
    assert shorten_all(["one", "two"]) == ["one", "two"]


def test_pictures_of_others_are_taken_as_they_are(both, tmp_path):
    fit, _, _, _ = both
    own = Picture(EVIL, '<svg viewBox="0 0 1 1" xmlns="urn:x"><text>mine</text></svg>', "how to read it")
    page = Page(write_report(fit, tmp_path / "r.html", pictures=[own]).read_text())
    assert "mine" in page.text["pictures"] and EVIL in page.text["pictures"]


def test_the_quantities_behind_the_parameters_are_shown(both):
    fit, text, _, _ = both
    page = Page(text)
    assert "comparisons.temperature" in page.text["parameters"]
    assert page.numbers["parameters"][-4:] == fit.derived().iloc[0].tolist()


@pytest.mark.parametrize("status", Status)
def test_every_end_has_a_headline(both, status):
    fit, _, _, _ = both
    level, words = verdicts.headline(replace(fit, status=status))
    assert level in ("good", "note", "bad") and words


def test_numbers_for_readers():
    assert [number(x) for x in (0.0, 1.0, -0.25, 1234.5678, 12345678.0)] == [
        "0",
        "1",
        "−0.2500",
        "1\u202f235",
        "1.23·10⁷",
    ]
    assert number(3.21e-6, 2) == "3.2·10⁻⁶"
    assert number(np.nan) == "–" and number(-np.inf) == "−∞"
    assert (p_value(1e-9), p_value(0.04321)) == ("< 0.0001", "0.043")
    assert (plural(1, "step"), plural(1200, "step")) == ("1 step", "1\u202f200 steps")
    assert pd.Series([number(0.1)]).iloc[0] == "0.1000"


def test_a_page_of_a_sampled_fit_has_its_rivals_and_one_of_a_saddle_point_no_errors(tmp_path):
    from irlhf import fit_jointly, sampled, variational
    from irlhf.worlds.tabular import SoftmaxPolicy
    from tests.test_simulated import strings

    sequences, of = strings()
    log_policy = np.full((3, sequences.transitions.n_pairs), -np.log(3))
    rows = demonstrations(None, sample_paths(sequences, log_policy, [0] * 40, max_steps=9, seed=0))
    among = write_report(fit_reward(Linear(of), Term(rows, sampled(sequences))), tmp_path / "sampled.html").read_text()
    assert "sampled, 8 rivals" in among and "base measure" in among and "sandwich" in among
    term = Term(rows, variational(sequences))
    saddle, _ = fit_jointly(Linear(of), SoftmaxPolicy(sequences), term, sequences, rounds=2)
    page = write_report(saddle, tmp_path / "saddle.html").read_text()
    assert "no likelihood" in page and "whose curvature is another one" in page and "sandwich" not in page
