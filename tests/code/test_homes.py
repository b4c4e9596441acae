"""`dti init` and `dti doctor`: what is proposed for a log and why, what is asked, what a home holds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from dti_pipeline import config
from dti_pipeline.cli import app
from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.homes import columns, make
from dti_pipeline.homes.complete import COMMENT, left_out
from dti_pipeline.homes.doctor import examine
from dti_pipeline.homes.propose import plain, propose
from dti_pipeline.paths import Paths
from dti_pipeline.validation.validate import validate

ROOT = Path(__file__).resolve().parents[2]
START = 1_600_000_000


def shown(rating: Any = None, rows: int = 2000, seed: int = 3) -> list[dict[str, Any]]:
    """Impressions of 40 users, four a request, some 250 s apart; ``rating``: a function of the draw."""
    draw = random.Random(seed)
    found = []
    for row in range(rows):
        user, request = row % 40, row // 160
        mark = draw.random()
        found.append(
            {
                "imp_no": row, "impression": f"{user}-{request}", "member": f"m{user}", "sku": draw.randrange(60),
                "clicked": int(mark < 0.3) if rating is None else rating(mark),
                "shown_at": (START + 250 * (row // 160)) * 1000,
            }
        )  # fmt: skip
    return found


def csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def init(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _without_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC takes a second to begin: tests/pipeline/test_wheel.py has it."""
    monkeypatch.setattr(make, "program", lambda name: None)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of requests with its catalogue beside it."""
    (tmp_path / "log").mkdir()
    items = [f"{sku},thing {sku}" for sku in range(60)]
    (tmp_path / "log" / "catalogue.csv").write_text("\n".join(["sku,name", *items]))
    return csv(tmp_path / "log" / "shown.csv", shown())


def test_a_log_of_requests_is_proposed_and_can_be_read_and_validated(log: Path, tmp_path: Path) -> None:
    done = init(tmp_path / "home", "--from", log)
    assert done.exit_code == 0, done.output
    paths = Paths(tmp_path / "home")
    settings = config.load(paths.params)
    read = settings.events
    assert (read.columns.user_id, read.columns.item_id, read.columns.rating) == ("member", "sku", "clicked")
    assert (read.columns.timestamp, read.columns.request_id) == ("shown_at", "impression")
    assert (read.items_path, read.item_columns) == (str(log.with_name("catalogue.csv")), ("sku", "name"))
    assert (settings.split.label_threshold, settings.split.feedback_delay) == (0.5, None)
    text = paths.params.read_text()
    rate = f"{sum(row['clicked'] for row in shown()) / 2000:.1%} clicks."
    for reason in ("2,000 rows, 40 users, 60 items.", rate, "values (milliseconds)"):
        assert reason in text
        assert reason in done.output
    assert ingest(settings, paths).kept > 1900
    assert validate(settings, paths).success


def test_the_same_log_in_every_form_is_proposed_alike(log: Path, tmp_path: Path) -> None:
    rows = shown()
    lines = tmp_path / "log" / "shown.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    table = tmp_path / "log" / "shown.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    found = {}
    for path in (log, lines, table):
        settings = plain(propose(path, tmp_path / "home"))
        del settings["events"]["path"]
        found[path.suffix] = settings
    assert found[".csv"] == found[".jsonl"] == found[".parquet"]


@pytest.mark.parametrize(
    ("rating", "threshold", "reason"),
    [
        (lambda mark: int(mark * 5) + 1, 3.0, "the usual cut of ratings to 5"),
        (lambda mark: 1 if mark < 0.1 else 4 if mark < 0.45 else 5, 4.0, "the nearest to one half"),
        (lambda mark: int(mark < 0.5), 0.5, "1 is a click, 0 none"),
        (lambda mark: round(mark * 1000, 2), None, "CHOOSE: ratings are a quantity"),
    ],
)
def test_the_threshold_has_its_reason(tmp_path: Path, rating: Any, threshold: float | None, reason: str) -> None:
    log = csv(tmp_path / "log.csv", shown(rating))
    found = {one.key: one for one in propose(log, tmp_path)}["split.label_threshold"]
    assert reason in found.why
    assert threshold is None or found.value == threshold


def test_labels_of_one_sitting_are_taken_to_come_late(tmp_path: Path) -> None:
    rows = [row | {"shown_at": START + 20 * number} for number, row in enumerate(shown())]
    rows = [{key: value for key, value in row.items() if key != "impression"} for row in rows]
    found = {one.key: one for one in propose(csv(tmp_path / "log.csv", rows[:40] * 1 + rows), tmp_path)}
    assert found["split.feedback_delay"].value is None  # 800 s apart
    rows = [row | {"shown_at": START + number // 40} for number, row in enumerate(rows)]
    found = {one.key: one for one in propose(csv(tmp_path / "log.csv", rows), tmp_path)}
    assert found["split.feedback_delay"].value == 3600
    assert "within a minute" in found["split.feedback_delay"].why


def test_a_log_without_a_clock_or_titles_says_so(tmp_path: Path) -> None:
    rows = [{"user": row["member"], "item": row["sku"], "label": row["clicked"]} for row in shown()]
    found = plain(propose(csv(tmp_path / "log.csv", rows), tmp_path))
    assert found["events"]["columns"]["timestamp"] is None
    assert (found["split"]["rule"], found["split"]["feedback_delay"]) == ("user_order", None)
    assert (found["tokens"]["template"], found["validation"]["max_untitled_share"]) == ("{item_id}", 1.0)
    assert found["events"]["path"] == "log.csv"  # in the home: relative


@pytest.mark.parametrize(
    ("clock", "titles", "template"),
    [
        (True, True, "{item_text}, {item_rate}{user_rate}"),
        (True, False, "{item_id}, {item_rate}{user_rate}"),
        (False, False, "{item_id}, {user_rate}"),
    ],
)
def test_a_recipe_s_words_are_those_that_the_log_can_fill(
    tmp_path: Path, clock: bool, titles: bool, template: str
) -> None:
    rows = [
        {"user": row["member"], "item": row["sku"], "label": row["clicked"]}
        | ({"timestamp": row["shown_at"]} if clock else {})
        | ({"title": f"Thing {row['sku']}"} if titles else {})
        for row in shown()
    ]
    proposed = plain(propose(csv(tmp_path / "log.csv", rows), tmp_path, name="smollm2-135m"))
    assert proposed["tokens"]["template"] == template
    assert "Films" not in proposed["tokens"]["prefix"]
    assert proposed["packing"]["row_length"] == 4096  # longer rows would make larger steps


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"user": 1, "item": 2, "stars_given": 3, "price": 4}] * 3, "which column holds clicks, labels or ratings?"),
        (
            [{"who": 1, "item": 2, "click": 0}, {"who": 2, "item": 2, "click": 1}],
            "which column holds users? one of who",
        ),
        ([{"user": 1, "item": 2, "click": 1}] * 99, "all 99 ratings are 1: a log needs clicks and skips"),
        ([{"1": 1, "1193": 2, "5": 3}], "line 1 has no names of columns"),
    ],
)
def test_what_cannot_be_told_is_asked_and_nothing_is_written(
    tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    log = csv(tmp_path / "log.csv", rows)
    done = init(tmp_path / "home", "--from", log)
    assert done.exit_code == 2
    words = " ".join(done.output.split())
    assert said in words
    assert not (tmp_path / "home").exists()


def test_a_person_may_say_which_column_it_is(tmp_path: Path) -> None:
    log = csv(tmp_path / "log.csv", [row | {"who": row["member"]} for row in shown()])
    found = plain(propose(log, tmp_path, {"user_id": "who"}))
    assert found["events"]["columns"]["user_id"] == "who"
    with pytest.raises(InputError, match="has no such column, but imp_no, impression"):
        propose(log, tmp_path, {"user_id": "nobody"})
    with pytest.raises(InputError, match="names no role: use one of user_id"):
        propose(log, tmp_path, {"buyer": "who"})


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        ("964982703", "unix seconds"), ("1600000000000", "milliseconds"), ("1600000000000000", "microseconds"),
        ("2013-05-01T10:00:00", "ISO 8601, UTC where it names no zone"), ("17", None), ("yesterday", None),
    ],
)  # fmt: skip
def test_the_unit_of_a_clock_is_told_by_its_size(value: str, unit: str | None) -> None:
    assert columns.clock([value]) == unit


def test_nothing_is_overwritten_and_what_is_missing_is_made(log: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "README.md").write_text("mine")
    assert init(home).exit_code == 0
    assert (home / "README.md").read_text() == "mine"
    assert (home / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()
    refused = init(home, "--from", log)
    assert refused.exit_code == 2
    assert "params.yaml exists, and dti init overwrites nothing" in " ".join(refused.output.split())
    (home / "dg.toml").unlink()
    again = init(home)
    assert (home / "dg.toml").is_file()
    assert "params.yaml stays as it is" in " ".join(again.output.split())


def test_a_homes_dvc_yaml_has_the_repositorys_stages_and_plots(log: Path, tmp_path: Path) -> None:
    init(tmp_path / "home", "--from", log)
    own, ours = (yaml.safe_load((folder / "dvc.yaml").read_text()) for folder in (tmp_path / "home", ROOT))
    assert own["stages"] == {name: stage for name, stage in ours["stages"].items() if name != "synth"}
    assert own["metrics"] == ours["metrics"]
    assert own["plots"] == ours["plots"][: len(own["plots"])]
    params = yaml.safe_load((tmp_path / "home" / "params.yaml").read_text())
    for key in {key for stage in own["stages"].values() for key in stage["params"]}:
        node = params
        for part in key.split("."):
            assert part in node, f"DVC watches {key}"
            node = node[part]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("movietweetings-100k", ("movietweetings", "global_time", 7.0, 5, 3600, 64)),
        ("ml-latest-small", ("movielens", "global_time", 3.0, 5, 3600, 64)),
        ("ml-1m", ("movielens", "user_order", 3.0, 5, None, 128)),
        ("collm-ml1m", ("table", "column", 0.5, 0, 3600, 64)),
    ],
)
def test_real_logs_are_proposed_as_the_study_reads_them(
    real_data: Path, tmp_path: Path, name: str, expected: tuple[Any, ...]
) -> None:
    found = plain(propose(real_data / name, tmp_path))
    split = found["split"]
    assert expected == (
        found["events"]["source"], split["rule"], split["label_threshold"], split["min_history"],
        split["feedback_delay"], found["model"]["hidden_size"],
    )  # fmt: skip


def test_doctor_stops_at_a_log_that_is_not_there_and_at_nothing_else(
    home: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    names = [line[2:].split("  ")[0] for line in done.stdout.splitlines()]
    expected = ["Python", "libraries", "threads", "memory", "disk", "port 3000", "pools", "git", "DVC", "params.yaml"]
    assert {*expected} <= {*names}
    home.params.write_text("events: {source: table, path: nowhere.csv}")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "the pipeline cannot work: log" in done.output
    home.params.write_text("trainig: {epochs: 1}")
    (stop,) = [finding for finding in examine(home) if finding.state == "stop"]
    assert "did you mean `training`?" in stop.text
    monkeypatch.setattr("dti_pipeline.homes.doctor._version", lambda name: None if name == "duckdb" else "1")
    assert "not installed: duckdb" in next(finding.text for finding in examine(home) if finding.state == "stop")


NAMES_KEYS = """\
stages:
  pack: {matrix: {paradigm: "${paradigms}"}, cmd: x, params: [packing, split.min_history, tokens.user_template]}
"""


@pytest.mark.parametrize(
    ("text", "completed"),
    [
        (
            "# mine\nsplit:  # a rule\n  rule: user_order  # no clock\n\n# last\ntokens: {tokenizer: null,}\n",
            "# mine\nsplit:  # a rule\n  rule: user_order  # no clock\n  min_history: 5\n\n# last\n"
            "tokens: {tokenizer: null, user_template: null,}\n\nCOMMENT\n"
            "paradigms: [sliding_window, dti]\npacking: {}\n",
        ),
        (
            "paradigms:\r\n- dti\r\nsplit:\r\n    rule: user_order",
            "paradigms:\r\n- dti\r\nsplit:\r\n    rule: user_order\r\n    min_history: 5\r\n\r\nCOMMENT\r\n"
            "tokens: {user_template: null}\r\npacking: {}\r\n",
        ),
        (
            "tokens:\n  template: |-\n    {item_text}\n# last\n",
            "tokens:\n  template: |-\n    {item_text}\n  user_template: null\n\nCOMMENT\n"
            "paradigms: [sliding_window, dti]\nsplit: {min_history: 5}\npacking: {}\n# last\n",
        ),
        (
            "{packing: {context: 3}, split: {}}",
            "{packing: {context: 3}, split: {min_history: 5}, paradigms: [sliding_window, dti],"
            " tokens: {user_template: null}}",
        ),
        (
            None,
            "COMMENT\nparadigms: [sliding_window, dti]\nsplit: {min_history: 5}\ntokens: {user_template: null}\n"
            "packing: {}\n",
        ),
    ],
)  # fmt: skip
def test_what_dvc_names_is_added_at_its_default_and_nothing_else_changes(
    home: Paths, text: str | None, completed: str
) -> None:
    home.params.unlink(missing_ok=True)
    (home.home / "dvc.yaml").write_text(NAMES_KEYS)
    if text is not None:
        home.params.write_bytes(text.encode())
    before = config.load(home.params)
    done = CliRunner().invoke(app, ["config", "--complete"])
    assert done.exit_code == 0, done.output
    assert home.params.read_bytes().decode() == completed.replace("COMMENT", COMMENT)
    assert config.load(home.params) == before
    assert left_out(home) == []
    again = CliRunner().invoke(app, ["config", "--complete"])
    assert again.output.endswith("params.yaml has all that dvc.yaml names\n")
    assert home.params.read_bytes().decode() == completed.replace("COMMENT", COMMENT)


def test_a_form_that_cannot_be_added_to_is_one_sentence_and_stays(home: Paths) -> None:
    (home.home / "dvc.yaml").write_text(NAMES_KEYS)
    home.params.write_text(text := "split: &one {}\nvalidation: *one\n")
    done = CliRunner().invoke(app, ["config", "--complete"])
    assert done.exit_code == 2
    assert "cannot be added to: write paradigms, split.min_history, tokens" in " ".join(done.output.split())
    assert home.params.read_text() == text


def test_doctor_names_what_dvc_would_refuse_and_the_command(home: Paths) -> None:
    (home.home / "dvc.yaml").write_text(NAMES_KEYS)
    home.params.write_text("packing: {}\nsplit: {rule: user_order}\n")
    (found,) = [one for one in examine(home) if one.name == "DVC" and "refuses" in one.text]
    assert found.state == "note"
    assert "without paradigms, split.min_history, tokens.user_template: `dti config --complete`" in found.text
    (home.home / "dvc.yaml").write_text("stages: [")  # DVC says so itself
    assert left_out(home) == []


def test_reasons_are_comments_above_their_keys() -> None:
    from dti_pipeline.homes.propose import Setting

    text = make.params([Setting("events.columns.rating", "stars", "By its name."), Setting("events.path", "x")], "own")
    assert "  columns:\n    # By its name.\n    rating: stars\n  path: x\n" in text
    assert yaml.safe_load(text)["tracking"] == {"experiment": "own"}
