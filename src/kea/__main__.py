"""`python -m kea`: the command `kea`, also where its folder is not in PATH."""

from __future__ import annotations

from kea.cli import main

if __name__ == "__main__":
    main()
