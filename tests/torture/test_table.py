"""The table of the long form: rows of a later run take the place of their own alone."""

from __future__ import annotations

from pathlib import Path

from tests.torture.__main__ import BEGIN, END, Row, read_table, write_table


def test_rows_take_the_place_of_their_own(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    short = "4 memory short, workers killed"
    write_table(page, [Row("1 killed", 1100, 1100, 0, 0, 5.0), Row(short, 25, 24, 8, 1, 9)], 0)
    write_table(page, [Row(short, 26, 26, 0, 0, 9)], 3)
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    rows = {row.name: row.cells for row in read_table(text)}
    assert rows == {
        "1 killed": ("1 killed", "1,100", "1,100", "0", "0", "5"),
        short: (short, "26", "26", "0", "0", "9"),
    }
    assert "| all | 1,126 | 1,126 | 0 | 0 | 14 |" in text
