"""What runs write and everybody else reads: one typed record for each thing, one strict reader, one writer.

A record is a frozen dataclass whose fields are the keys of its JSON, with units in their names. A key that is missing,
or that no field has, is refused by the reader with the file, the key and what to do; so nothing that is misspelt or of
another version reads as "not known". Nothing here imports torch, the network, or who writes or reads.
"""

from testbed.records.arm import ArmRecord, ArmSummary, LearnedSeries, Ledger, StepRecord, TimedSeries, Validation
from testbed.records.comparison import ComparisonRecord, Conditions, LinkGoodput
from testbed.records.environment import Environment, Place
from testbed.records.files import plain, read_json, read_record, received, record_from, write_json
from testbed.records.learned import LearnedCell, LearnedResult
from testbed.records.quality import (
    ArmQuality,
    CodeState,
    Interval,
    NullQuality,
    PresetQuality,
    QualityRecord,
    TimesOf,
)
from testbed.records.rank import (
    Begun,
    Finished,
    FirstLosses,
    Interpreter,
    Prepared,
    RankLearned,
    RankStep,
    RankSync,
    Spent,
    StepEntry,
    SyncEntry,
    ValidationSums,
    WarmedUp,
)
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
    "ArmQuality",
    "ArmRecord",
    "ArmSummary",
    "Begun",
    "CellEntry",
    "CellSummary",
    "CheckEntry",
    "CheckRow",
    "CodeState",
    "CommandEntry",
    "CommandSummary",
    "ComparisonRecord",
    "Conditions",
    "Environment",
    "ExcludedPoint",
    "Finished",
    "FirstLosses",
    "Interpreter",
    "Interval",
    "LearnedCell",
    "LearnedResult",
    "LearnedSeries",
    "Ledger",
    "LinkGoodput",
    "Machine",
    "NullQuality",
    "Place",
    "PointNetwork",
    "Prepared",
    "PresetQuality",
    "QualityRecord",
    "RankLearned",
    "RankStep",
    "RankSync",
    "Spent",
    "StepEntry",
    "StepRecord",
    "SweepConfig",
    "SweepRecord",
    "SyncEntry",
    "TimedSeries",
    "TimesOf",
    "Validation",
    "ValidationSums",
    "WarmedUp",
    "plain",
    "read_json",
    "read_record",
    "received",
    "record_from",
    "write_json",
]
