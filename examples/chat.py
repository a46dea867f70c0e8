"""A chat written as a function: its turns are messages, and its two outputs stand in the assistant's turns.

kea run examples/chat.py ["A question?"]
"""

import kea

PASSAGES = """Passage 1: Tarn Osk lives in Velford. Tarn Osk works as a glazier.
Passage 2: Velford lies on the river Mave. The ruler of Velford is Mira Dalen."""


@kea.function(
    messages=[
        ("user", "{{passages}}\nQuestion: {{first}}\nAnswer:"),
        ("assistant", "{{answer}}"),
        ("user", "Question: {{second}}\nAnswer:"),
        ("assistant", "{{further_answer}}"),
    ],
    temperature=0,
    max_tokens=30,
)
def talk(passages: kea.Input, first: kea.Input, second: kea.Input, answer: kea.Output, further_answer: kea.Output):
    pass


async def main(session: kea.Session, second: str = "Who is the ruler of Velford?") -> None:
    first = "Where does Tarn Osk live?"
    answers = talk(PASSAGES, first, second)
    for question, answer in ((first, answers.answer), (second, answers.further_answer)):
        print(f"{question} {await answer.aget()}")


if __name__ == "__main__":
    import asyncio

    async def run_alone() -> None:
        async with kea.connect() as session:
            await main(session)

    asyncio.run(run_alone())
