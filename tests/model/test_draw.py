"""`dti mask` draws what is trained: every pair of tokens against the oracle, in JSON, in blocks and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dti_pipeline.cli import app
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.masks import draw
from dti_pipeline.paradigms import DTI, named, names
from tests.model import oracle
from tests.model.conftest import SPECIAL


def expected(paradigm: str, context: int, targets: int, tokens: int) -> dict[str, list]:
    history = [([9] * (tokens - 1), 1)] * (context + targets)
    prompt = oracle.prompt(history, context, context + targets, context, SPECIAL)
    every = range(len(prompt))
    return {
        "kind": [token["kind"] for token in prompt],
        "interaction": [token["interaction"] for token in prompt],
        "visible": [[int(oracle.sees(paradigm, context, prompt, q, k)) for k in every] for q in every],
    }


@given(
    paradigm=st.sampled_from(names()), context=st.integers(0, 6), targets=st.integers(1, 6), tokens=st.integers(2, 6)
)
@settings(max_examples=80, deadline=None)
def test_the_mask_is_the_oracle_s_pair_by_pair(paradigm: str, context: int, targets: int, tokens: int) -> None:
    targets = 1 if paradigm == "sliding_window" else targets
    assert draw.prompt_mask(named(paradigm), context, targets, tokens).plain() == expected(
        paradigm, context, targets, tokens
    )


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["mask", *arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("paradigm", names())
def test_json_is_the_contract_s(paradigm: str) -> None:
    targets = "1" if paradigm == "sliding_window" else "3"
    code, out, _ = run(
        "--paradigm", paradigm, "--context", "2", "--targets", targets, "--tokens", "4", "--json"
    )  # fmt: skip
    assert code == 0
    assert json.loads(out) == expected(paradigm, 2, int(targets), 4)


def test_json_of_all_paradigms_is_keyed_by_name() -> None:
    found = json.loads(run("--json", "--targets", "3")[1])
    assert tuple(found) == names()
    assert found["dti"]["kind"].count("sum") == 3
    assert found["sliding_window"]["kind"].count("sum") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--paradigm", "sliding_window", "--targets", "2"), "one target"),
        (("--paradigm", "dti", "--tokens", "1"), "--tokens"),
        (("--paradigm", "dti", "--targets", "0"), "--targets"),
        (("--paradigm", "dti", "--context", "-1"), "--context"),
        (("--paradigm", "dti", "--targets", "5000"), "4096"),
        (("--paradigm", "dtti",), "did you mean `dti`"),
        (("--out", "mask.jpg",), ".png or .svg"),
        (("--out", "nowhere/mask.png",), "not a folder"),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_is_refused_in_one_sentence(arguments: tuple[str, ...], named: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("paradigm", names())
def test_the_drawing_can_be_read_back_without_its_colours(paradigm: str) -> None:
    mask = draw.prompt_mask(named(paradigm))
    lines = draw.text(mask).plain.splitlines()[2:-1]
    blocks = {block: kind for kind, (_, block) in draw.STYLES.items()}
    assert len(lines) == len(mask.kind)
    for q, line in enumerate(lines):
        cells = [line[12 + 2 * k : 14 + 2 * k] for k in range(len(mask.kind))]
        assert [cell != draw.UNSEEN for cell in cells] == mask.visible[q].tolist()
        assert {blocks[cell] == mask.kind[k] for k, cell in enumerate(cells) if cell in blocks} == {True}


def test_a_terminal_that_is_too_narrow_is_told_the_way_out() -> None:
    with pytest.raises(InputError, match="--out"):
        draw.text(draw.prompt_mask(DTI, context=20, targets=10), columns=80)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures_are_the_same_bytes_each_time(tmp_path: Path, ending: str) -> None:
    files = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for file in files:
        assert run("--out", str(file)) == (0, "", "")
    assert files[0].read_bytes() == files[1].read_bytes()
    if ending == "svg":
        drawing = files[0].read_text()
        assert all(paradigm in drawing for paradigm in names())
        assert all(colour.lower() in drawing for colour, _ in draw.STYLES.values())
