"""Chats through a running daemon with the openai package, over TCP and over the socket.

usage: openai_chat.py BASE_URL SOCKET SMALL LARGE
"""
import sys

import httpx2 as httpx
import openai

base_url, socket, small, large = sys.argv[1:5]


def check(client: openai.OpenAI, way: str) -> None:
    names = [model.id for model in client.models.list()]
    assert small in names and large in names and "auto" in names, names

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    whole = client.chat.completions.create(model=large, messages=messages, max_tokens=16, temperature=0)
    text = whole.choices[0].message.content
    assert "Paris" in text, text
    assert whole.model == large and whole.usage.prompt_tokens > 5 and whole.usage.completion_tokens > 0, whole

    stream = client.chat.completions.create(
        model=large, messages=messages, max_tokens=16, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    joined = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert joined == text, (joined, text)
    assert len({c.id for c in chunks}) == 1
    roles = [c.choices[0].delta.role for c in chunks if c.choices and c.choices[0].delta.role]
    assert roles == ["assistant"], roles
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert finishes == [whole.choices[0].finish_reason], finishes
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    routed = client.chat.completions.with_raw_response.create(model="auto", messages=messages, max_tokens=8)
    assert routed.headers["x-llmpick-route-id"].startswith("r")
    assert routed.parse().model in (small, large)

    try:
        client.chat.completions.create(model="no-such-model", messages=messages)
        raise AssertionError("an unknown model was accepted")
    except openai.NotFoundError:
        pass
    try:
        client.chat.completions.create(model=small, messages=[])
        raise AssertionError("no messages were accepted")
    except openai.BadRequestError:
        pass
    print(way, "good")


check(openai.OpenAI(base_url=base_url, api_key="none"), "tcp")
over_socket = httpx.Client(transport=httpx.HTTPTransport(uds=socket))
check(openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=over_socket), "socket")
print("all good")
