"""`metrics.jsonl` of a run: one JSON object a line, and a copy of the text that checkpoints keep.

Whatever becomes of the file while the run is stopped or goes on, removed, emptied or spoilt, it is written anew from
the text: what a run has logged is as safe as its weights.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..storage import whole
from ..storage.typed import defined


class Metrics:
    """The file, open for appending; `text` is what it holds."""

    def __init__(self, path: Path, kept: str | int) -> None:
        """`kept`: the text of the newest state, or its length alone, as version 0.2 kept it."""
        self._path, self._parts = path, [""]
        with whole.storing(path):
            self._file = open(path, "a+", errors="replace")  # noqa: SIM115  open as long as the run is
            self.restore(kept)

    @property
    def text(self) -> str:
        """All lines."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def restore(self, kept: str | int) -> None:
        """Write the file as it was at a saved state."""
        self._file.seek(0)
        text = self._file.read(kept) if isinstance(kept, int) else kept
        self._file.truncate(0)
        self._file.write(text)
        self._file.flush()
        self._parts = [text]

    def forget(self, phase: str) -> None:
        """Write the file as it was before the first line of a phase."""
        lines, own = self.text.splitlines(keepends=True), f'{{"phase": {json.dumps(phase)},'
        first = next((i for i, line in enumerate(lines) if line.startswith(own)), len(lines))
        self.restore("".join(lines[:first]))

    def remember(self, kept: str | int) -> None:
        """Write the file as it was at the end of a phase that is done, where a phase before it had to be forgotten."""
        if isinstance(kept, str) and len(kept) > len(self.text):
            self.restore(kept)

    def append(self, line: dict[str, Any]) -> None:
        """One more line; what is NaN becomes null."""
        text = json.dumps(defined(line)) + "\n"
        with whole.storing(self._path):
            self._file.write(text)
        self._parts.append(text)

    def flush(self) -> None:
        """See that every line is on the disk."""
        with whole.storing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; it is written anew where it is not the text any more."""
        with whole.storing(self._path):
            self._file.close()
        text = self.text
        if not self._path.exists() or self._path.stat().st_size != len(text.encode()):
            whole.write(self._path, text)
