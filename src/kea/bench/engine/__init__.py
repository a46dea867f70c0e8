"""The engine benchmark: Kea's engine, its peers and the machine's bounds, in turn. See `docs/benchmarks.md`."""
