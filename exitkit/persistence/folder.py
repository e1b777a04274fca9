"""A folder that is written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from exitkit.errors import CheckpointError, expect

_WHY = {
    errno.ENOSPC: "the disk is full. Free some space, or pass a folder on another disk",
    errno.EDQUOT: "the quota is used up. Free some space, or pass a folder on another disk",
    errno.EFBIG: "a file would be larger than is allowed here. Pass a folder on another disk",
    errno.EACCES: "it, or the folder around it, may not be written to. Pass a folder of your own",
    errno.EPERM: "it, or the folder around it, may not be written to. Pass a folder of your own",
    errno.EROFS: "the disk is read-only. Pass a folder on another disk",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Pass another path",
    errno.EEXIST: "a part of the path is a file, not a folder. Pass another path",
    errno.EBUSY: "it is in use, for example as a mount point. Pass a folder inside it",
    errno.EXDEV: "it is a mount point. Pass a folder inside it",
}


@contextmanager
def replaced(path: str | Path, ours: Collection[str]) -> Iterator[Path]:
    """Writes a folder beside the one that it takes the place of, and exchanges them at the end.

    Whatever happens within, also a kill, leaves the old folder or the new one. What the old folder holds
    besides is taken along.

    Arguments:
        path: The folder; made if it is not there.
        ours: Names in it that the new one is written instead of.

    Yields:
        The folder to write to.

    Raises:
        CheckpointError: If it cannot be written; the old one is as it was then.
    """
    remedy = "For example model.save_pretrained('exits')."
    expect("save_pretrained", path, (str, os.PathLike), "the path of a folder", remedy)
    folder = Path(os.path.abspath(path))
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(
            f"{path} is a file, and exits are saved as a folder. Pass the path of a folder, or of one "
            "that is not there yet."
        )
    if folder.is_dir() and Path.cwd().is_relative_to(folder.resolve()):
        raise CheckpointError(
            f"{path} holds the working directory, which cannot be exchanged as a whole. Pass a folder "
            "inside it, such as model.save_pretrained('exits')."
        )
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        yield beside
        if folder.is_dir():
            _take_along(folder, beside, ours)
            exchange(beside, folder)
        else:
            os.rename(beside, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written: {reason(error)}. What was there is as it was."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def reason(error: OSError | SafetensorError) -> str:
    """Why a file could not be written, and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    for code in _WHY:  # safetensors tells the number in words alone
        if number == code or (number is None and f"(os error {code})" in str(error)):
            return f"{_WHY[code]} ({error})"
    return str(error)


def _take_along(old: Path, new: Path, ours: Collection[str]) -> None:
    """Files of the old folder that are not ours, as further names of the same files."""
    shutil.copystat(old, new)
    for entry in old.iterdir():
        if entry.name in ours:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(str(entry), str(new / entry.name))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # no such links on this disk
        shutil.copy2(source, target, follow_symlinks=False)


def exchange(one: Path, other: Path) -> None:
    """Puts a folder in the place of another one beside it: at once, or by two renames where that cannot be.

    Arguments:
        one: The new folder; afterwards the old one is there, or nothing.
        other: The old one.
    """
    if _exchanged_at_once(one, other):
        return
    aside = one.with_name(f"{one.name}.old")
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(aside, other)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchanged_at_once(one: Path, other: Path) -> bool:
    """Linux' renameat2 with RENAME_EXCHANGE; False where there is none."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, at_once = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), at_once) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))
