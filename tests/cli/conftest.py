"""The toy task of the study tests, for the command that runs a study."""

from study.conftest import _search_path, task_file

__all__ = ["_search_path", "task_file"]
