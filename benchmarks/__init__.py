"""How fast the pipeline is, in ratios measured side by side: ``python -m benchmarks.run``; see docs/performance.md."""
