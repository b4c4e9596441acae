"""Reports of what went to a store, or came from one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Moved:
    """A published folder: all its files, and those that were not there already."""

    files: int
    bytes: int
    moved: int
    moved_bytes: int


@dataclass(frozen=True)
class TransferReport:
    """Published folders by their paths in the home."""

    store: str
    folders: dict[str, Moved]

    def listing(self) -> str:
        lines = []
        for name, folder in self.folders.items():
            new = f"{folder.moved} new, {folder.moved_bytes / 1e6:.1f} MB" if folder.moved else "all there already"
            lines.append(f"{name:<32} {folder.files:>5} files {folder.bytes / 1e6:>10.1f} MB  {new}")
        return "\n".join(lines)
