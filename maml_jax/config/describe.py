"""The fields of a configuration in words: for `--help`, and for `configs/README.md`.

After a change of the table, `python -m maml_jax.config.describe configs/README.md` brings its list up to date.
"""

import sys
import textwrap
from pathlib import Path

from maml_jax.config.fields import FIELDS, SECTIONS
from maml_jax.config.rules import Field, Same

_WIDTH = 120
_MARKS = ("<!-- fields: begin -->\n", "<!-- fields: end -->\n")


def _default(field: Field) -> str:
    return f"as {field.default.field}" if isinstance(field.default, Same) else repr(field.default)


def _meaning(field: Field) -> str:
    rule = field.rule.explained or field.rule.words
    return f"{field.meaning}{':' if field.rule.choices else ';'} {rule}" if rule else field.meaning


def help_text() -> str:
    """All fields with defaults and meanings, section by section."""
    lines = []
    for section, title in SECTIONS.items():
        lines += [f"\n{section or 'of all'}: {title}"]
        for field in FIELDS:
            if field.section == section:
                start = f"  {field.name:24} {_default(field):16} "
                lines += textwrap.wrap(
                    _meaning(field), _WIDTH, initial_indent=start, subsequent_indent=" " * len(start)
                )
    return "\n".join(lines)


def markdown() -> str:
    """The same as tables, and which fields may change when a run goes on."""
    parts = []
    for section, title in SECTIONS.items():
        rows = [field for field in FIELDS if field.section == section]
        lines = [f"#### {f'`{section}`: ' if section else ''}{title}", ""]
        lines += ["| field | default | meaning | may change in a run |", "| --- | --- | --- | --- |"]
        for field in rows:
            cells = (f"`{field.name}`", f"`{_default(field)}`", _meaning(field), "yes" if field.free else "")
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def up_to_date(text: str) -> str:
    """A README with the list of fields between its two marks replaced."""
    begin, end = _MARKS
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{markdown()}\n{end}{after}"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(up_to_date(readme.read_text()))
