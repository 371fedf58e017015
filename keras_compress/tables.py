"""Tables that print in a terminal, show in a notebook and go into Markdown, from the same cells."""

import html


class Table:
    """Rows of text under a header.

    Args:
        header: Column titles.
        rows: Sequences of cells; anything that is not a string goes through `str`.
        align: One of `"<"` and `">"` for each column; by default the first column is
            left-aligned and the others right-aligned.
        title: Line above the table, or `None`.
    """

    def __init__(self, header, rows, align=None, title=None):
        self.header = [str(cell) for cell in header]
        self.cells = [[str(cell) for cell in row] for row in rows]
        self.align = align or "<" + ">" * (len(self.header) - 1)
        self.title = title

    def __str__(self):
        return self.to_text()

    def _repr_html_(self):
        return self.to_html()

    def to_text(self):
        """Columns padded to the same width."""
        lines = [self.header, *self.cells]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        padded = [
            "  ".join(
                f"{c:{a}{w}}" for c, a, w in zip(line, self.align, widths, strict=True)
            ).rstrip()
            for line in lines
        ]
        rule = "  ".join("-" * w for w in widths)
        return "\n".join([*([self.title] if self.title else []), padded[0], rule, *padded[1:]])

    def to_markdown(self):
        """A GitHub table; bars in cells are escaped."""
        rule = ["---:" if a == ">" else "---" for a in self.align]
        lines = [self.header, rule, *self.cells]
        table = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        return f"{self.title}\n\n{table}" if self.title else table

    def to_html(self):
        """An HTML table; cells are escaped."""
        styles = [f' style="text-align: {"right" if a == ">" else "left"}"' for a in self.align]

        def row(cells, tag):
            inner = "".join(
                f"<{tag}{style}>{html.escape(cell)}</{tag}>"
                for cell, style in zip(cells, styles, strict=True)
            )
            return f"<tr>{inner}</tr>"

        body = "".join(row(cells, "td") for cells in self.cells)
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        head = f"<thead>{row(self.header, 'th')}</thead>"
        return f"<table>{caption}{head}<tbody>{body}</tbody></table>"
