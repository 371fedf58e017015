"""One set of cells, three forms."""

from keras_compress.tables import Table

TABLE = Table(["name", "bytes"], [["a|b", 12], ["<c>", 3456]])


def test_text_columns_line_up():
    assert TABLE.to_text().splitlines() == [
        "name  bytes",
        "----  -----",
        "a|b      12",
        "<c>    3456",
    ]


def test_markdown_escapes_bars():
    assert TABLE.to_markdown().splitlines()[1:3] == ["| --- | ---: |", "| a\\|b | 12 |"]


def test_html_escapes_cells():
    assert "&lt;c&gt;" in TABLE.to_html() and "<c>" not in TABLE.to_html()
