"""Public rating logs, from their owners' servers into ``data/raw``: by URL, checked, resumed, unpacked safely."""

from __future__ import annotations

import difflib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dti_pipeline import artifacts, locks
from dti_pipeline.errors import InputError
from dti_pipeline.events.download import Progress, download
from dti_pipeline.events.report import FetchedFile, FetchReport
from dti_pipeline.events.unpack import unpack
from dti_pipeline.paths import Paths
from dti_pipeline.plain import from_plain, to_plain

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
GROUPLENS_TERMS = (
    "MovieLens, by GroupLens, University of Minnesota. Research use; no commercial use and no redistribution without"
    " their permission; cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4)"
    " 2015. The README among the files has the full terms."
)
AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
AMAZON_TERMS = (
    "Amazon Reviews 2023, by McAuley Lab, UC San Diego (https://amazon-reviews-2023.github.io). No licence published;"
    " it is offered for research; cite Y. Hou et al., Bridging Language and Items for Retrieval and Recommendation,"
    " arXiv 2403.03952, 2024."
)
AMAZON_CATEGORIES = (
    "All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Baby_Products",
    "Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry",
    "Digital_Music", "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food", "Handmade_Products",
    "Health_and_Household", "Health_and_Personal_Care", "Home_and_Kitchen", "Industrial_and_Scientific", "Kindle_Store",
    "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden",
    "Pet_Supplies", "Software", "Sports_and_Outdoors", "Subscription_Boxes", "Tools_and_Home_Improvement",
    "Toys_and_Games", "Unknown", "Video_Games",
)  # fmt: skip


@dataclass(frozen=True)
class Collection:
    """A public log: its files under one address, and its owner's terms."""

    base_url: str
    files: tuple[str, ...]  # an archive, or the files themselves
    terms: str
    source: str  # events.source that reads it
    md5: str | None = None  # published; None: the owner replaces the files from time to time, or publishes none


@dataclass(frozen=True)
class _Record:
    """``<name>.fetched.json``: the terms that were shown, and the files that came."""

    terms: str = ""
    files: dict[str, FetchedFile] = field(default_factory=dict)


#: Logs that ``dti fetch`` knows by name; ``amazon`` takes a category besides.
COLLECTIONS = {
    "movielens-1m": Collection(
        GROUPLENS, ("ml-1m.zip",), GROUPLENS_TERMS, "movielens", "c4d9eecfca2ab87c1945afe126590906"
    ),
    "movielens-latest-small": Collection(GROUPLENS, ("ml-latest-small.zip",), GROUPLENS_TERMS, "movielens"),
    "movielens-100k": Collection(
        GROUPLENS, ("ml-100k.zip",), GROUPLENS_TERMS, "movielens", "0e33842e24a9c977be4e0107933c0723"
    ),
}
NAMES = (*COLLECTIONS, "amazon")


def fetch(
    name: str,
    paths: Paths,
    category: str | None = None,
    *,
    base_url: str | None = None,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> FetchReport:
    """Bring a public log to ``data/raw/<name>`` (``data/raw/amazon-<category>``); one that is there stays.

    ``base_url`` is a mirror to take the files from. ``say`` hears the owner's terms before the first download and of
    files that changed since ``<name>.fetched.json`` recorded them; ``progress`` hears bytes. Raises InputError for an
    unknown name or category, a server that fails, a wrong checksum and an unsafe or corrupt archive.
    """
    collection, name = _collection(name, category)
    with locks.alone(paths.raw / name):
        return _fetch(collection, name, paths, base_url or collection.base_url, say, progress)


def _fetch(
    collection: Collection,
    name: str,
    paths: Paths,
    base_url: str,
    say: Callable[[str], None],
    progress: Progress | None,
) -> FetchReport:
    folder, record_path = paths.raw / name, paths.raw / f"{name}.fetched.json"
    record = from_plain(_Record, json.loads(record_path.read_text())) if record_path.is_file() else _Record()
    report = FetchReport(name, str(folder), collection.source, collection.terms, fetched=False, files=record.files)
    if folder.is_dir():
        return report
    if record.terms != collection.terms:
        say(collection.terms)
        artifacts.write_json(record_path, to_plain(replace(record, terms=collection.terms)))
    downloads = paths.raw / ".downloads" / name
    seen = {}
    for file in collection.files:
        url = f"{base_url.rstrip('/')}/{file}"
        target = downloads / Path(file).name
        # One that is whole was left by a run that failed at the next one.
        md5 = artifacts.file_digest(target) if target.is_file() else download(url, target, collection.md5, progress)
        seen[target.name] = FetchedFile(url, md5, target.stat().st_size)
        before = record.files.get(target.name)
        if before is not None and before.md5 != md5:
            say(f"{target.name} has changed since it was last fetched: MD5 was {before.md5}, is {md5}")
    _place(downloads, folder)
    artifacts.write_json(record_path, to_plain(_Record(collection.terms, seen)))
    return replace(report, fetched=True, files=seen)


def _place(downloads: Path, folder: Path) -> None:
    """Unpack beside the target, then rename: the folder is whole or not there. A bad download goes, to come anew."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    aside.chmod(0o755)
    try:
        for path in sorted(downloads.iterdir()):
            if path.suffix == ".zip":
                unpack(path, aside)
                continue
            with path.open("rb") as handle:
                if handle.read(2) != b"\x1f\x8b":
                    raise InputError(f"{path.name} is not a gzip file: the server sent something else")
            path.rename(aside / path.name)
        aside.rename(folder)
    except BaseException as error:
        shutil.rmtree(aside)
        if isinstance(error, InputError):
            shutil.rmtree(downloads)
        raise
    shutil.rmtree(downloads)


def _collection(name: str, category: str | None) -> tuple[Collection, str]:
    if name not in NAMES:
        raise InputError(f"unknown log {name!r}: {_choices(name, NAMES)}")
    if name != "amazon":
        if category is not None:
            raise InputError(f"{name} has no categories: only amazon has")
        return COLLECTIONS[name], name
    if category not in AMAZON_CATEGORIES:
        said = "amazon needs a category" if category is None else f"amazon has no category {category!r}"
        raise InputError(f"{said}: {_choices(category or '', AMAZON_CATEGORIES)}")
    files = (f"review_categories/{category}.jsonl.gz", f"meta_categories/meta_{category}.jsonl.gz")
    return Collection(AMAZON, files, AMAZON_TERMS, "amazon"), f"amazon-{category}"


def _choices(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
