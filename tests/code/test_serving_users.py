"""States of users: a request from a state has the score of the streaming prompt, and a state is only of its history."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import DTI_ISOLATED, SLIDING_WINDOW
from dti_pipeline.paths import Paths
from dti_pipeline.serving import forward, requests
from dti_pipeline.serving.knowledge import in_order, known_rows
from dti_pipeline.serving.scorer import Scored, Scorer
from dti_pipeline.serving.user_states import NotHeld, UserStates
from tests.code.services import serving
from tests.model.conftest import small_model
from tests.small_models import questions, train

pytestmark = pytest.mark.slow  # whole stages: `make test` runs them

K = 4
PARADIGMS = ("dti", "dti_growing")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = Paths(tmp_path_factory.mktemp("home"))
    train(paths, PARADIGMS, packing={"targets": K})
    return paths


@pytest.fixture(scope="module")
def loaded(trained: Paths) -> dict[str, Scorer]:
    return {name: Scorer.load(trained.model(name)) for name in PARADIGMS}


def keeping(scorer: Scorer, most_bytes: int = 1 << 26) -> Scorer:
    return scorer.with_users("a model", K, most_bytes)


def states(scorer: Scorer) -> UserStates:
    assert scorer.users is not None
    return scorer.users


def history(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [{"item_id": str(draw.integers(1, 60)), "label": int(draw.integers(2))} for _ in range(count)]


def asked(user: str, events: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"user_id": user, "history": events, "candidates": [{"item_id": "3"}, {"item_id": "4"}], **more}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of histories that are computed, from now on."""
    found: list[int] = []
    real = forward._pass

    def count(model: Any, prompts: Any, *rest: Any) -> Any:
        found.extend(len(prompt.rows.text) - prompt.candidates for prompt in prompts)
        return real(model, prompts, *rest)

    monkeypatch.setattr(forward, "_pass", count)
    return found


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_scores_are_those_of_the_evaluation_s_streaming_prompts(
    trained: Paths, loaded: dict[str, Scorer], paradigm: str
) -> None:
    """Whole histories, and then what is new of them, in turn."""
    scorer = keeping(loaded[paradigm])
    rows = Rows.open(TokenStore.open(trained.tokens), trained.shards(paradigm), "test_streaming")
    streaming = scorer.model.paradigm.in_streams()
    targets, expected = score(scorer.model, rows, np.arange(len(rows)), 4096, torch.device("cpu"), paradigm=streaming)
    assert max(rows.stop - rows.first_target) == K
    log = pq.read_table(trained.events / "interactions.parquet").to_pydict()
    known: dict[str, tuple[str | None, int]] = {}
    found, alone = [], []
    some = targets < targets[len(targets) // 2]
    targets, expected = targets[some], expected[some]
    for target in targets.tolist():
        past = range(target - log["position"][target], target)
        events = [
            {"item_id": log["item_id"][r], "label": log["label"][r], "timestamp": log["timestamp"][r]} for r in past
        ]
        user, now = log["user_id"][target], log["timestamp"][target]
        one = {"user_id": user, "timestamp": now, "candidates": [{"item_id": log["item_id"][target]}]}
        alone.append(loaded[paradigm].score([one | {"history": events}])[0][0])
        if user in known and target % 3:
            name, length = known[user]
            one |= {"state": name, "history": events[length:]}
        else:
            one["history"] = events
        found.append(scorer.score([one])[0][0])
        known[user] = states(scorer).states[user].name, len(events)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(np.array(alone) - expected).max() > 1e-3, "in single prompts they are other ones"


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_only_new_events_are_computed(
    loaded: dict[str, Scorer], monkeypatch: pytest.MonkeyPatch, paradigm: str
) -> None:
    scorer, events = keeping(loaded[paradigm]), history(40)
    rows = counted(monkeypatch)
    for end in (20, 20, 21, 23, 24, 26):
        scorer.score([asked("a", events[:end])])
    assert rows == [6, 0, 1, 2, 6, 2], "n rows; what is new; after k targets n rows again"
    kept = states(scorer).states["a"].kept
    assert kept is not None
    assert len(set(kept.row.tolist())) == (6 if paradigm == "dti" else 8), "dti looks back n rows"


def test_a_state_of_another_history_user_or_model_is_not_used(loaded: dict[str, Scorer]) -> None:
    plain, events = loaded["dti"], history(30)
    scorer = keeping(plain)
    scorer.score([asked("a", events[:20])])
    changed = [*events[:7], events[7] | {"label": 1 - events[7]["label"]}, *events[8:21]]
    shorter, timed = events[:19], [event | {"timestamp": i} for i, event in enumerate(events[:21])]
    for other in (changed, shorter, timed, [{"item_id": "9", "label": 1}]):
        [found] = scorer.score([asked("a", other)])
        np.testing.assert_allclose(found, plain.score([asked("a", other)])[0], rtol=0, atol=1e-6)
        scorer.score([asked("a", events[:20])])
    name = states(scorer).states["a"].name
    for bad in (asked("b", [], state=name), asked("a", [], state="0" * 32)):
        with pytest.raises(NotHeld, match="is not held for the user"):
            scorer.score([bad])
    with pytest.raises(NotHeld, match="no states of users are kept"):
        plain.score([asked("a", [], state=name)])
    other_model = plain.with_users("another model", K, 1 << 26)
    other_model.score([asked("a", events[:20])])
    assert states(other_model).states["a"].name != name
    with pytest.raises(InputError, match="key state must be"):
        scorer.score([{"history": [], "candidates": [], "state": name}])


def test_a_request_that_comes_twice_is_answered_twice(loaded: dict[str, Scorer]) -> None:
    scorer, events = keeping(loaded["dti"]), history(30)
    scorer.score([asked("a", events[:20])])
    name = states(scorer).states["a"].name
    more = asked("a", events[20:22], state=name)
    first, again = scorer.score([more])[0], scorer.score([more])[0]
    assert first == pytest.approx(again, abs=1e-6)
    assert states(scorer).states["a"].length == 22
    # In one batch: one user's after one another, others' beside them.
    both = [asked("b", events[:20]), asked("b", events[:21]), asked("c", events[:21])]
    one, two, three = scorer.score(both)
    assert one == pytest.approx(loaded["dti"].score([asked("b", events[:20])])[0], abs=1e-6)
    assert two != pytest.approx(three, abs=1e-6), "b's prompt is longer than c's"


def test_an_answer_has_its_own_request_s_state_whatever_else_was_answered(loaded: dict[str, Scorer]) -> None:
    """Requests are forgotten once they are answered, and Python gives their places in memory to the next ones."""
    scorer, places, named = keeping(loaded["dti"]), set(), {}
    for number in range(12):
        user = f"user {number}" if number % 3 else None
        request = requests.parse(asked(f"user {number}", history(8, seed=number)) | {"user_id": user}, "it")
        places.add(id(request))
        [found] = scorer.scored([request])
        assert found.state == (None if user is None else states(scorer).states[user].name)
        named[number] = found.state
        del request
    assert len(places) < len(named), "places were used again"
    assert len({name for name in named.values() if name is not None}) == 8
    # What stands together is told apart, and a refused one has no state.
    good, bad = asked("a", history(8)), asked("b", [], state="0" * 32)
    one, refused, two = scorer.score_each([requests.parse(each, "it") for each in (good, bad, good | {"user_id": "c"})])
    assert isinstance(refused, NotHeld)
    assert isinstance(one, Scored)
    assert isinstance(two, Scored)
    assert (one.state, two.state) == tuple(states(scorer).states[user].name for user in "ac")


def test_memory_is_bounded_and_who_was_asked_for_longest_ago_goes(loaded: dict[str, Scorer]) -> None:
    scorer = keeping(loaded["dti"])
    scorer.score([asked("a", history(20))])
    size = states(scorer).bytes
    assert size > sum(x.nbytes for x in states(scorer).states["a"].kept.keys.values())  # type: ignore[union-attr]
    few = keeping(loaded["dti"], int(3.9 * size))
    for user in "abcade":
        few.score([asked(user, history(20))])
    assert "".join(states(few).states) in ("ade", "ad", "de")
    assert states(few).bytes == sum(state.bytes for state in states(few).states.values()) <= 3.9 * size
    none = keeping(loaded["dti"], 1)
    none.score([asked("a", history(20))])
    assert (len(states(none).states), states(none).bytes) == (0, 0)


def test_an_earlier_time_and_a_late_label_are_computed_anew(loaded: dict[str, Scorer]) -> None:
    """Feedback a minute late: what is known depends on when it is asked."""
    plain = loaded["dti"]
    plain = replace(plain, knowledge=replace(plain.knowledge, feedback_delay=60.0, context="known"))
    scorer = keeping(plain)
    events = [event | {"timestamp": 20 * i} for i, event in enumerate(history(30))]
    for now in (1000, 620):
        [found] = scorer.score([asked("a", events, timestamp=now)])
        np.testing.assert_allclose(found, plain.score([asked("a", events, timestamp=now)])[0], rtol=0, atol=1e-5)
    name = states(scorer).states["a"].name
    with pytest.raises(InputError, match="timestamp before the last"):
        scorer.score([asked("a", [{"item_id": "3", "label": 1, "timestamp": 3}], state=name)])
    with pytest.raises(InputError, match="timestamps, all or none"):
        scorer.score([asked("a", [{"item_id": "3", "label": 1}], state=name)])


def test_a_state_goes_on_in_requests_that_overlap(loaded: dict[str, Scorer]) -> None:
    """Requests of three rows, of which two begin together: what the state's rows know is as in the whole history, also
    after it began anew in the midst of a request."""
    plain = replace(loaded["dti"], knowledge=replace(loaded["dti"].knowledge, feedback_delay=5.0))
    times = [10 * (i // 6) + 4 * (i % 3) for i in range(36)]
    whole = [
        event | {"timestamp": time, "request_id": f"r{i // 3}"}
        for i, (event, time) in enumerate(zip(history(36), times, strict=True))
    ]
    scorer = keeping(plain)
    for end in (20, 21, 23, 24, 27, 30, 36):
        one = asked("a", whole[:end], timestamp=10 * (end // 6) + 8, request_id=f"r{end // 3}")
        found = scorer.score([one])
        np.testing.assert_allclose(scorer.score([one]), found, rtol=0, atol=1e-6)
        parsed, state = requests.parse(one, "it"), states(scorer).states["a"]
        assert state.length == end
        ours = known_rows(
            plain.knowledge, state.labels, state.times, parsed.time, state.ids, parsed.request_id, state.gone
        )
        for mine, all_of_it in zip(ours, plain._known(in_order(plain.knowledge, parsed)), strict=True):
            np.testing.assert_array_equal(mine, np.clip(all_of_it[state.start :] - state.start, 0, None))
    state = states(scorer).states["a"]
    with pytest.raises(InputError, match="an event of a request before the last"):
        scorer.score([asked("a", [whole[35] | {"request_id": state.ids[0]}], state=state.name)])
    with pytest.raises(InputError, match="request_ids, all or none"):
        scorer.score([asked("a", [{"item_id": "3", "label": 1, "timestamp": 99}], state=state.name)])


def test_a_null_label_becomes_known(loaded: dict[str, Scorer]) -> None:
    plain = loaded["dti_growing"]
    scorer, events = keeping(plain), history(20)
    late = [*events[:19], events[19] | {"label": None}]
    for one in (late, late, events):
        [found] = scorer.score([asked("a", one)])
        np.testing.assert_allclose(found, plain.score([asked("a", one)])[0], rtol=0, atol=1e-6)


def test_what_gains_nothing_is_refused(loaded: dict[str, Scorer]) -> None:
    dti = loaded["dti"]
    for paradigm, says in ((SLIDING_WINDOW, "trained in single prompts"), (DTI_ISOLATED, "gain nothing")):
        with pytest.raises(InputError, match=says):
            UserStates(cast(Any, SimpleNamespace(paradigm=paradigm)), "a model", dti.knowledge, K, 256, 1)
    with pytest.raises(InputError, match=r"forgetting is linear"):
        UserStates(small_model("dti", 3, forgetting="linear"), "a model", dti.knowledge, K, 256, 1)
    with pytest.raises(InputError, match=r"\{gap\}"):
        replace(dti, names=("gap",)).with_users("a model", K, 1)
    [one, other] = [keeping(dti).score([asked]) for asked in (questions(1)[0], questions(1)[0] | {"user_id": None})]
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_over_http_an_answer_names_the_state_that_the_next_request_goes_on_from(
    trained: Paths, loaded: dict[str, Scorer]
) -> None:
    events = history(21)
    with serving(lambda: trained.model("dti"), user_states_mib=8, user_targets=K) as found:
        first = found.ask(asked("a", events[:20])).json()
        second = found.ask(asked("a", events[20:], state=first["state"])).json()
        gone = found.ask(asked("b", [], state=first["state"]))
        assert "state" not in found.ask(asked("a", events) | {"user_id": None}).json()
    scorer = keeping(loaded["dti"])
    for end, answer in ((20, first), (21, second)):
        [expected] = scorer.score([asked("a", events[:end])])
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=0, atol=1e-6)
    assert gone.status_code == 409
    assert "send the whole history" in gone.json()["error"]
