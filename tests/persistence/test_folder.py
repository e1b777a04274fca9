"""A folder is written whole or not at all: files that fail, disks that are full, and a kill."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from exitkit.errors import CheckpointError
from exitkit.persistence import folder as module
from exitkit.persistence.folder import exchange, replaced

NAMES = ("a.json", "b.bin")


def write(path: Path, text: str) -> None:
    with replaced(path, NAMES) as beside:
        for name in NAMES:
            (beside / name).write_text(f"{name} {text}")


def held(path: Path) -> dict[str, str]:
    return {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()}


def state(text: str) -> dict[str, str]:
    return {name: f"{name} {text}" for name in NAMES}


def test_a_folder_is_made_and_replaced_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "exits"
    write(place, "one")
    assert held(place) == state("one")
    write(place, "two")
    assert held(place) == state("two")
    assert os.listdir(place.parent) == ["exits"]


def test_other_files_stay_and_old_ones_of_ours_go(tmp_path: Path) -> None:
    place = tmp_path / "exits"
    write(place, "one")
    (place / "notes.txt").write_text("mine")
    (place / "more").mkdir()
    (place / "more" / "deep.txt").write_text("too")
    (place / "link").symlink_to("notes.txt")
    place.chmod(0o750)
    with replaced(place, NAMES) as beside:
        (beside / "a.json").write_text("alone")
    others = {"notes.txt": "mine", "link": "mine", "more/deep.txt": "too"}
    assert held(place) == {"a.json": "alone", **others}
    assert (place / "link").is_symlink()
    assert place.stat().st_mode & 0o777 == 0o750


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[list[str]]:
    """The call of this number among all that change the disk fails as on a full one."""
    calls: list[str] = []

    def faulty(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "rename"), (os, "link"), (os, "mkdir"), (Path, "write_text")):
            patch.setattr(owner, name, faulty(name, getattr(owner, name)))
        patch.setattr(Path, "mkdir", faulty("mkdir", Path.mkdir))
        patch.setattr(module, "exchange", faulty("exchange", module.exchange))
        yield calls


@pytest.mark.parametrize("at_once", [True, False])
def test_a_failure_at_any_call_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    if not at_once:
        monkeypatch.setattr(module, "_exchanged_at_once", lambda *_: False)
    seen, before = set(), state("one") | {"notes.txt": "mine", "more/deep.txt": "too"}
    for at in range(1, 40):
        place = tmp_path / str(at) / "exits"
        write(place, "one")
        (place / "notes.txt").write_text("mine")
        (place / "more").mkdir()
        (place / "more" / "deep.txt").write_text("too")
        with failing(monkeypatch, at) as calls:
            try:
                write(place, "two")
            except CheckpointError as error:
                assert "disk is full" in str(error) and str(place) in str(error)
            else:
                # A link that cannot be made becomes a copy; a folder that is there need not be made.
                assert len(calls) < at or calls[at - 1] in ("link", "mkdir")
                assert held(place) == before | state("two")
        seen.update(calls)
        after = held(place)
        assert after in (before, before | state("two"))
        assert os.listdir(place.parent) == ["exits"]
        if len(calls) < at:
            assert after != before
            break
    else:
        pytest.fail("it never came to its end")
    assert {"write_text", "link", "exchange"} <= seen
    assert at_once or "rename" in seen


def test_a_file_that_grows_too_large_at_any_byte(tmp_path: Path) -> None:
    # The system itself refuses: a limit on the size of files stands for a disk without space.
    place = tmp_path / "exits"
    write(place, "one")
    long = "two" * 5000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (0, 1, 4096, 15_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                with pytest.raises(CheckpointError, match="larger than is allowed"):
                    write(place, long)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert held(place) == state("one")
            assert os.listdir(tmp_path) == ["exits"]
    finally:
        signal.signal(signal.SIGXFSZ, kept)
    write(place, long)
    assert held(place) == state(long)


KILLED = """
    import sys
    from pathlib import Path
    from exitkit.persistence.folder import replaced

    place, count = Path(sys.argv[1]), 1
    while True:
        with replaced(place, ("a.json", "b.bin")) as beside:
            for name in ("a.json", "b.bin"):
                (beside / name).write_text(f"{count} " * 2000)
        print(count, flush=True)
        count += 1
"""


def test_a_kill_leaves_one_whole_folder(tmp_path: Path) -> None:
    script, place = tmp_path / "killed.py", tmp_path / "exits"
    script.write_text(textwrap.dedent(KILLED))
    for wait in (0.0, 0.003, 0.011):
        command = [sys.executable, script, place]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline()  # it has saved once
            time.sleep(wait)
            process.kill()
        one, two = (set((place / name).read_text().split()) for name in NAMES)
        assert one == two and len(one) == 1


def test_paths_that_cannot_be_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(
        CheckpointError, match=r"file is a file.*saved as a folder.*Pass the path of"
    ):
        write(file, "one")
    with pytest.raises(CheckpointError, match=r"file/exits could not.*is a file, not a folder"):
        write(file / "exits", "one")
    assert file.read_text() == "mine"
    inside = tmp_path / "here" / "there"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    for path in (inside, inside.parent):
        with pytest.raises(CheckpointError, match=r"working directory.*Pass a folder inside"):
            write(path, "one")
    write(Path("exits"), "one")
    assert held(inside / "exits") == state("one")


def test_a_folder_that_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "closed" / "exits"
    write(place, "one")
    mkdir = Path.mkdir

    def refused(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.parent == place.parent:  # root may write anywhere, so permissions do not tell here
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(CheckpointError, match=r"exits could not be written.*may not be written to"):
        write(place, "two")
    assert held(place) == state("one")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="may not be written to"):
            write(tmp_path / "exits", "one")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("at_once", [True, False])
def test_two_folders_are_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    if not at_once:
        monkeypatch.setattr(module, "_exchanged_at_once", lambda *_: False)
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    exchange(tmp_path / "new", tmp_path / "old")
    assert held(tmp_path / "old") == {"file": "new"}
    assert os.listdir(tmp_path) == ["old"] or held(tmp_path / "new") == {"file": "old"}
