"""Evaluation: metrics, benchmarks, predictions, scores and reports."""
