"""Structured extraction: the output is JSON that fits a schema, whatever the model would rather write.

kea run examples/extraction.py
"""

import json

import kea

TEXTS = (
    "Tarn Osk is 41 years old. Tarn Osk works as a glazier. The home of Tarn Osk is in Velford.",
    "At 23, Mira Dalen still walks every day. Mira Dalen settled in Harrowby. Mira Dalen is a weaver.",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "town": {"type": "string", "maxLength": 40},
        "work": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "town", "work", "age"],
    "additionalProperties": False,
}


@kea.function(temperature=0)
def extract(text: kea.Input, record: kea.Output(json_schema=SCHEMA, max_tokens=120)):
    """
    Text: {{text}}
    Schema: {"name": string, "town": string, "work": string, "age": integer}
    JSON: {{record}}
    """


def main(session: kea.Session) -> None:
    for record in kea.gather(*session.map(extract, TEXTS)):
        person = json.loads(record)
        print(f"{person['name']}, {person['age']}, {person['work']} in {person['town']}")


if __name__ == "__main__":
    with kea.connect() as session:
        main(session)
