"""What runs write and everybody else reads: one typed record for each thing, one strict reader, one writer.

A record is a frozen dataclass whose fields are the keys of its JSON, with units in their names. A key that is missing,
or that no field has, is refused by the reader with the file, the key and what to do; so nothing that is misspelt or of
another version reads as "not known". Nothing here imports torch, the network, or who writes or reads.
"""

from testbed.records.arm import ArmRecord, ArmSummary, LearnedSeries, Ledger, StepRecord, TimedSeries, Validation
from testbed.records.comparison import ComparisonRecord, Conditions, LinkGoodput
from testbed.records.environment import Environment, Place
from testbed.records.files import plain, read_json, read_record, received, record_from, write_json
from testbed.records.learned import LearnedCell
from testbed.records.rank import RankStep, RankSync, Spent, StepEntry, SyncEntry
from testbed.records.sweep import (
    CellEntry,
    CellSummary,
    CheckEntry,
    CheckRow,
    CommandEntry,
    CommandSummary,
    ExcludedPoint,
    Machine,
    PointNetwork,
    SweepConfig,
    SweepRecord,
)

__all__ = [
    "ArmRecord",
    "ArmSummary",
    "CellEntry",
    "CellSummary",
    "CheckEntry",
    "CheckRow",
    "CommandEntry",
    "CommandSummary",
    "ComparisonRecord",
    "Conditions",
    "Environment",
    "ExcludedPoint",
    "LearnedCell",
    "LearnedSeries",
    "Ledger",
    "LinkGoodput",
    "Machine",
    "Place",
    "PointNetwork",
    "RankStep",
    "RankSync",
    "Spent",
    "StepEntry",
    "StepRecord",
    "SweepConfig",
    "SweepRecord",
    "SyncEntry",
    "TimedSeries",
    "Validation",
    "plain",
    "read_json",
    "read_record",
    "received",
    "record_from",
    "write_json",
]
