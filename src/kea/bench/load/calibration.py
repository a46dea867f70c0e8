"""How many tokens words cost with a server's tokenizer: measured once before a load.

Owns the method: exactly through /tokenize, else on average from the usage of two short requests. Sends nothing later.
"""

from __future__ import annotations

import time
from collections import Counter

from kea.bench.load.client import LoadClient, RequestResult
from kea.bench.load.prompts import WORDS, Lexicon
from kea.errors import Unreachable

_REPEATS = 4
# Few enough for a model of 256 positions and a tokenizer that spells every word in three tokens.
_NUM_AVERAGED = 40


async def calibrate(client: LoadClient, model: str) -> Lexicon:
    """Measure the words' costs on this server. Raises Unreachable where it answers neither way."""
    lexicon = await _try_exact(client, model)
    return lexicon or await _average(client, model)


async def _try_exact(client: LoadClient, model: str) -> Lexicon | None:
    """Ask for each word alone and repeated: a word counts if every repetition costs the same whole number.

    At the beginning of a prompt, where no space stands before it, a word may cost more or fewer tokens; so only those
    are used that have the commonest difference there, and any of them may come first.
    """
    costs: dict[str, int] = {}
    bases: dict[str, int] = {}
    for word in WORDS:
        once = await client.try_count_tokens(model, word)
        often = await client.try_count_tokens(model, " ".join([word] * (1 + _REPEATS)))
        if once is None or often is None:
            return None
        cost, rest = divmod(often - once, _REPEATS)
        if rest == 0 and cost >= 1:
            costs[word] = cost
            bases[word] = once - cost
    if not costs:
        return None
    [(base, _)] = Counter(bases.values()).most_common(1)
    words = tuple(word for word in costs if bases[word] == base)
    return Lexicon(words, tuple(float(costs[word]) for word in words), float(base), is_exact=True)


async def _average(client: LoadClient, model: str) -> Lexicon:
    """Compare the prompt tokens that the server reports for some words once and twice; only these are used then."""
    some = WORDS[:_NUM_AVERAGED]
    once, twice = [await _prompt_tokens(client, model, " ".join(some * times)) for times in (1, 2)]
    if once is None or twice is None or twice <= once:
        return Lexicon(some, (1.0,) * len(some), 0.0, is_exact=False)
    cost = (twice - once) / len(some)
    return Lexicon(some, (cost,) * len(some), max(0.0, once - cost * len(some)), is_exact=False)


async def _prompt_tokens(client: LoadClient, model: str, text: str) -> int | None:
    return (await probe(client, model, text)).prompt_tokens


async def probe(client: LoadClient, model: str, text: str = WORDS[0]) -> RequestResult:
    """Send one request for one token. Raises Unreachable with the server's own words where that fails."""
    body = client.shape.body(model, text, 1)
    result = await client.send(body, index=0, output_len=1, scheduled_s=0.0, start=time.perf_counter())
    if result.failure is not None:
        raise Unreachable(
            f"The server at {client.target.base_url} refused a request of one token: {result.failure.message}",
            hint="The load was not started.",
        )
    return result
