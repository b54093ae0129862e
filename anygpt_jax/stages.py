"""Stages that run once: an interrupted job goes on where it was, and changed settings rerun a stage."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anygpt_jax.evaluation import write_json

_FOLDER = "stages"


class Stages:
    """The stages of one working directory, each with a marker file `stages/<name>.json`.

    A marker is written when its stage begins, with the stage's settings, and again when it is complete. A
    stage whose marker is complete and has the same settings is skipped; one that was interrupted runs again
    on what is there; if its settings or an earlier stage's have changed, its outputs are deleted first.
    """

    def __init__(self, workdir: str | Path, total: int):
        """`total`: number of stages, for the headings."""
        self._workdir, self._total = Path(workdir), total
        (self._workdir / _FOLDER).mkdir(parents=True, exist_ok=True)
        self._markers: dict[str, dict[str, Any]] = {}

    def run(
        self,
        name: str,
        title: str,
        settings: Mapping[str, Any],
        action: Callable[[], Any],
        after: Sequence[str] = (),
        outputs: Sequence[str] = (),
    ) -> Any:
        """Runs `action` unless it is done, and returns its result (JSON values), now or from the marker.

        Args:
          name: of the marker; title: for the terminal.
          settings: JSON values that decide what the stage makes.
          after: earlier stages that it builds on; their settings count as its own.
          outputs: paths relative to the working directory that are deleted when settings have changed.
        """
        path = self._workdir / _FOLDER / f"{name}.json"
        before = {earlier: self._markers[earlier]["settings"] for earlier in after}
        wanted = json.loads(json.dumps({"own": settings, "after": before}, default=str))
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        heading = f"[{len(self._markers) + 1}/{self._total}] {title}"
        if found.get("settings") == wanted and found["complete"]:
            print(f"{heading}: done before, in {found['seconds']:.0f} s", flush=True)
            self._markers[name] = found
            return found["result"]
        if found and found["settings"] != wanted:
            for output in outputs:
                self._delete(output)
            found = {}
        print(heading, flush=True)
        marker = {"settings": wanted, "complete": False, "seconds": found.get("seconds", 0.0), "result": None}
        write_json(path, marker)
        start = time.perf_counter()
        try:
            marker["result"] = json.loads(json.dumps(action(), default=float))
            marker["complete"] = True
        finally:
            marker["seconds"] = round(marker["seconds"] + time.perf_counter() - start, 2)
            write_json(path, marker)
        self._markers[name] = marker
        return marker["result"]

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, interrupted attempts included (not those that were killed)."""
        return {name: marker["seconds"] for name, marker in self._markers.items()}

    def _delete(self, output: str) -> None:
        path = self._workdir / output
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
