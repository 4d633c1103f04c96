"""In a notebook an answer is its text, and a trace is its page, which works inside the cell."""

import pytest
import torch
from glass_browser import Browser, missing

import lightwell
from lightwell.glass import result


def a_trace():
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    with lightwell.trace() as t:
        (w * w).sum().backward()
    return t, w


def test_answers_are_their_text():
    t, w = a_trace()
    for answer in (t.explain(w, index=0), t.verify(), t.origins()):
        shown = answer._repr_html_()
        assert str(answer).splitlines()[0].replace(">", "&gt;") in shown
        assert shown.startswith("<div")


def test_a_trace_that_is_open_or_large_is_told_in_words(monkeypatch):
    with lightwell.trace() as t:
        assert "still open" in t._repr_html_()
    t, _ = a_trace()
    assert "<iframe" in t._repr_html_()
    monkeypatch.setattr(result, "MOST_IN_A_CELL", 1)
    assert "<iframe" not in t._repr_html_()
    assert "operations" in t._repr_html_()


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")
@pytest.mark.timeout(120)
def test_the_page_works_inside_a_cell(tmp_path):
    t, _ = a_trace()
    path = tmp_path / "cell.html"
    path.write_text(f"<!doctype html><body>{t._repr_html_()}</body>", encoding="utf-8")
    with Browser(tmp_path) as browser:
        browser.open(path)
        browser.settle()
        inner = "document.querySelector('iframe').contentDocument"
        assert browser.run(f"return {inner}.querySelectorAll('.node').length") >= 2
        browser.run(f"{inner}.querySelector('[role=treeitem]').click()")
        browser.settle()
        assert "mul" in browser.run(f"return {inner}.querySelector('#details h2').textContent")
        assert browser.console == []
