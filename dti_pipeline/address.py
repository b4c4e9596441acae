"""Addresses in an S3-compatible store: ``s3://bucket/key``, the key as it stands, without escapes, as DVC reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dti_pipeline.errors import InputError

SCHEME = "s3://"
#: Bytes of a file's name, at most.
LONGEST_NAME = 255


@dataclass(frozen=True)
class Address:
    """An object, or all objects below a key that ends in a slash or is empty."""

    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> Address:
        return Address(self.bucket, f"{self.below.key}{name}")

    @property
    def name(self) -> str:
        """Of the object, in its folder."""
        return self.key.rpartition("/")[2]

    @property
    def below(self) -> Address:
        """What lies below this one as below a folder."""
        return Address(self.bucket, self.key if self.key.endswith("/") or not self.key else f"{self.key}/")

    @property
    def beside(self) -> Address:
        """What lies in the same folder, and in those below it."""
        return Address(self.bucket, self.key[: self.key.rfind("/") + 1])


def is_address(text: str) -> bool:
    """Whether a text is meant as an address, of whatever kind, and not as a path."""
    return "://" in text


def parse(text: str, named: str) -> Address:
    """The address that a text gives. Raises InputError, which opens with ``named``, for any other text."""
    found = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]*)(?:/(.*))?", text)
    if found is None or not are_names(found[2].removesuffix("/").split("/") if found[2] else []):
        keys = "; keys are read from the environment" if "@" in text else ""
        raise InputError(f"{named} must read s3://bucket/key, not {text}{keys}")
    return Address(found[1], found[2] or "")


def are_names(parts: Sequence[str]) -> bool:
    """Whether a file can have this path, below a folder that it does not leave."""
    return all(
        part not in ("", ".", "..") and "\0" not in part and len(part.encode()) <= LONGEST_NAME for part in parts
    )
