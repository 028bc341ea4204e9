"""Questions about pictures with known answers: VLMEvalKit's files, read and counted without an extra package."""

from sa2va.eval.qa.rows import QA_ROWS

__all__ = ["QA_ROWS"]
