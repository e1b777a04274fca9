"""Shards: numbered files of items, each complete and unharmed or not there at all.

What an item is depends on its number alone, a shard always holds the same numbers, and its file
appears in one go. So any number of processes can share the work, be killed, and be started again:
what is there stays, what is missing is made, and nothing is made twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from exitkit.errors import CheckpointError

IDENTITY = "identity.json"

Facts = dict[str, Any]
Make = Callable[[range], tuple[Mapping[str, Tensor], Facts]]
"""Makes the tensors of some items, rows first, and says what is worth knowing about them."""


class ShardError(CheckpointError):
    """A shard is damaged, or is not what its name says."""


@dataclass(frozen=True)
class Shards:
    """A folder of shards.

    Attributes:
        folder: The folder.
        count: Items in all.
        size: Items of one shard; the last one may hold fewer.
    """

    folder: Path
    count: int
    size: int

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def items(self, shard: int) -> range:
        """The numbers of a shard's items."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{shard:06d}.safetensors"

    def write(self, shard: int, tensors: Mapping[str, Tensor], facts: Facts) -> None:
        """Puts a shard in place, in one go.

        Arguments:
            shard: Its number.
            tensors: Its tensors.
            facts: What else is known of it, as JSON.
        """
        items = self.items(shard)
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        text = json.dumps({**facts, "items": [items.start, items.stop]}, sort_keys=True)
        metadata = {"facts": text, "sha256": _digest(plain, text)}
        replace(self.path(shard), save(plain, metadata))

    def read(self, shard: int) -> tuple[dict[str, Tensor], Facts]:
        """Reads a shard and checks every byte of it.

        Arguments:
            shard: Its number.

        Returns:
            Its tensors and facts.

        Raises:
            ShardError: If it is missing, damaged, or holds other items.
        """
        path, items = self.path(shard), self.items(shard)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ShardError(f"{path}: cannot be read ({error}).") from error
        text = metadata.get("facts", "")
        if metadata.get("sha256") != _digest(tensors, text):
            raise ShardError(f"{path}: damaged; its contents do not fit its checksum.")
        facts: Facts = json.loads(text)
        if facts["items"] != [items.start, items.stop]:
            raise ShardError(
                f"{path}: holds items {facts['items'][0]} to {facts['items'][1] - 1}, expected "
                f"{items.start} to {items.stop - 1}."
            )
        return tensors, facts

    def survey(self) -> tuple[list[int], list[ShardError]]:
        """Looks at all shards.

        Returns:
            The numbers that have to be made, and what is wrong with the damaged ones among them.
        """
        missing, damaged = [], []
        for shard in range(len(self)):
            if not self.path(shard).exists():
                missing.append(shard)
                continue
            try:
                self.read(shard)
            except ShardError as error:
                missing.append(shard)
                damaged.append(error)
        return missing, damaged

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Facts]]:
        """All shards in order.

        Raises:
            ShardError: If one is missing or damaged.
        """
        return (self.read(shard) for shard in range(len(self)))

    def fill(self, identity: Mapping[str, Any], accelerator: Any, make: Make) -> list[int]:
        """Makes what is missing, shared among the processes.

        Arguments:
            identity: What must be the same for the shards to belong together.
            accelerator: An `accelerate.Accelerator`.
            make: Makes the items of a shard.

        Returns:
            The shards that this process made.

        Raises:
            CheckpointError: If the folder holds shards of something else.
        """
        from accelerate.utils import broadcast_object_list

        plan: list[Any] = [None]
        if accelerator.is_main_process:
            claim(self.folder, {**identity, "size": self.size})
            for stray in self.folder.glob(".partial-*"):
                stray.unlink()
            missing, damaged = self.survey()
            for error in damaged:
                print(f"{error} It is made again.", flush=True)
            print(f"{self.folder}: {len(self) - len(missing)} of {len(self)} shards are there")
            plan = [missing]
        # One process looks, before anybody writes: all see the same list and split it alike.
        broadcast_object_list(plan)
        mine: list[int] = plan[0][accelerator.process_index :: accelerator.num_processes]
        for shard in mine:
            with torch.no_grad():
                self.write(shard, *make(self.items(shard)))
        accelerator.wait_for_everyone()
        return mine


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Says what a folder is for; or checks it, if that was said before.

    Arguments:
        folder: The folder; made if it is not there.
        identity: What it is for, as JSON.

    Raises:
        CheckpointError: If it is for something else.
    """
    mine = json.loads(json.dumps(dict(identity)))
    path = folder / IDENTITY
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(mine, indent=2).encode())
        return
    theirs = json.loads(path.read_text())
    odd = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
    if odd:
        listed = "; ".join(f"{n}: {mine.get(n)!r}, was {theirs.get(n)!r}" for n in odd)
        raise CheckpointError(
            f"{folder} was begun with other settings ({listed}). Use them again, or another folder."
        )


def replace(path: Path, content: bytes) -> None:
    """Writes a file in one go: a reader sees the old one or all of the new one."""
    partial = path.with_name(f".partial-{path.name}-{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
