"""Benchmarks: commands that measure Kea and its peers and write one report. See `docs/benchmarks.md`."""

from kea.bench.base import Bound, Failure, Machine, Model, Peer, Report, Sample, Show

__all__ = ["Bound", "Failure", "Machine", "Model", "Peer", "Report", "Sample", "Show"]
