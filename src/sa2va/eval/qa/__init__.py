"""Question benchmarks in VLMEvalKit's file format, without an extra package."""

from sa2va.eval.qa.rows import QA_ROWS

__all__ = ["QA_ROWS"]
