"""The folder of a run: its complete checkpoints, and the settings they were made with.

A process may die while it writes. Trainer writes ``trainer_state.json`` after all else of a process, so a folder is
complete when that can be read and every process has left its random state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sa2va.train.config import CONFIG_FILE, TrainConfig, read_config
from sa2va.train.parsing import plain
from sa2va.untrusted import parse_json

#: Exactly what was trained, before LoRA is merged and dtypes are changed.
TRAINED_FILE = "trained.safetensors"

_STATE_FILE = "trainer_state.json"
_PREFIX = "checkpoint-"


def checkpoint_folder(output: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(output) / f"{_PREFIX}{step}"


def last_checkpoint(output: str | Path, processes: int) -> Path | None:
    """The complete checkpoint of the highest step, or None.

    Args:
        output: folder of the run. processes: that trained; each leaves its own random state.
    """
    complete = [path for path in _checkpoints(output) if is_complete(path, processes)]
    return max(complete, key=lambda path: int(path.name.removeprefix(_PREFIX)), default=None)


def other_processes(output: str | Path, processes: int) -> int | None:
    """How many processes a run's checkpoints were made by, where that is surely not this many."""
    for folder in _checkpoints(output):
        ranks = len(list(folder.glob("rng_state_*.pth")))
        made_by = 1 if (folder / "rng_state.pth").is_file() else ranks
        # Fewer states than processes may also be those of a checkpoint that was never finished. A single process names
        # its state differently.
        if made_by and (made_by > processes or made_by == 1 < processes) and is_complete(folder, made_by):
            return made_by
    return None


def changed_settings(config: TrainConfig, checkpoint: Path) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those a checkpoint was made with: name to (then, now)."""
    path = checkpoint / CONFIG_FILE
    then = {"auxiliary": [], **read_config(path)} if path.is_file() else {}
    now = plain(config)
    free = {"output", "resume", "log_every", "save_every", "keep", "report_to", "workers"}
    return {name: (then.get(name), now[name]) for name in now if name not in free and then.get(name) != now[name]}


def _checkpoints(output: str | Path) -> list[Path]:
    return [path for path in Path(output).glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]


def is_complete(folder: Path, processes: int) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        parse_json((folder / _STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return all((folder / name).is_file() for name in (TRAINED_FILE, *states))
