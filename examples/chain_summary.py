"""A chain: every call reads what the call before it wrote. All of them are submitted at once.

kea run examples/chain_summary.py [FILE.txt]
"""

from pathlib import Path

import kea

TEXT = Path(__file__).with_name("kea.txt")


@kea.function(temperature=0, max_tokens=100)
def summarise(paragraph: kea.Input, summary: kea.Output):
    """
    Passage: {{paragraph}}
    Summary: {{summary}}
    """


@kea.function(temperature=0, max_tokens=300)
def refine(before: kea.Input, paragraph: kea.Input, summary: kea.Output):
    """
    Summary so far: {{before}}
    Passage: {{paragraph}}
    Summary: {{summary}}
    """


def main(session: kea.Session, file: str = str(TEXT)) -> None:
    first, *others = Path(file).read_text(encoding="utf-8").strip().split("\n\n")
    summary = summarise(first)
    for paragraph in others:
        summary = refine(summary, paragraph)  # waits for nothing here; the server passes the text on
    print(f"In short: {summary.get()}")


if __name__ == "__main__":
    with kea.connect() as session:
        main(session)
