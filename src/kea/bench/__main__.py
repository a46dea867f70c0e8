"""`python -m kea.bench`: the same commands as `kea bench`."""

from kea.bench.cli import app

if __name__ == "__main__":
    app(prog_name="kea bench")
