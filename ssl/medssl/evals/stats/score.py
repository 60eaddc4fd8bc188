"""Statistics with their intervals."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A statistic with an interval, and the method of the interval.

    `value`, `low` and `high` have the unit of the statistic and are nan where it is undefined. The interval need not
    contain the value: a plug-in estimate such as the ECE is biased, and so are its resamples. `n` is the number of scans,
    `patients` the number of units resampled. `how` is the method, a sentence without a full stop.
    """

    value: float
    low: float
    high: float
    n: int
    patients: int
    how: str

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"interval [{self.low}, {self.high}] is upside down")

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        interval = "no interval" if math.isnan(self.low) else f"{self.low:.3f}, {self.high:.3f}"
        return f"{self.value:.3f} [{interval}]"

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, which has no nan: undefined numbers become None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> "Score":
        """Return the score from `as_dict`. Raises TypeError for missing or unknown keys."""
        return cls(**{k: math.nan if v is None else v for k, v in d.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Difference:
    """A paired difference of two models, with its standard error and a two-sided p-value for no difference.

    `p` is below 0.05 if and only if the 95 % interval of `score` excludes 0. Both are nan where there is no interval.
    """

    score: Score
    p: float
    se: float

    def __str__(self) -> str:
        if math.isnan(self.p):
            return str(self.score)
        return f"{self.score}, " + ("p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}")

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON: the score's keys, `p` and `se`; undefined numbers become None."""
        return self.score.as_dict() | {k: None if math.isnan(v) else v for k, v in (("p", self.p), ("se", self.se))}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> "Difference":
        """Return the comparison from `as_dict`."""
        rest = {k: v for k, v in d.items() if k not in ("p", "se")}
        return cls(Score.from_dict(rest), *(math.nan if d[k] is None else d[k] for k in ("p", "se")))
