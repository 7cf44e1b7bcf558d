"""The report: what is on the page, of levels whose figures are known."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from levels import article, level

from orchestrator.bench.report import report
from orchestrator.errors import HostError


class Page(HTMLParser):
    """Its ids, the texts of its cells by row, and what is never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "tr":
            self.rows.append([])
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1].append(data)


def test_it_is_one_page_with_nothing_from_elsewhere() -> None:
    text = report(article())
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    links = re.findall(r"(?:src|href)=\"([^\"#][^\"]*)", text) + re.findall(r"url\((?!#)([^)]*)", text)
    assert links == []
    # Every colour of a picture is the page's.
    assert re.findall(r"#0[1-8]0[1-8]0[1-8]", text) == []
    assert text.count("<svg") == 8
    assert report(article()) == text


def test_the_articles_tables_have_yours_in_them() -> None:
    rows = Page(report(article())).rows
    assert ["tok/s", "161", "68", "161", "68"] in rows
    assert ["First token", "132 ms", "18 ms", "132 ms", "18 ms"] in rows
    assert ["8", "173", "332", "173", "332"] in rows
    assert ["4", "3.2 s", "22 ms", "3.2 s", "22 ms"] in rows
    assert ["Memory", "2 GB", "2 GB", "6.7 GB", "6.4 GB"] in rows


def test_memory_of_gpus_counts_before_that_of_the_host() -> None:
    use = [{"uuid": "GPU-1", "memory_used_max": 30_000_000_000, "power_mean": None, "utilization_mean": None}]
    rows = Page(report([level("vllm", 1, 68.0, gpu_use=use)])).rows
    assert ["Memory", "30 GB", "6.7 GB", "6.4 GB"] in rows


def test_names_are_text_whatever_they_hold() -> None:
    text = report([{**level("vllm", 1, 68.0), "profile": "<script>alert(1)</script>"}])
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_what_failed_is_said() -> None:
    levels = article()
    levels[-1] |= {"failed": 3, "errors": {"HTTP 503": 3}}
    assert "3 requests to vllm (nvfp4) failed; they are in no other figure." in report(levels)


def test_one_engine_is_a_report_too() -> None:
    assert "vllm (nvfp4): 300 tokens a second at most, with 4 users." in report(
        [level("vllm", 1, 100.0), level("vllm", 4, 300.0)]
    )


def test_two_that_have_no_users_in_common_are_not_compared() -> None:
    assert "were not measured at the same numbers of users" in report(
        [level("vllm", 1, 100.0), level("ollama", 4, 300.0)]
    )


def test_without_users_there_is_no_curve() -> None:
    with pytest.raises(HostError, match="None of these measurements is of users at a time"):
        report([level("vllm", None, 100.0)])
