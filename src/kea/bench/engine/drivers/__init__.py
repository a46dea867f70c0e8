"""Scripts that drive one system each, in its own python; see `answering.py` for how they are asked."""
