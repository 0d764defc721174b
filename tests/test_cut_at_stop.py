"""Where a text ends by stop strings."""

from __future__ import annotations

import pytest

from rlif_lightning.sampling import cut_at_stop


@pytest.mark.parametrize(
    ("text", "stop", "cut"),
    [
        ("a;b.c", [".", ";"], "a"),  # the first in the text, in whatever order they are named
        ("a;b.c", [";", "."], "a"),
        ("a.b.c", ["."], "a"),
        ("a</s>b", ["s>", "</s>"], "a"),  # overlapping
        (";", [";"], ""),
        ("abc", [";"], "abc"),
        ("abc", [], "abc"),
    ],
)
def test_the_first_stop_string_in_the_text_cuts(text, stop, cut):
    assert cut_at_stop(text, stop) == cut
