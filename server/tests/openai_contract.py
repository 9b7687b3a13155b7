"""Drives a server with the official OpenAI client: python openai_contract.py BASE_URL (the key is in OPENAI_API_KEY)."""
import json
import sys
import time

import openai
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], max_retries=0, timeout=120)
passed = 0


def check(name):
    def run(function):
        global passed
        function()
        passed += 1
        print("ok", name)
    return run


MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say something."}]


@check("models are listed and described")
def _():
    ids = [model.id for model in client.models.list()]
    assert ids == ["tiny", "plain", "slow", "encoder", "rigid"], ids
    one = client.models.retrieve("tiny")
    assert one.object == "model" and one.owned_by == "textnlp" and one.created > 0


@check("a completion has text, reason and usage")
def _():
    answer = client.completions.create(model="tiny", prompt="Once", max_tokens=8, seed=1, extra_body={"ignore_eos": True})
    assert answer.object == "text_completion" and answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == 4 and answer.usage.completion_tokens == 8 and answer.usage.total_tokens == 12


@check("a completion streams the same text")
def _():
    common = dict(model="tiny", prompt="Once", max_tokens=20, seed=2, temperature=1.0, extra_body={"ignore_eos": True})
    whole = client.completions.create(**common).choices[0].text
    stream = client.completions.create(**common, stream=True, stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in stream:
        text += chunk.choices[0].text if chunk.choices else ""
        usage = chunk.usage or usage
    assert text == whole, (text, whole)
    assert usage.completion_tokens == 20


@check("a completion's log-probabilities")
def _():
    logprobs = client.completions.create(model="tiny", prompt="Once", max_tokens=3, logprobs=2, temperature=0, extra_body={"ignore_eos": True}).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 3
    assert all(value < 0 for value in logprobs.token_logprobs)


@check("tokens are a prompt")
def _():
    assert client.completions.create(model="tiny", prompt=[79, 110, 99, 101], max_tokens=2).usage.prompt_tokens == 4


@check("several prompts are several choices")
def _():
    common = dict(model="tiny", max_tokens=6, seed=5, extra_body={"ignore_eos": True})
    prompts = ["Once", "upon", "a time"]
    alone = [client.completions.create(prompt=prompt, **common).choices[0].text for prompt in prompts]
    answer = client.completions.create(prompt=prompts, **common)
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(alone)), answer
    assert answer.usage.prompt_tokens == 14 and answer.usage.completion_tokens == 18
    texts = [""] * 3
    for chunk in client.completions.create(prompt=prompts, stream=True, **common):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == alone, (texts, alone)
    ids = client.completions.create(prompt=[[79, 110, 99, 101], [97]], **common)
    assert [c.index for c in ids.choices] == [0, 1] and ids.choices[0].text == alone[0]


@check("a chat has a message, a reason and usage")
def _():
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=8, seed=3, user="somebody", n=1)
    assert answer.object == "chat.completion" and answer.choices[0].message.role == "assistant"
    assert isinstance(answer.choices[0].message.content, str) and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@check("a chat streams the same text")
def _():
    common = dict(model="tiny", messages=MESSAGES, max_tokens=16, seed=4, extra_body={"ignore_eos": True})
    whole = client.chat.completions.create(**common).choices[0].message.content
    stream = client.chat.completions.create(**common, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole, (text, whole)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.completion_tokens == 16
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]


@check("a chat's log-probabilities")
def _():
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=5, extra_body={"ignore_eos": True})
    content = answer.choices[0].logprobs.content
    assert len(content) == 4 and len(content[0].top_logprobs) == 5 and content[0].bytes is not None


@check("stop strings stop")
def _():
    common = dict(model="tiny", prompt="Tell", max_tokens=120, seed=11, extra_body={"ignore_eos": True})
    whole = client.completions.create(**common).choices[0].text
    stop = next(c for c in whole if c.isascii() and c.isprintable())
    answer = client.completions.create(**common, stop=[stop]).choices[0]
    assert answer.text == whole[: whole.index(stop)] and answer.finish_reason == "stop"


@check("errors are the client's own")
def _():
    for wanted, call in [
        (openai.BadRequestError, lambda: client.completions.create(model="tiny", prompt="x", temperature=5)),
        (openai.NotFoundError, lambda: client.completions.create(model="gpt-5", prompt="x")),
        (openai.BadRequestError, lambda: client.chat.completions.create(model="plain", messages=MESSAGES)),
        (openai.AuthenticationError, lambda: OpenAI(base_url=sys.argv[1], api_key="wrong", max_retries=0).models.list()),
    ]:
        try:
            call()
        except wanted as error:
            assert error.body["message"] and error.code, error.body
        else:
            raise AssertionError(f"no {wanted.__name__}")


@check("an answer is JSON of the schema that is asked for")
def _():
    schema = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=64, seed=1, logit_bias={id: -100 for id in ("9", "10", "13", "32")},
        response_format={"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": schema}})
    assert answer.choices[0].finish_reason == "stop", answer
    assert json.loads(answer.choices[0].message.content)["kind"] in ("a", "b"), answer


TOOLS = [{"type": "function", "function": {"name": "paint", "parameters": {
    "type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"], "additionalProperties": False}}}]


@check("an answer is a call of a tool, whole and streamed")
def _():
    common = dict(model="tiny", messages=MESSAGES, max_tokens=100, seed=1, tools=TOOLS, tool_choice="required",
                  logit_bias={id: -100 for id in ("9", "10", "13", "32")})
    answer = client.chat.completions.create(**common).choices[0]
    call = answer.message.tool_calls[0]
    assert answer.finish_reason == "tool_calls" and call.type == "function" and call.function.name == "paint", answer
    assert json.loads(call.function.arguments)["kind"] in ("a", "b"), answer
    arguments = ""
    for chunk in client.chat.completions.create(**common, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            arguments += delta.function.arguments or ""
    assert arguments == call.function.arguments, (arguments, call)


@check("what is not supported is refused by name")
def _():
    try:
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    except openai.UnprocessableEntityError as error:
        assert error.param == "tools" and error.code == "tools_not_supported", error.body
    else:
        raise AssertionError("tools were accepted")


@check("embeddings are read as floats and as base64, in their order")
def _():
    texts = ["The harbour was quiet.", "a", "the river"]
    # The client asks for base64 unless it is told otherwise.
    answer = client.embeddings.create(model="encoder", input=texts)
    floats = client.embeddings.create(model="encoder", input=texts, encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1, 2] and answer.object == "list"
    for packed, plain in zip(answer.data, floats.data):
        assert len(plain.embedding) == 32 and all(abs(a - b) < 1e-6 for a, b in zip(packed.embedding, plain.embedding))
    alone = client.embeddings.create(model="encoder", input=texts[1], encoding_format="float")
    assert alone.data[0].embedding == floats.data[1].embedding
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3
    short = client.embeddings.create(model="encoder", input="a", dimensions=8, encoding_format="float").data[0].embedding
    assert len(short) == 8 and abs(sum(x * x for x in short) - 1) < 1e-5
    for name, ask in [("model", dict(model="tiny")), ("dimensions", dict(model="rigid", dimensions=8)), ("input[1]", dict(model="encoder", input=["a", "a " * 99]))]:
        try:
            client.embeddings.create(**{"input": "a", **ask})
        except openai.BadRequestError as error:
            assert error.param == name, error.body
        else:
            raise AssertionError(f"{ask} was accepted")


@check("a batch of a file is answered")
def _():
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "Once", "max_tokens": 2}} for n in range(3)]
    text = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", text), purpose="batch")
    assert file.purpose == "batch" and file.filename == "requests.jsonl" and file.bytes == len(text) + 1
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", metadata={"a": "b"})
    end = time.monotonic() + 120
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < end, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed" and batch.request_counts.completed == 3 and batch.metadata == {"a": "b"}, batch
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["0", "1", "2"] and batch.error_file_id is None
    assert all(answer["response"]["body"]["usage"]["prompt_tokens"] == 4 for answer in answers)
    assert batch.id in [one.id for one in client.batches.list(limit=1)] and client.batches.cancel(batch.id).status == "completed"
    assert file.id in [one.id for one in client.files.list(purpose="batch", order="desc")]
    assert client.files.delete(file.id).deleted
    try:
        client.files.retrieve(file.id)
    except openai.NotFoundError as error:
        assert error.code == "file_not_found", error.body
    else:
        raise AssertionError("a deleted file was found")


@check("a stream can be left")
def _():
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=100, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    assert client.completions.create(model="tiny", prompt="x", max_tokens=1).usage.completion_tokens == 1


print(f"all {passed} checks passed")
