"""The licence that a card's front matter states."""

from pathlib import Path

import pytest

from nomicbert.loading.license import License, read_license
from tests.support.guards import guarded

CARDS = {
    "---\nlicense: cc-by-nc-4.0\ntags:\n- mteb\n---\n# Conan": License("cc-by-nc-4.0", True),
    "---\ntags: [a]\nlicense: 'apache-2.0'  # ours\n---": License("apache-2.0", False),
    "\ufeff---\r\nlicense: mit\r\n---\r\n": License("mit", False),
    "---\nlicense: other\nlicense_name: acme-non-commercial\n---": License(
        "acme-non-commercial", True
    ),
    "---\nlicense: other\n---": License("other", False),
    "---\nlicense: null\n---": None,
    "---\nlicense: ~ # none\n---": None,
    "---\nlicense: 'null'\n---": License("null", False),
    "---\nlicense:\n- apache-2.0\n---": License("apache-2.0", False),
    "---\nlicense:\n- mit\n\n  - cc-by-nc-4.0 # data\ntags:\n- x\n---": License(
        "mit, cc-by-nc-4.0", True
    ),
    "---\nlicense: a#b\n---": License("a#b", False),
    "---\nlicense: 'it''s # mine' # not mine\n---": License("it's # mine", False),
    '---\nlicense: "the \\"free\\" # one"\n---': License('the "free" # one', False),
    "---\nlicense: 'not closed\n---": None,
    "---\nbase:\n  license: mit\n---": None,
    "---\ntags: [a]\n---\nlicense: mit": None,
    "---\nlicense: mit": None,
    "# Title\nlicense: mit\n---\n": None,
    "license: mit": None,
    "": None,
}


@pytest.mark.parametrize("card", CARDS)
def test_the_licence_of_a_card(card: str, tmp_path: Path) -> None:
    assert read_license(tmp_path) is None
    (tmp_path / "README.md").write_text(card, encoding="utf-8", newline="")
    assert read_license(tmp_path) == CARDS[card]


@pytest.mark.parametrize("gap", [" ", " #", "'"])
def test_a_long_line_takes_no_longer_than_its_length(gap: str, tmp_path: Path) -> None:
    line = f"license: mit{gap * 200_000}x"
    (tmp_path / "README.md").write_text(f"---\n{line}\n---\n", encoding="utf-8")
    with guarded():
        found = read_license(tmp_path)
    assert found is not None
    assert found.name.startswith("mit")
