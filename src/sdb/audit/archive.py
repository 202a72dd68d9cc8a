"""Where an audit keeps what it has finished: in a folder, that several processes share, or in this process alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sdb.audit.defences.defence import Built, Defence, Defended, network_for
from sdb.config import TrainSettings
from sdb.data import Splits
from sdb.errors import CheckpointError
from sdb.models import Classifier
from sdb.models.checkpoint import load_classifier
from sdb.runs.folder import open_run
from sdb.runtime import JSON_LIMIT, choose_device, json_text, parse_json, read_bytes, write_atomic
from sdb.training.loop import train


class Archive(Protocol):
    """Results, teachers and defences by place, such as `seed-0/defences/decoy`."""

    def has(self, place: str) -> bool:
        """Whether a result is kept there."""
        ...

    def result(self, place: str) -> dict[str, Any]:
        """A kept result.

        Raises:
            CheckpointError: it is not what was kept.
        """
        ...

    def keep(self, place: str, result: dict[str, Any]) -> None:
        """Keep a result, JSON values."""
        ...

    def train(self, place: str, fresh: Classifier, data: Splits, settings: TrainSettings) -> None:
        """Train a fresh network, in place; goes on where it was stopped, and does nothing where it is done."""
        ...

    def trained(self, place: str, like: Classifier) -> Classifier:
        """What `train` made, of the architecture of `like`."""
        ...

    def build(
        self, place: str, defence: Defence, teacher: Classifier, data: Splits, settings: TrainSettings
    ) -> None:
        """Build a defence around a teacher; does nothing where it is done."""
        ...

    def defended(self, place: str, defence: Defence, teacher: Classifier) -> Defended:
        """What `build` made of this teacher."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """An archive that outlives the process.

    Attributes:
        folder: the audit's work folder.
    """

    folder: Path

    def has(self, place: str) -> bool:
        """Whether the file is there; it is written whole or not at all."""
        return self.file(place).exists()

    def file(self, place: str) -> Path:
        """Where a result is."""
        return self.folder / f"{place}.json"

    def result(self, place: str) -> dict[str, Any]:
        """Read a result.

        Raises:
            CheckpointError: the file is not what was written.
        """
        path = self.file(place)
        try:
            values = parse_json(read_bytes(path, JSON_LIMIT), finite=False)
            if not isinstance(values, dict) or "seconds" not in values:
                raise ValueError("not a finished task")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); delete it and continue with --resume") from None
        return values

    def keep(self, place: str, result: dict[str, Any]) -> None:
        """Write a result."""
        write_atomic(self.file(place), json_text(result, indent=1).encode() + b"\n")

    def train(self, place: str, fresh: Classifier, data: Splits, settings: TrainSettings) -> None:
        """Train in a run folder."""
        folder = self.folder / place
        if (folder / "result.json").exists():
            return
        resume = (folder / "params.resolved.json").exists()
        parameters, device = settings.model_dump(mode="json"), choose_device(settings.device)
        with open_run(folder, parameters, device, resume=resume) as run:
            train(fresh, data, settings, run=run, progress=False)
            run.write_result({})

    def trained(self, place: str, like: Classifier) -> Classifier:
        """Read the run folder."""
        return load_classifier(self.folder / place, network=network_for(like))

    def build(
        self, place: str, defence: Defence, teacher: Classifier, data: Splits, settings: TrainSettings
    ) -> None:
        """Build in a folder of its own."""
        defence.build(teacher, data, settings, self.folder / place)

    def defended(self, place: str, defence: Defence, teacher: Classifier) -> Defended:
        """Read that folder."""
        return defence.load(teacher, self.folder / place)


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """An archive that writes nothing and ends with the process."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    networks: dict[str, Classifier] = field(default_factory=dict)
    defences: dict[str, Built] = field(default_factory=dict)

    def has(self, place: str) -> bool:
        """Whether it is there."""
        return place in self.results

    def result(self, place: str) -> dict[str, Any]:
        """A kept result."""
        return self.results[place]

    def keep(self, place: str, result: dict[str, Any]) -> None:
        """Keep it, as a file would: plain JSON values."""
        self.results[place] = parse_json(json_text(result).encode(), finite=False)

    def train(self, place: str, fresh: Classifier, data: Splits, settings: TrainSettings) -> None:
        """Train and keep the network."""
        if place not in self.networks:
            train(fresh, data, settings, progress=False)
            self.networks[place] = fresh

    def trained(self, place: str, like: Classifier) -> Classifier:
        """The trained network."""
        del like
        return self.networks[place]

    def build(
        self, place: str, defence: Defence, teacher: Classifier, data: Splits, settings: TrainSettings
    ) -> None:
        """Build and keep what was trained."""
        if place not in self.defences:
            self.defences[place] = defence.built(teacher, data, settings)

    def defended(self, place: str, defence: Defence, teacher: Classifier) -> Defended:
        """What was trained, around the teacher."""
        built = self.defences[place]
        return defence.open(teacher, built.parts, built.record)
