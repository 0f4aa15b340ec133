"""Studies of a model: what predicts how many tokens a request needs, and what batching by it would save."""

from madtp_core.study.observe import Observation, observe
from madtp_core.study.report import write_report
from madtp_core.study.study import Study, read_study, study_difficulty

__all__ = ["Observation", "Study", "observe", "read_study", "study_difficulty", "write_report"]
