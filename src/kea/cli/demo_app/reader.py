"""Reads a page of a novel: summarises its paragraphs, merges the summaries, and answers questions about its people.

Run it with `kea run reader.py`. Nine calls, submitted at once:

    paragraph 1 ── summarise ──┐
    paragraph 2 ── summarise ──┼── merge         a fan-out, then a fan-in
    paragraph 3 ── summarise ──┤
    paragraph 4 ── summarise ──┘

    all paragraphs and the cast ──┬── ask        one long beginning that four prompts share:
                                  ├── ask        it is read once, and found in memory
                                  ├── ask        by the others
                                  └── ask

The prompts have the form that the embedded model was trained on; a larger model understands them as well.
"""

from pathlib import Path

import kea

EXCERPT = Path(__file__).with_name("excerpt.txt")

# What other pages of the novel say about its people, in words of ours.
CAST = (
    "Marian Halcombe lives in Limmeridge.",
    "Walter Hartright works as a teacher. Walter Hartright is 28 years old.",
)
QUESTIONS = (
    "Where does Marian Halcombe live?",
    "What is the work of Walter Hartright?",
    "How old is Walter Hartright?",
    "When did Marian Halcombe marry?",  # no passage tells
)


@kea.function(temperature=0, max_tokens=100)
def summarise(paragraph: kea.Input, summary: kea.Output):
    """
    Passage: {{paragraph}}
    Summary: {{summary}}
    """


@kea.function(temperature=0, max_tokens=300)
def merge(first: kea.Input, second: kea.Input, third: kea.Input, fourth: kea.Input, summary: kea.Output):
    """
    Summary 1: {{first}}
    Summary 2: {{second}}
    Summary 3: {{third}}
    Summary 4: {{fourth}}
    Summary of all: {{summary}}
    """


@kea.function(temperature=0, max_tokens=30)
def ask(passages: kea.Input, question: kea.Input, answer: kea.Output):
    """
    {{passages}}
    Question: {{question}}
    Answer: {{answer}}
    """


def main(session: kea.Session) -> None:
    title, *paragraphs = EXCERPT.read_text(encoding="utf-8").strip().split("\n\n")
    print(f"{title}\n")

    # Nothing below waits for a model until the first get(): every call returns a variable at once.
    merged = merge(*session.map(summarise, paragraphs))
    passages = "\n".join(f"Passage {number}: {text}" for number, text in enumerate([*paragraphs, *CAST], start=1))
    answers = [ask(passages, question) for question in QUESTIONS]

    merged.get()
    print()
    for question, answer in zip(QUESTIONS, kea.gather(*answers), strict=True):
        print(f"{question:40}{answer}")


if __name__ == "__main__":
    with kea.connect() as session:
        main(session)
