"""Map and reduce: one call per text, then one call over all that they wrote.

kea run examples/map_reduce.py
"""

import kea

REPORTS = (
    "It had rained all night. Tarn Osk was seen in Velford. Nobody asked where the road led.",
    "Mira Dalen waited in Harrowby until evening. The lamps were lit one by one.",
    "The letters came late that week, and there was no news in them.",
    "That day Edwin Thorle arrived in Kelmar. He had walked from the coast.",
)


@kea.function(temperature=0, max_tokens=40)
def find(report: kea.Input, notes: kea.Output):
    """
    Passage: {{report}}
    Who is where: {{notes}}
    """


@kea.function(temperature=0, max_tokens=120)
def collect(notes: kea.Input(separator=""), everyone: kea.Output):
    """
    {{notes}}Who is where: {{everyone}}
    """


def main(session: kea.Session) -> None:
    notes = session.map(find, REPORTS)
    # An input may be a list of texts and variables; variables are filled in when they are there.
    numbered = [part for number, note in enumerate(notes, start=1) for part in (f"Notes {number}: ", note, "\n")]
    everyone = collect(numbered)
    print(f"Found: {everyone.get(kea.LATENCY)}")


if __name__ == "__main__":
    with kea.connect() as session:
        main(session)
