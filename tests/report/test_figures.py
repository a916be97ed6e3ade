"""Numbers in pictures read alike from cell to cell."""

import numpy as np

from medvid_core.report import figures
from medvid_core.report.figures import confusion_plot, in_one_unit


def test_counts_share_a_unit():
    """Whole numbers with thousands separators; all in thousands where one would be too long; 0 is a number."""
    assert in_one_unit(np.array([[137_000, 11_862], [0, 7]])) == ([["137,000", "11,862"], ["0", "7"]], "")
    assert in_one_unit(np.array([[12_345_678, 11_862], [0, 7]])) == (
        [["12,346", "12"], ["0", "< 0.5"]],
        " (counts in thousands)",
    )


def test_every_cell_of_a_confusion_matrix_says_its_count(monkeypatch):
    """A count of 0 too; a class that is never true has no shares."""
    texts, labels = [], []

    class Axes:
        def text(self, x, y, text, **_):
            texts.append(text)

        def set_xlabel(self, text):
            labels.append(text)

        def __getattr__(self, name):
            return lambda *args, **more: None

    monkeypatch.setattr(figures, "plot", lambda draw, *args, **more: draw(Axes()) or "")
    confusion_plot(np.array([[1_500_000, 500_000], [0, 0]]), ("a", "b"), "", "")
    assert texts == ["1,500\n75%", "500\n25%", "0\n–", "0\n–"]
    assert labels == ["predicted (counts in thousands)"]
