"""A bucket of an S3-compatible store: what it has, and its objects' bytes. Keys, region and address of the store are
read by boto3, as every S3 client reads them: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL and others."""

from __future__ import annotations

import importlib.util
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dti_pipeline.address import Address
from dti_pipeline.errors import InputError

#: Hears of bytes that have been moved since it was last told; what it raises ends the move.
Heard = Callable[[int], None]
PIECE = 1 << 20  # bytes read at a time
#: Larger files go in parts of at least this many bytes, each with a retry of its own.
PART = 16 << 20
#: Seconds until a store that does not answer is given up, and without a byte.
CONNECT, SILENT = 10, 60
ABSENT = ("404", "NoSuchKey", "NotFound")
#: What a store says, in words. Answers without a body (to HEAD) have the status alone.
SAID = {
    "NoSuchBucket": "there is no such bucket",
    **dict.fromkeys(ABSENT, "it is not there"),
    **dict.fromkeys(("403", "AccessDenied", "AllAccessDisabled"), "the store refuses it with these keys"),
    "InvalidAccessKeyId": "the store does not know the access key",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    **dict.fromkeys(("ExpiredToken", "InvalidToken", "RequestExpired"), "the session of the keys has ended"),
    **dict.fromkeys(("412", "PreconditionFailed"), "it changed while it was read: run the command again"),
}
NO_KEYS = "there are no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


@dataclass(frozen=True)
class Object:
    """An object as a listing has it; another content has another ``etag``."""

    address: Address
    size: int
    etag: str


class Broken(InputError):
    """The connection broke off, or the store had no time: the same request may work."""


@dataclass(frozen=True)
class Bucket:
    """A bucket. Raises InputError, one sentence without keys, whenever the store refuses or cannot be reached."""

    name: str

    def __post_init__(self) -> None:
        if importlib.util.find_spec("boto3") is None:
            raise InputError(f"s3://{self.name} needs boto3: pip install dti-pipeline[s3]")

    @property
    def client(self) -> Any:
        with asked(Address(self.name), "read"):
            try:
                return _client(tuple(sorted(one for one in os.environ.items() if one[0].startswith("AWS_"))))
            except ValueError as error:  # of an address of the store that is none
                raise InputError(f"s3://{self.name} cannot be read: {error} (AWS_ENDPOINT_URL)") from None

    def below(self, address: Address, deep: bool = True) -> Iterator[Object]:
        """Objects whose key begins with this one's, in the order of keys; not ``deep``: none of folders below."""
        with asked(address, "listed"):
            only: dict[str, str] = {} if deep else {"Delimiter": "/"}
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=address.key, **only)
            for page in pages:
                for found in page.get("Contents", ()):
                    yield Object(Address(self.name, found["Key"]), found["Size"], found["ETag"])

    def find(self, address: Address) -> tuple[Object, str] | None:
        """An object and the digest that :meth:`write` gave it, "" where another program wrote it; None: there is
        none."""
        with asked(address, "read"):
            try:
                found = self.client.head_object(Bucket=self.name, Key=address.key)
            except self.client.exceptions.ClientError as error:
                if _code(error) in ABSENT:
                    return None
                raise
            return Object(address, found["ContentLength"], found["ETag"]), found["Metadata"].get("md5", "")

    def pieces(self, found: Object, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object from ``start`` on. Raises InputError where it has another content by now, and
        :class:`Broken` where the connection ends early."""
        if start == found.size:
            return
        with asked(found.address, "read"):
            answer = self.client.get_object(
                Bucket=self.name, Key=found.address.key, IfMatch=found.etag, Range=f"bytes={start}-"
            )
            with answer["Body"] as body:
                yield from iter(lambda: body.read(PIECE), b"")

    def write(self, file: Path, address: Address, md5: str, heard: Heard) -> None:
        """Write a file, whole or not at all, with its digest."""
        from boto3.s3.transfer import TransferConfig

        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        with asked(address, "written"):
            self.client.upload_file(
                str(file),
                self.name,
                address.key,
                ExtraArgs={"Metadata": {"md5": md5}, "ContentType": kind},
                Callback=heard,
                Config=TransferConfig(multipart_threshold=4 * PART, multipart_chunksize=PART, max_concurrency=4),
            )

    def write_bytes(self, content: bytes, address: Address, md5: str) -> None:
        with asked(address, "written"):
            self.client.put_object(Bucket=self.name, Key=address.key, Body=content, Metadata={"md5": md5})

    def delete(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            with asked(address, "deleted"):
                self.client.delete_object(Bucket=self.name, Key=address.key)


@cache
def _client(environment: tuple[tuple[str, str], ...]) -> Any:
    """A client for all threads, made once for the keys and addresses that the environment has: it takes a while."""
    import boto3
    from botocore.config import Config

    settings = Config(
        connect_timeout=CONNECT, read_timeout=SILENT, max_pool_connections=32, retries={"mode": "standard"}
    )
    return boto3.session.Session().client("s3", config=settings)


@contextmanager
def asked(address: Address, done: str) -> Iterator[None]:
    """Say in one sentence what a store answered that could not be read, or written."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError, NoCredentialsError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        # An upload in parts hides what the store said.
        cause = error.__context__ if isinstance(error, Boto3Error) else error
        said = f"{address} cannot be {done}: "
        if isinstance(cause, ClientError):
            words = cause.response["Error"].get("Message", "")
            raise InputError(said + SAID.get(_code(cause), f"{_code(cause)} {words}".rstrip())) from None
        if isinstance(cause, NoCredentialsError):
            raise InputError(said + NO_KEYS) from None
        if isinstance(cause, (HTTPClientError, IncompleteReadError)):
            raise Broken(f"{said}{cause}") from None
        raise InputError(f"{said}{cause}") from None


def _code(error: Any) -> str:
    return str(error.response["Error"].get("Code", ""))
