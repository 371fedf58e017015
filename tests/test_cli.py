"""The command line and the parts of the demo that need no training."""

import pytest

from keras_compress import cli, datasets, demo


def test_survey_prints_the_table(capsys):
    assert cli.main(["survey"]) == 0
    assert "kc.layers.TTDense" in capsys.readouterr().out


def test_unknown_data_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--data", "imagenet"])
    assert "cifar10" in capsys.readouterr().err


def test_demo_offline_says_what_to_do_and_writes_nothing(monkeypatch, tmp_path, capsys):
    def offline(name):
        raise ValueError(f"{name} could not be downloaded; use --data digits")

    monkeypatch.setattr(datasets, "keras_dataset", offline)
    folder = tmp_path / "demo"
    assert cli.main(["demo", "--data", "mnist", "--output", str(folder)]) == 2
    assert "use --data digits" in capsys.readouterr().out
    assert not folder.exists()


def test_demo_refuses_bad_epochs(tmp_path, capsys):
    assert cli.main(["demo", "--epochs", "0", "--output", str(tmp_path / "demo")]) == 2
    assert "`epochs` must be a positive integer" in capsys.readouterr().out


def test_report_is_one_page_with_tables_and_pictures(tmp_path):
    import keras
    import numpy as np

    from keras_compress.profile import compare

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x, y = np.ones((5, 4), "float32"), np.zeros(5, int)
    comparison = compare({"a <b>": model}, (x, y), verbose=False, runs=2)
    demo.write_report(tmp_path / "report.html", {"dense": comparison}, "digits", 1.0)
    page = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;" in page and "data:image/png;base64," in page
