"""Commands that bring what the stages made to an S3-compatible store, and back."""

from __future__ import annotations

from typing import Annotated

import typer

from dti_pipeline.address import parse
from dti_pipeline.cli_options import Json, answer, say
from dti_pipeline.paths import Paths

Url = Annotated[str, typer.Argument(metavar="URL", help="s3://bucket, or s3://bucket/folder.")]
What = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WHAT]...", help="Such as models/dti, data/tokens or reports; default: all."),
]


def send(url: Url, what: What = None, as_json: Json = False) -> None:
    """Published data, models and reports to an S3-compatible store; what it has already does not go again.

    Examples: `dti upload s3://bucket/project`, `dti upload s3://bucket/project models/dti reports`
    """
    from dti_pipeline.stores.upload import upload

    report = upload(Paths.from_env(), parse(url, "URL"), what or (), say)
    answer(report, as_json, lambda report: report.listing())


def take(
    url: Url,
    what: What = None,
    replace: Annotated[bool, typer.Option("--replace", help="Also where the home has another one.")] = False,
    as_json: Json = False,
) -> None:
    """What `dti upload` brought to a store into this home, every file checked; it goes on where it stopped.

    Examples: `dti download s3://bucket/project`, `dti download s3://bucket/project models/dti --replace`
    """
    from dti_pipeline.stores.download import download

    report = download(Paths.from_env(), parse(url, "URL"), what or (), replace, say)
    answer(report, as_json, lambda report: report.listing())
