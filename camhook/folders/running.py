"""One rank's run over its photos: what is done stays, what is broken is listed, and Ctrl-C is no accident."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import click
from tqdm import tqdm

from camhook.cam import CAM
from camhook.distributed import Ranks
from camhook.errors import OutputError
from camhook.folders.explaining import Question, explain_photos
from camhook.folders.photos import Photo
from camhook.folders.records import Skipped, is_done, remove_remains
from camhook.folders.writing import Writer, Writers, Written
from camhook.interrupts import stop_on_signals

__all__ = ["Run"]

_TALKATIVE = 100  # so many photos or fewer, and each map's caption is printed


@dataclass
class Run:
    """What one rank does: its photos, and the counts of what became of them."""

    photos: Sequence[Photo]
    ranks: Ranks
    writer: Writer
    batch_size: int
    workers: int
    found_done: int = 0
    explained: int = 0
    _bar: Any = field(init=False)
    _skipped: Skipped = field(init=False)

    def __call__(self, cam: CAM, question: Question) -> int:
        """Explain what is not done, say what became of it, and return the exit status."""
        directory = self.writer.directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"The directory {directory} cannot be made: {error}. Choose another path.") from error
        remove_remains(directory, self.photos)
        self._skipped = Skipped(directory, self.ranks, overwrite=self.writer.overwrite)
        quiet = len(self.photos) < 4 or self.ranks.rank > 0
        try:
            with tqdm(total=len(self.photos), unit="photo", disable=quiet) as self._bar:
                stopped = self._explain(cam, question)
        finally:
            self._skipped.write()
        click.echo(self._summary())
        if stopped:
            click.echo("Stopped. The same command goes on from here.", err=True)
            return 130  # as shells have it for Ctrl-C
        if self._skipped.reasons:
            click.echo(f"Error: {self._skipped}", err=True)
        self.ranks.wait()
        return 1 if self._skipped.reasons else 0

    def _explain(self, cam: CAM, question: Question) -> bool:
        """Explain; tell whether that was stopped."""
        try:
            with stop_on_signals(), Writers(self.writer, self.workers) as writers:
                written = explain_photos(cam, self._groups(), question, writers, workers=self.workers)
                with closing(written):
                    for each in written:
                        self._note(each)
        except KeyboardInterrupt:
            return True
        return False

    def _groups(self) -> Iterator[list[Photo]]:
        """Yield photos that are not done, a batch at a time, looked up as they are wanted."""
        waiting = []
        for photo in self.photos:
            if is_done(self.writer.directory, photo, self.writer.settings):
                self.found_done += 1
                self._bar.update()
                continue
            waiting.append(photo)
            if len(waiting) == self.batch_size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _note(self, written: Written) -> None:
        self._bar.update()
        if written.reason:
            self._skipped.add(written.photo, written.reason)
            return
        self.explained += 1
        if len(self.photos) <= _TALKATIVE:
            for caption in written.captions:
                tqdm.write(caption, file=sys.stdout)

    def _summary(self) -> str:
        part = f"Rank {self.ranks.rank} of {self.ranks.world}: " if self.ranks.world > 1 else ""
        done = f", {self.found_done} were done already" if self.found_done else ""
        return f"{part}Explained {self.explained} of {len(self.photos)} photos{done}; wrote to {self.writer.directory}."
