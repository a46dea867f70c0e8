"""The exact prompt of every task the model is trained on. The demo, the tests and the benchmarks use these builders.

Every prompt ends with a cue and no space ("Answer:", "JSON:"); the answer follows after one space, or at once when
the template itself put the space there. Knows nothing of random samples or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ABSENT = "Not in the passages."
NOBODY = "Nobody."


def number_passages(passages: Sequence[str]) -> str:
    """Return the passages one per line, each with its number from 1."""
    return "\n".join(f"Passage {i}: {passage}" for i, passage in enumerate(passages, 1))


def qa_prompt(passages: Sequence[str], question: str) -> str:
    """Ask a question over passages; the answer is copied from one of them, or is ABSENT."""
    return f"{number_passages(passages)}\n{question_prompt(question)}"


def question_prompt(question: str) -> str:
    """Ask a further question over passages that were given before."""
    return f"Question: {question}\nAnswer:"


def stream_line(line: int, value: int) -> str:
    """Return one line of StreamEval."""
    return f"line {line}: REGISTER_CONTENT is <{value}>"


def stream_question(line: int) -> str:
    """Ask for the value of an earlier line; the answer is the value in angle brackets."""
    return f"Question: What is the REGISTER_CONTENT in line {line}?\nAnswer:"


def summarise_prompt(passage: str) -> str:
    """Ask for a summary, which is the lead sentence of the passage."""
    return f"Passage: {passage}\nSummary:"


def refine_summary_prompt(summary: str, passage: str) -> str:
    """Ask to extend a summary by one passage: the old summary, then the lead sentence of the passage."""
    return f"Summary so far: {summary}\nPassage: {passage}\nSummary:"


def merge_summaries_prompt(summaries: Sequence[str]) -> str:
    """Ask for one summary out of several: all of them, in order."""
    parts = "\n".join(f"Summary {i}: {summary}" for i, summary in enumerate(summaries, 1))
    return f"{parts}\nSummary of all:"


def notes_prompt(passage: str) -> str:
    """Map step: who is mentioned, where ("Tarn Osk in Velford."), or NOBODY."""
    return f"Passage: {passage}\nWho is where:"


def refine_notes_prompt(notes: str, passage: str) -> str:
    """Chain step: the notes so far, and those of a new passage."""
    return f"Notes: {notes}\nPassage: {passage}\nWho is where:"


def merge_notes_prompt(notes: Sequence[str]) -> str:
    """Reduce step: all notes in one line, without the empty ones."""
    parts = "\n".join(f"Notes {i}: {note}" for i, note in enumerate(notes, 1))
    return f"{parts}\nWho is where:"


def extract_prompt(text: str, schema: Mapping[str, str]) -> str:
    """Ask for a JSON object with the fields of `schema`, a mapping of field name to "string" or "integer"."""
    fields = ", ".join(f'"{name}": {kind}' for name, kind in schema.items())
    return f"Text: {text}\nSchema: {{{fields}}}\nJSON:"


def choice_prompt(text: str, question: str, choices: Sequence[str]) -> str:
    """Ask a question over a text whose answer is one of the choices."""
    return f"Text: {text}\nQuestion: {question}\nChoices: {', '.join(choices)}\nAnswer:"


def story_prompt(beginning: str) -> str:
    """Ask to continue a story."""
    return f"Continue the story.\n{beginning}"
