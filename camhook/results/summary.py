"""Numbers of one map, class, score, offset and completeness error, and their wording in captions."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MapSummary"]


@dataclass(frozen=True)
class MapSummary:
    """Numbers of the map of one class for one image; the manifest of a result lists them.

    Attributes
    ----------
    index : int
        The class.
    name : str
        Its name, with what it is contrasted with.
    score, offset : float
        In logits; see `CAMResult`.
    offset_share : float
        The share of the score that belongs to no position, 0 to 1.
    completeness_error : float
        Absolute, in logits.
    exact : bool
        Whether that error is within tolerance.
    """

    index: int
    name: str
    score: float
    offset: float
    offset_share: float
    completeness_error: float
    exact: bool

    def caption(self) -> str:
        """Return one line: class, score, offset and completeness error."""
        error = self.completeness_error
        verdict = (
            f"completeness error {_small(error)}" if self.exact else f"NOT COMPLETE: misses the score by {error:.2g}"
        )
        return f"{self.name}: score {_signed(self.score)}, offset {_signed(self.offset)}, {verdict}"

    def lines(self) -> tuple[str, ...]:
        """Return the same without the class in two short lines, to go below a picture."""
        incomplete = "" if self.exact else ": NOT COMPLETE"
        return (
            f"score {_signed(self.score)}, offset {_signed(self.offset)}",
            f"completeness error {_small(self.completeness_error)}{incomplete}",
        )


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # adding zero turns -0.0 into 0.0


def _small(value: float) -> str:
    return f"{value:.0e}" if value else "0"
