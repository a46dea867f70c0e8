"""The checks of the house: what `make check` runs beside ruff and mypy. Not part of the installed package."""
