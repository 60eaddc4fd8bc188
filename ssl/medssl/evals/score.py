"""A number never travels without its interval."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A statistic with an interval, and how the interval was made.

    `value`, `low`, `high` share the unit of the statistic and are nan where it is undefined. The interval need not hold
    the value: a plug-in estimate such as ECE is biased, and resampling shows it. `n` counts scans, `patients` the units
    that were resampled. `how` is a sentence without a full stop.
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
        """For JSON, which has no nan: undefined numbers become None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> "Score":
        """The inverse of `as_dict`. Raises TypeError for missing or unknown keys."""
        return cls(**{k: math.nan if v is None else v for k, v in d.items()})  # type: ignore[arg-type]
