"""The survey's table: complete, and every name and file in it is there."""

import pathlib
import subprocess
import sys

import pytest

import keras_compress
from keras_compress import survey

ROOT = pathlib.Path(__file__).parents[1]
SYSTEMS = list(survey.table())
# Entries of the catalogue in each section of the survey.
ENTRIES = {
    "2.1": 6,
    "2.2.1": 7,
    "2.2.2": 4,
    "2.2.3": 10,
    "2.2.4": 2,
    "2.3": 16,
    "2.4": 8,
    "2.5.1": 3,
    "2.5.2": 7,
    "2.5.3": 6,
    "2.6": 23,
    "2.7": 5,
    "2.8": 1,
}


def test_every_entry_of_the_catalogue_has_a_row():
    sections = [system.section for system in SYSTEMS]
    assert {section: sections.count(section) for section in sections} == ENTRIES
    assert len(SYSTEMS) == 98


def test_titles_are_unique():
    titles = [system.title for system in SYSTEMS]
    assert sorted(set(titles)) == sorted(titles)


def test_every_row_says_what_pays_off_and_when():
    for system in SYSTEMS:
        assert system.pays_off, system.title
        assert 1980 < system.year < 2030, system.title


@pytest.mark.parametrize("name", sorted({s.name for s in SYSTEMS if s.name}))
def test_named_objects_are_there(name):
    package, *path = name.split(".")
    assert package == "kc"
    found = keras_compress
    for part in path:
        found = getattr(found, part)
    assert callable(found)


def test_tests_are_files_and_go_with_a_name():
    for system in SYSTEMS:
        assert bool(system.test) == bool(system.name), system.title
        if system.test:
            assert (ROOT / system.test).is_file(), system.title


def test_readme_has_the_table_as_it_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split(survey.BEGIN)[1].split(survey.END)[0]
    assert section == f"\n{survey.table().to_markdown()}\n", (
        "run `python -m keras_compress.survey README.md`"
    )


def test_write_section_replaces_what_is_between_the_markers_only(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{survey.BEGIN}\nuntil now\n{survey.END}\nafter µ\n", encoding="utf-8")
    assert survey.main([str(file)]) == 0
    text = file.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{survey.BEGIN}\n| section | year |")
    assert text.endswith(f" |\n{survey.END}\nafter µ\n") and "until now" not in text
    survey.write_section(file)
    assert file.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "content",
    [
        "none",
        survey.BEGIN,
        f"{survey.END} {survey.BEGIN}",
        f"{survey.BEGIN} {survey.END} {survey.BEGIN} {survey.END}",
    ],
)
def test_files_without_the_markers_are_refused_and_left_alone(content, tmp_path, capsys):
    file = tmp_path / "README.md"
    file.write_text(content)
    with pytest.raises(ValueError, match="must have the line `<!-- survey -->` once"):
        survey.write_section(file)
    assert survey.main([str(file)]) == 2
    assert "must have the line" in capsys.readouterr().err
    assert file.read_text() == content


def test_text_html_and_pandas_hold_the_same_rows(capsys):
    table = survey.table()
    assert survey.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Header, rule and the count at the end.
    assert len(lines) == len(SYSTEMS) + 3
    named = sum(bool(s.name) for s in SYSTEMS)
    assert lines[-1] == f"{named} of 98 systems are there."
    assert table._repr_html_().count("<tr>") == len(SYSTEMS) + 1
    frame = table.to_pandas()
    assert list(frame.columns) == ["title", "year", "section", "name", "test", "pays_off"]
    assert frame.to_dict("records") == [vars(system) for system in SYSTEMS]


def test_module_runs_and_is_not_imported_with_the_package():
    # runpy warns about a module that its package has imported already.
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "keras_compress.survey"],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "kc.layers.TTDense" in run.stdout
    assert keras_compress.survey is survey


def test_unknown_names_of_the_package_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'surveys'"):
        _ = keras_compress.surveys
