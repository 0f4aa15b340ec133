"""Studies of a model: what predicts its needs, and what pruning it in one way or another costs and loses."""

from madtp_core.study.batch_size import BatchSizes
from madtp_core.study.bench import Bench
from madtp_core.study.cells import Cells
from madtp_core.study.compare import Comparison, branch_variants, term_variants
from madtp_core.study.fine_tune import Budget, FineTuning
from madtp_core.study.keep_modes import KeepModes
from madtp_core.study.observe import Observation, observe
from madtp_core.study.publish import publish
from madtp_core.study.report import write_report
from madtp_core.study.sorting import Sorting
from madtp_core.study.study import Study, read_study, study_difficulty
from madtp_core.study.variant import Variant

__all__ = [
    "BatchSizes",
    "Bench",
    "Budget",
    "Cells",
    "Comparison",
    "FineTuning",
    "KeepModes",
    "Observation",
    "Sorting",
    "Study",
    "Variant",
    "branch_variants",
    "observe",
    "publish",
    "read_study",
    "study_difficulty",
    "term_variants",
    "write_report",
]
