"""The demo's log: titles about topics, people whose tastes change, and the true probability of every like.

A person likes or dislikes each topic strongly; now and then one topic flips, so that recent history counts for more
than old. P(like) = sigmoid(person + taste of the title's words + quality of the title). Scoring with the probability
that made a row gives the best AUC that any model can reach.

Rows can be shown in requests and requests come in sittings (``synth.rows_per_request``, ``requests_per_sitting``). With
``synth.mood`` each sitting has a mood, good or bad with equal chance, which moves all its labels. Only the sitting's
other labels tell it, so what a model can reach then depends on how soon labels are known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from dti_pipeline import artifacts
from dti_pipeline.config import Config, SplitConfig, SynthConfig
from dti_pipeline.events.report import SynthReport
from dti_pipeline.paths import Paths

TOPICS = (
    ("rocket", "galaxy", "comet", "orbit", "astronaut"),
    ("kitchen", "recipe", "bakery", "dinner", "spice"),
    ("detective", "murder", "alibi", "clue", "suspect"),
    ("wedding", "kiss", "sweetheart", "romance", "bride"),
    ("dragon", "wizard", "castle", "sword", "spell"),
)
NEUTRAL = (
    "first", "last", "little", "great", "silent", "golden", "broken", "hidden", "long", "new", "story", "year", "night",
    "morning", "winter", "summer", "city", "river", "house", "road", "letters", "secret", "return", "journey",
)  # fmt: skip
TASTE = 3.0  # logit that a topic adds or takes
FLIP = 1 / 200  # chance, at each rating, that one topic of the person's taste turns round
SECOND_TOPIC = 0.15  # share of titles with a word of another topic
QUALITY = 0.7  # standard deviation over titles, logits
PERSON = 0.2  # standard deviation over persons, logits
LEANING = 0.1  # mean logit
TAIL = 0.8  # exponent of the popularity law
START, DAYS = 1_577_836_800, 730  # 2020-01-01 UTC, and the length of the log
PAUSE = 5, 120  # seconds from a request to the next of its sitting: at least, and less than


class _Rows(NamedTuple):
    """The good rows, ordered by time; arrays of one length."""

    user: np.ndarray  # from 1
    item: np.ndarray  # from 1
    timestamp: np.ndarray
    probability: np.ndarray  # of a like, in the mood that the sitting had
    sitting: np.ndarray  # from 0, over all users
    in_bad_mood: np.ndarray  # probability of a like, had the sitting's mood been bad
    in_good_mood: np.ndarray
    rating: np.ndarray


def synth(config: Config, paths: Paths) -> SynthReport:
    """Write ``data/raw/synthetic``: the same for one seed on every run.

    ``ratings.csv`` (user_id, item_id, rating 1 to 5, timestamp), in time order, with bad rows of every kind and exact
    duplicates among the good ones; ``items.csv`` (item_id, title); ``truth.csv`` (user_id, item_id, timestamp,
    probability that rating > 3), one line for each good row; with ``synth.mood`` also sitting, in_bad_mood and
    in_good_mood (the probability in each, of which one was drawn from). The report counts what was planted and gives
    ``best_possible_auc`` on the test targets of the default split, to whom moods are known: an upper bound whatever the
    delay. Cost: about a second for 100,000 ratings.
    """
    rng = np.random.default_rng(config.synth.seed)
    titles, topics = _titles(rng, config.synth.items)
    rows = _ratings(rng, config.synth, topics)
    with artifacts.publish(paths.synthetic, "synth", config.sections("synth")) as draft:
        planted, duplicates = _write_log(rng, draft.path / "ratings.csv", rows, config.synth.defects)
        _write(draft.path / "items.csv", "item_id,title", [f"{i},{title}" for i, title in enumerate(titles, 1)])
        header, line = "user_id,item_id,timestamp,probability", "{},{},{},{:.6f}"
        if config.synth.mood:
            header, line = f"{header},sitting,in_bad_mood,in_good_mood", f"{line},{{}},{{:.12g}},{{:.12g}}"
        _write(draft.path / "truth.csv", header, [line.format(*row) for row in zip(*rows, strict=True)])
        test = _test_targets(rows, SplitConfig())
        liked, chance = rows.rating[test] > 3, rows.probability[test]
        report = draft.report = SynthReport(
            rows=len(rows.user) + planted.total() + duplicates,
            kept=len(rows.user),
            quarantined=planted.total(),
            duplicates=duplicates,
            reasons=dict(sorted(planted.items())),
            users=len(np.unique(rows.user)),
            items=len(np.unique(rows.item)),
            label_rate=round(float((rows.rating > 3).mean()), 6),
            test_targets=int(test.sum()),
            best_possible_auc=round(float(roc_auc_score(liked, chance)), 6) if len(np.unique(liked)) == 2 else None,
        )
    return report


def _titles(rng: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
    """Distinct titles, and how much of each topic is in them: (items, topics), rows sum to 1."""
    titles: dict[str, None] = {}
    shares = np.zeros((count, len(TOPICS)))
    while len(titles) < count:
        topic, other = rng.permutation(len(TOPICS))[:2]
        words = [(topic, TOPICS[topic][i]) for i in rng.permutation(len(TOPICS[topic]))[: rng.integers(2, 4)]]
        if rng.random() < SECOND_TOPIC:
            words[-1] = (other, TOPICS[other][rng.integers(len(TOPICS[other]))])
        share = np.bincount([t for t, _ in words], minlength=len(TOPICS)) / len(words)
        plain = [NEUTRAL[i] for i in rng.permutation(len(NEUTRAL))[:2]]
        title = " ".join([plain[0], *(word for _, word in words), plain[1]]).capitalize()
        if title not in titles:
            shares[len(titles)] = share
            titles[title] = None
    return list(titles), shares


def _ratings(rng: np.random.Generator, config: SynthConfig, topics: np.ndarray) -> _Rows:
    quality = QUALITY * rng.standard_normal(config.items)
    popularity = -TAIL * np.log(rng.permutation(config.items) + 1.0)
    columns: list[tuple[np.ndarray, ...]] = []
    apart = np.random.default_rng([config.seed, 1])  # of sittings, so that tastes are the same with them and without
    sittings = 0
    for user in range(1, config.users + 1):
        mean = config.interactions_per_user
        count = int(np.clip(round(mean * rng.gamma(4.0, 0.25)), 1, config.items))
        # The largest of popularity + Gumbel noise are a draw without replacement; the shuffle orders it.
        drawn = np.argpartition(-(popularity + rng.gumbel(size=config.items)), count - 1)[:count]
        item = rng.permutation(np.sort(drawn))
        begin = START + rng.integers(DAYS * 86400 // 3)
        sitting, good, seconds = _sittings(apart, config, count)
        time = np.sort(rng.integers(begin, START + DAYS * 86400, size=count))
        time = time[np.searchsorted(sitting, sitting)] + seconds  # of the sitting's first row, and from there
        turns, topic = rng.random(count) < FLIP, rng.integers(len(TOPICS), size=count)
        turned = turns[:, None] & (topic[:, None] == np.arange(len(TOPICS)))
        taste = np.where(rng.random(len(TOPICS)) < 0.5, -TASTE, TASTE) * np.cumprod(np.where(turned, -1, 1), axis=0)
        logit = LEANING + PERSON * rng.standard_normal() + (taste * topics[item]).sum(axis=1) + quality[item]
        in_bad_mood, in_good_mood = (1 / (1 + np.exp(-(logit + mood))) for mood in (-config.mood, config.mood))
        probability = np.where(good, in_good_mood, in_bad_mood)
        liked = rng.random(count) < probability
        rating = np.where(liked, rng.integers(4, 6, size=count), rng.integers(1, 4, size=count))
        truth = probability, sittings + sitting, in_bad_mood, in_good_mood
        columns.append((np.full(count, user), item + 1, time, *truth, rating))
        sittings += sitting[-1] + 1
    rows = _Rows(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    order = np.lexsort((rows.user, rows.timestamp))
    return _Rows(*(column[order] for column in rows))


def _sittings(rng: np.random.Generator, config: SynthConfig, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of a person's ``count`` rows: its sitting, from 0; whether that one's mood is good; the seconds of pauses
    inside sittings before it."""
    requests = -(-count // config.rows_per_request)
    sizes = rng.integers(1, 2 * config.requests_per_sitting, size=requests)  # of more sittings than are needed
    sitting = np.repeat(np.arange(requests), sizes)[:requests]
    pause = np.where(np.diff(sitting, prepend=-1) == 0, rng.integers(*PAUSE, size=requests), 0)
    good = rng.random(requests) < 0.5
    request = np.arange(count) // config.rows_per_request
    return sitting[request], good[sitting[request]], np.cumsum(pause)[request]


def _write_log(rng: np.random.Generator, path: Path, rows: _Rows, defects: int) -> tuple[Counter[str], int]:
    """The log with bad rows and as many duplicates spread over it. Returns how many of each reason, and duplicates."""
    lines = [f"{user},{item},{rating},{time}" for user, item, time, *_, rating in zip(*rows, strict=True)]
    after: dict[int, list[str]] = defaultdict(list)  # what is inserted behind a line
    chosen = np.sort(rng.choice(len(lines), size=min(defects, len(lines)), replace=False))
    for index in chosen:
        after[int(rng.integers(index, len(lines)))].append(lines[index])
    planted: Counter[str] = Counter()
    for index in range(defects):
        place = int(rng.integers(len(lines)))
        reason, template = _DEFECTS[index % len(_DEFECTS)]
        user, item, rating, time = lines[place].split(",")
        after[place].append(template.format(user=user, item=item, rating=rating, time=time))
        planted[reason] += 1
    everything = [text for index, line in enumerate(lines) for text in (line, *after.get(index, ()))]
    _write(path, "user_id,item_id,rating,timestamp", everything)
    return planted, len(chosen)


#: Reason in the quarantine, and the row that earns it. A lone byte 0xE9 (written through surrogateescape) is not UTF-8.
_DEFECTS = (
    ("wrong number of fields", "{user},{item},{rating}"),
    ("user id missing", ",{item},{rating},{time}"),
    ("item id missing", "{user},,{rating},{time}"),
    ("rating missing", "{user},{item},,{time}"),
    ("rating not a number", "{user},{item},good,{time}"),
    ("rating outside the scale", "{user},{item},9,{time}"),
    ("timestamp missing", "{user},{item},{rating},"),
    ("timestamp not a time", "{user},{item},{rating},yesterday"),
    ("timestamp before 1970", "{user},{item},{rating},-{time}"),
    ("blank line", ""),
    ("quotes do not match", '{user},"{item},{rating},{time}'),
    ("not UTF-8 text", "{user},caf\udce9,{rating},{time}"),
    ("wrong number of fields", "{user},{item},{rating},{time},{time}"),
)


def _write(path: Path, header: str, lines: list[str]) -> None:
    path.write_bytes("\n".join([header, *lines, ""]).encode("utf-8", "surrogateescape"))


def _test_targets(rows: _Rows, split: SplitConfig) -> np.ndarray:
    """Mask of the test targets under the global time split: bool (rows)."""
    order = np.lexsort((rows.timestamp, rows.user))
    user, time = rows.user[order], rows.timestamp[order]
    begins = np.append(True, (user[1:] != user[:-1]) | (time[1:] != time[:-1]))  # a request: one user's, of one time
    request = np.maximum.accumulate(np.where(begins, np.arange(len(user)), 0)) - np.searchsorted(user, user)
    eligible = np.empty(len(user), dtype=bool)
    eligible[order] = request >= split.min_history
    times = np.sort(rows.timestamp[eligible])
    if not len(times):
        return eligible
    return eligible & (rows.timestamp >= times[int(len(times) * (1 - split.test_share) + 1e-6)])
