"""The official `openai` client, unchanged, against a running server.

    python openai_client.py --url http://127.0.0.1:8000/v1 --key KEY --model NAME

The server must have a key and refuse bodies over a megabyte. Ends with the first thing that is not as it should be.
"""

import argparse
import asyncio
import time
import urllib.request

import openai

parser = argparse.ArgumentParser()
parser.add_argument("--url", required=True)
parser.add_argument("--key", required=True)
parser.add_argument("--model", required=True)
arguments = parser.parse_args()
model = arguments.model
client = openai.OpenAI(base_url=arguments.url, api_key=arguments.key, max_retries=0, timeout=60)
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 3?"}]


def chat(**settings):
    return client.chat.completions.create(model=model, messages=messages, **settings)


def text_of(chunks):
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    return "".join(pieces)


def raises(kind, action):
    try:
        action()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def metrics():
    request = urllib.request.Request(
        arguments.url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {arguments.key}"}
    )
    lines = urllib.request.urlopen(request).read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def models():
    assert [entry.id for entry in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model


def whole_answers():
    answer = chat(temperature=0, max_completion_tokens=16)
    assert answer.object == "chat.completion" and answer.model == model and answer._request_id
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert 1 <= usage.completion_tokens <= 16
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    details = usage.completion_tokens_details
    assert details.accepted_prediction_tokens >= 0 and details.rejected_prediction_tokens >= 0
    assert details.accepted_length is None or details.accepted_length >= 1
    continued = client.completions.create(model=model, prompt=["2 + 3 =", "def"], max_tokens=4, temperature=0)
    assert [choice.index for choice in continued.choices] == [0, 1]
    assert all(choice.finish_reason in ("stop", "length") for choice in continued.choices)


def streams():
    settings = dict(temperature=0, max_tokens=24)
    whole = chat(**settings)
    with chat(stream=True, stream_options={"include_usage": True}, **settings) as stream:
        chunks = list(stream)
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    pieces = list(client.completions.create(model=model, prompt="2 + 3 =", max_tokens=8, temperature=0, stream=True))
    whole = client.completions.create(model=model, prompt="2 + 3 =", max_tokens=8, temperature=0)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def stop_strings():
    text = chat(seed=7, max_tokens=32).choices[0].message.content
    assert len(text) > 8, text
    middle = len(text) // 2
    for stop in (text[middle : middle + 3], ["this is never said", text[middle : middle + 2]]):
        cut = min(text.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one in text)
        answer = chat(seed=7, max_tokens=32, stop=stop).choices[0]
        assert answer.message.content == text[:cut], (answer.message.content, text, stop)
        assert answer.finish_reason == "stop"
        assert text_of(chat(seed=7, max_tokens=32, stop=stop, stream=True)) == text[:cut]


def seeds():
    texts = [chat(seed=seed, max_tokens=24).choices[0].message.content for seed in (1, 2, 3, 1)]
    assert texts[0] == texts[3]
    assert len(set(texts)) > 1, texts
    both = chat(seed=1, n=2, max_tokens=24).choices
    assert [choice.message.content for choice in both] == texts[:2]
    filtered = dict(seed=1, max_tokens=24, top_p=0.9, extra_body={"top_k": 20, "min_p": 0.05})
    assert chat(**filtered).choices[0].message.content == chat(**filtered).choices[0].message.content


def logprobs():
    choice = chat(temperature=0, max_tokens=8, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert content and all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in content)
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == choice.message.content
    for entry in content:
        likelihoods = [top.logprob for top in entry.top_logprobs]
        assert likelihoods == sorted(likelihoods, reverse=True)
    choice = client.completions.create(model=model, prompt="2 + 3 =", max_tokens=6, temperature=0, logprobs=2).choices[0]
    lists = choice.logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset) > 0
    assert lists.text_offset[0] == 0 and lists.text_offset == sorted(lists.text_offset)
    streamed = [chunk.choices[0].logprobs for chunk in chat(temperature=0, max_tokens=8, logprobs=True, stream=True)]
    tokens = [entry.token for part in streamed if part for entry in part.content]
    assert tokens == [entry.token for entry in content]


def cancellation():
    count = 'dspark_http_requests_total{path="/v1/completions",outcome="cancelled"}'
    before = metrics().get(count, 0)
    # So hot that the model says anything, and that hardly is the end; if one choice does end, the others go on.
    stream = client.completions.create(
        model=model, prompt="for ever", max_tokens=900, temperature=100, n=4, stream=True
    )
    next(iter(stream))
    stream.close()
    for _ in range(100):
        now = metrics()
        if now.get(count, 0) == before + 1 and now["dspark_requests_running"] == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"the request is still there: {now}")


def refusals():
    wrong = openai.OpenAI(base_url=arguments.url, api_key="wrong", max_retries=0)
    assert raises(openai.AuthenticationError, lambda: wrong.models.list()).code == "invalid_api_key"
    ask = lambda **fields: client.chat.completions.create(**{"model": model, "messages": messages, **fields})
    error = raises(openai.NotFoundError, lambda: ask(model="gpt-9"))
    assert error.code == "model_not_found" and error.param == "model"
    large = [{"role": "user", "content": "x" * 3_000_000}]
    error = raises(openai.APIStatusError, lambda: ask(messages=large))
    assert error.status_code == 413 and error.code == "request_too_large"
    error = raises(openai.BadRequestError, lambda: ask(messages=[{"role": "user", "content": "1 " * 20_000}]))
    assert error.code == "context_length_exceeded"
    error = raises(openai.BadRequestError, lambda: ask(temperature="hot"))
    assert error.param == "temperature"
    error = raises(openai.BadRequestError, lambda: ask(tools=[{"type": "function", "function": {"name": "f"}}]))
    assert error.param == "tools"


def several_at_once():
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=arguments.url, api_key=arguments.key, max_retries=0) as many:
            ask = lambda seed: many.chat.completions.create(model=model, messages=messages, seed=seed, max_tokens=16)
            return await asyncio.gather(*(ask(seed) for seed in (1, 2, 3, 1, 2, 3)))

    texts = [answer.choices[0].message.content for answer in asyncio.run(all_of_them())]
    assert texts[:3] == texts[3:]


for check in (models, whole_answers, streams, stop_strings, seeds, logprobs, cancellation, refusals, several_at_once):
    check()
    print(f"{check.__name__}: ok", flush=True)
