"""diffusers' own model tests on wrapped networks: `python -m benchmarks.mixins --source CHECKOUT --write`.

The tests are not in diffusers' wheel and are not copied here: CHECKOUT is a clone of its repository, whose
own library is tested too. Every test file runs twice, bare and with all networks wrapped
(benchmarks/mixins_plugin.py); what passes bare must pass wrapped. Tests that need an accelerator or the
hub are skipped, or fail, both times. It needs what diffusers' tests need (`parameterized`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).parent / "results" / "mixins.md"
FILES = {
    "UNet2DModel": "unets/test_models_unet_2d.py",
    "UNet2DConditionModel": "unets/test_models_unet_2d_condition.py",
    "DiTTransformer2DModel": "transformers/test_models_dit_transformer2d.py",
    "PixArtTransformer2DModel": "transformers/test_models_pixart_transformer2d.py",
    "SD3Transformer2DModel": "transformers/test_models_transformer_sd3.py",
    "FluxTransformer2DModel": "transformers/test_models_transformer_flux.py",
}

Outcomes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Compared:
    """The tests of one network, bare and wrapped.

    Attributes:
        name: Class of the network.
        bare: Outcomes by test.
        wrapped: Those with exits.
    """

    name: str
    bare: Outcomes
    wrapped: Outcomes

    def passed(self, outcomes: Outcomes) -> set[str]:
        """Tests that passed."""
        return {test for test, outcome in outcomes.items() if outcome["result"] == "passed"}

    @property
    def lost(self) -> list[str]:
        """Tests that passed bare alone."""
        return sorted(self.passed(self.bare) - self.passed(self.wrapped))

    @property
    def won(self) -> list[str]:
        """Tests that passed wrapped alone."""
        return sorted(self.passed(self.wrapped) - self.passed(self.bare))

    def count(self, field: str) -> int:
        """Tests that passed wrapped and in which networks were wrapped, or ran, or left early."""
        return sum(bool(self.wrapped[test][field]) for test in self.passed(self.wrapped))


def outcomes(source: Path, file: str, wrap: bool, options: list[str]) -> Outcomes:
    """Runs one file of tests.

    Arguments:
        source: Clone of diffusers.
        file: The file, below tests/models.
        wrap: Whether networks are given exits.
        options: Further ones of pytest.

    Returns:
        Outcomes by test.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "outcomes.json"
        paths = [source / "src", ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "EXITKIT_OUTCOMES": str(told),
            "EXITKIT_WRAP": "1" if wrap else "0",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.mixins_plugin"]
        command += ["-p", "no:cacheprovider", "-W", "ignore", f"tests/models/{file}", *options]
        subprocess.run(command, cwd=source, env=env, check=False)
        found = dict(json.loads(told.read_text())) if told.exists() else {}
        if not found:
            raise SystemExit(f"{file}: pytest ended before a test had run; see above.")
        return found


def version(source: Path) -> str:
    """The version of diffusers in a clone, and its commit."""
    for line in (source / "src/diffusers/__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    return "unknown"


def page(compared: list[Compared], of: str) -> str:
    """The table, and what differs.

    Arguments:
        compared: The networks.
        of: Version and commit of diffusers.
    """
    lines = [
        "# diffusers' own model tests on wrapped networks",
        "",
        f"`python -m benchmarks.mixins --source CHECKOUT --write`, diffusers {of}, on a CPU, without the",
        "hub. Preset `relative`, a threshold on the uncertainty that looks at every exit and never fires;",
        "the network stays the object that the test made. Networks of one block (DiT, PixArt, Flux) have",
        "two or three here, bare too: with one block there is nothing to leave before.",
        "",
        "| network | tests | passed bare | passed wrapped | of these with exits that ran | left early |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in compared:
        numbers = (len(one.bare), len(one.passed(one.bare)), len(one.passed(one.wrapped)))
        cells = map(str, (one.name, *numbers, one.count("ran"), one.count("early")))
        lines.append(f"| {' | '.join(cells)} |")
    missing = [name for name in FILES if all(one.name != name for one in compared)]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    lines += ["", "## Passed bare alone", ""]
    lost = [(one, test) for one in compared for test in one.lost]
    lines += [f"- `{_short(t)}`: {one.wrapped[t]['message']}" for one, t in lost] or ["None."]
    lines += ["", "## Passed wrapped alone", ""]
    lines += [f"- `{_short(t)}`" for one in compared for t in one.won] or ["None."]
    lines += ["", "## Passed with a network that stayed bare", ""]
    stayed = [(o.wrapped[t], t) for o in compared for t in sorted(o.passed(o.wrapped))]
    bare = [f"- `{_short(t)}`: {'; '.join(of['bare'])}" for of, t in stayed if of["bare"]]
    lines += bare or ["None."]
    return "\n".join(lines) + "\n"


def _short(test: str) -> str:
    return test.split("::", 1)[1]


def main() -> None:
    """Runs the tests of all networks, or of some."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="clone of huggingface/diffusers")
    parser.add_argument("--commit", default="", help="its commit, for the page")
    parser.add_argument("--out", type=Path, help="file of outcomes; what is in it is not run again")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("-k", dest="only", help="tests of this name alone, as for pytest")
    parser.add_argument("names", nargs="*", choices=[[], *FILES], help="networks; all if none")
    given = parser.parse_args()
    options = ["-k", given.only] if given.only else []
    kept: dict[str, list[Outcomes]] = {}
    if given.out and given.out.exists():
        kept = json.loads(given.out.read_text())
    for name in given.names or FILES:
        if name in kept:
            continue
        kept[name] = [outcomes(given.source, FILES[name], w, options) for w in (False, True)]
        if given.out:
            given.out.write_text(json.dumps(kept))
    compared = [Compared(name, *kept[name]) for name in FILES if name in kept]
    text = page(compared, " ".join(filter(None, (version(given.source), given.commit))))
    print(text)
    if given.write:
        PAGE.write_text(text)
    raise SystemExit(any(one.lost for one in compared))


if __name__ == "__main__":
    main()
