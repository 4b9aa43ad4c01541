"""Any configuration either trains, or ends in exit code 2 and one readable message; never in a traceback."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lightning_prune.cli import main
from tests import contract

# `CASES` and not the classes: nested bases, files and choices are then part of what is mutated.
cases = st.sampled_from(contract.CASES)
scalars = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 7, 10_000, 0.5, -0.5, 1.0, 1.5, float("nan"), float("inf"), "", "x", "0.5", "loss",
     "val_loss", "self", "none", "é", "a b", "@", "{", "- x", "lightning_prune.InfoBatch", "os.system"]
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["class_path", "init_args", "x"]), inner)
    ),
    max_leaves=4,
)
nested = st.fixed_dictionaries(
    {
        "class_path": st.sampled_from(
            [*(contract.class_path(c) for c in contract.CASES), "InfoBatch", "InfoBach", "a.B"]
        )
    },
    optional={"init_args": st.dictionaries(st.sampled_from(["prune_ratio", "seed", "base", "x"]), values, max_size=2)},
)
fuzz = settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def arguments_of(case: str) -> list[str]:
    return list(inspect.signature(contract.method_of(case)).parameters)


def run(folder: Any, callbacks: Any, model: str = "tests.helpers.ModelWithData") -> str | None:
    """Fit with these callbacks; return the message that it ended in, or None if it trained."""
    config = {
        "model": {"class_path": model},
        "trainer": {
            "callbacks": callbacks,
            "max_epochs": 3,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    told, code = io.StringIO(), None
    with warnings.catch_warnings(), contextlib.redirect_stderr(told):
        warnings.simplefilter("ignore")
        try:
            main(["fit", "--config", str(folder / "config.yaml")])
        except SystemExit as end:
            code = end.code
    if code is None:
        return None
    text = told.getvalue()
    message = text[text.index("error: ") + len("error: ") :]
    assert code == 2
    assert text.count("error: ") == 1
    assert "Traceback" not in text
    assert 1 <= len(message.splitlines()) <= 12, message
    assert max(map(len, message.splitlines())) <= 600, message
    return message


def method(case: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": contract.class_path(case), "init_args": {**contract.arguments(case), **changes}}


@pytest.mark.parametrize("case", contract.CASES)
def test_what_is_mutated_is_right(case, tmp_path):
    assert run(tmp_path, [method(case, {})]) is None


SCORES = "lightning_prune.scoring.StaticPruning"


@pytest.mark.parametrize(
    ("callbacks", "expected"),
    [
        (["InfoBatch", "RandomPruning"], "Expected one pruning method, but got 2"),
        (["PruningCallback"], "PruningCallback must override `select"),
        ([{"class_path": SCORES, "init_args": {"scores": "nowhere.npz"}}], "nowhere.npz"),
        ([{"class_path": SCORES, "init_args": {"scores": __file__}}], "Expected a score file"),
        (
            [{"class_path": "lightning_prune.ScoreRegistry", "init_args": {"loader": "b"}}, "InfoBatch"],
            "Expected `ScoreRegistry(loader=...)` to name one of the train DataLoaders",
        ),
    ],
    ids=["two", "base", "no_file", "no_score_file", "no_loader"],
)
def test_what_only_the_run_shows(callbacks, expected, tmp_path):
    assert expected in str(run(tmp_path, callbacks))


def test_errors_of_the_step_keep_their_traceback(tmp_path):
    """Those are in the user's code."""
    with pytest.raises(ValueError, match="Expected one loss per sample"):
        run(tmp_path, ["InfoBatch"], model="tests.helpers.ScalarModel")


@fuzz
@given(cases, st.data())
def test_wrong_types_are_refused(tmp_path, case, data):
    name = data.draw(st.sampled_from(arguments_of(case)))
    wrong = data.draw(st.sampled_from([{"not": ["a", "value"]}, [[]], object.__name__ * 3, [{"x": 1}]]))
    assume(name != "selector_args" or not isinstance(wrong, dict))
    message = run(tmp_path, [method(case, {name: wrong})])
    if name in {"reference", "selector", "scores", "irreducible_losses"} and message is None:
        assert isinstance(wrong, str)  # the name of a metric, of a file
        return
    assert message is not None


@fuzz
@given(
    cases, st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=8), scalars | st.lists(values)
)
def test_unknown_names_are_refused(tmp_path, case, name, value):
    assume(name not in arguments_of(case))
    assert name in str(run(tmp_path, [method(case, {name: value})]))


@fuzz
@given(cases, st.data())
def test_any_value_of_any_argument(tmp_path, case, data):
    names = data.draw(st.lists(st.sampled_from(arguments_of(case)), min_size=1, max_size=3, unique=True))
    run(tmp_path, [method(case, {name: data.draw(values | nested) for name in names})])


@fuzz
@given(st.lists(nested, min_size=1, max_size=2) | values | st.lists(values, max_size=2))
def test_any_callbacks(tmp_path, callbacks):
    run(tmp_path, callbacks)
