"""One line of what the doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from payout_pipeline.errors import head_and_repair
from payout_pipeline.scrub import scrub

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``repair`` says what to do; it is empty where nothing is wrong."""

    subject: str
    level: Level
    text: str
    repair: str = ""

    @classmethod
    def of_fault(cls, subject: str, fault: Exception, otherwise: str = "") -> Finding:
        """A fault's message as a problem: its first line, and what it says about the repair, or ``otherwise``."""
        head, repair = head_and_repair(scrub(str(fault)).strip())
        return cls(subject, "problem", head, repair or otherwise)

    def as_json(self) -> dict[str, str]:
        """Plain values."""
        return {"subject": self.subject, "level": self.level, "text": self.text, "repair": self.repair}
