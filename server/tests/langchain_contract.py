"""Drives a server with LangChain's client for OpenAI: python langchain_contract.py BASE_URL (the key is in OPENAI_API_KEY)."""
import asyncio
import os
import sys
from typing import Literal

# No check asks another machine.
os.environ["LANGSMITH_TRACING"] = "false"

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

BASE = dict(base_url=sys.argv[1], max_retries=0, timeout=120)
MESSAGES = [SystemMessage("Be short."), HumanMessage("Say something.")]
# The tiny model may not fill its answer with white space between the parts of a document.
NO_SPACE = {id: -100 for id in ("9", "10", "13", "32")}
passed = 0


class Paint(BaseModel):
    """Paints a thing."""

    kind: Literal["a", "b"]


def chat(**settings):
    return ChatOpenAI(**{"model": "tiny", "max_tokens": 8, "seed": 3, **BASE, **settings})


def check(name):
    def run(function):
        global passed
        function()
        passed += 1
        print("ok", name)
    return run


@check("invoke: a chat has a text, a reason and token usage")
def _():
    answer = chat().invoke(MESSAGES)
    assert isinstance(answer, AIMessage) and isinstance(answer.content, str), answer
    assert answer.response_metadata["finish_reason"] in ("stop", "length") and answer.response_metadata["model_name"] == "tiny", answer
    usage = answer.usage_metadata
    assert usage["input_tokens"] > 0 and usage["output_tokens"] > 0, usage
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], usage


@check("stream: the parts are the same text, with usage")
def _():
    model = chat(max_tokens=16, extra_body={"ignore_eos": True}, stream_usage=True)
    whole, parts = model.invoke(MESSAGES), None
    for part in model.stream(MESSAGES):
        parts = part if parts is None else parts + part
    assert parts.content == whole.content, (parts, whole)
    assert parts.usage_metadata["output_tokens"] == 16, parts


@check("batch: each answer is that of its request")
def _():
    model = chat()
    wanted = [[HumanMessage(text)] for text in ("Once", "upon", "a time")]
    answers = model.batch(wanted, config={"max_concurrency": 3})
    assert [answer.content for answer in answers] == [model.invoke(one).content for one in wanted], answers


@check("async: invoke and stream give the same text")
def _():
    async def both():
        model = chat()
        whole = await model.ainvoke(MESSAGES)
        text = ""
        async for part in model.astream(MESSAGES):
            text += part.content
        return whole.content, text
    whole, text = asyncio.run(both())
    assert whole == text, (whole, text)


@check("a chain of a prompt, a model and a parser")
def _():
    prompt = ChatPromptTemplate.from_messages([("system", "Be {mood}."), ("human", "Say {what}.")])
    text = (prompt | chat() | StrOutputParser()).invoke({"mood": "short", "what": "something"})
    assert text == chat().invoke(MESSAGES).content, text


@check("stop strings stop")
def _():
    model = chat(max_tokens=120, extra_body={"ignore_eos": True})
    whole = model.invoke(MESSAGES).content
    stop = next(c for c in whole if c.isascii() and c.isprintable())
    answer = model.invoke(MESSAGES, stop=[stop])
    assert answer.content == whole[: whole.index(stop)] and answer.response_metadata["finish_reason"] == "stop", answer


@check("completions of a model without chats")
def _():
    model = OpenAI(model="plain", max_tokens=4, seed=1, **BASE)
    assert isinstance(model.invoke("Once"), str)
    result = model.generate(["Once", "upon"])
    assert len(result.generations) == 2 and result.llm_output["token_usage"]["completion_tokens"] > 0, result


@check("embeddings of texts and of a query")
def _():
    # Otherwise the client counts tokens by a vocabulary of OpenAI, and sends those.
    model = OpenAIEmbeddings(model="encoder", check_embedding_ctx_length=False, **BASE)
    texts = ["The harbour was quiet.", "a", "the river"]
    vectors = model.embed_documents(texts)
    assert [len(vector) for vector in vectors] == [32] * 3
    query = model.embed_query(texts[1])
    assert all(abs(a - b) < 1e-6 for a, b in zip(query, vectors[1], strict=True))
    assert len(asyncio.run(model.aembed_query("a"))) == 32


@check("tool calls: whole and streamed; results need a template with tools")
def _():
    model = chat(max_tokens=100, seed=1, logit_bias=NO_SPACE)
    bound = model.bind_tools([Paint], tool_choice="required", strict=True)
    answer = bound.invoke(MESSAGES)
    [call] = answer.tool_calls
    assert call["name"] == "Paint" and call["args"]["kind"] in ("a", "b") and call["id"], answer
    parts = None
    for part in bound.stream(MESSAGES):
        parts = part if parts is None else parts + part
    assert [(one["name"], one["args"]) for one in parts.tool_calls] == [("Paint", call["args"])], parts
    try:
        bound.invoke([*MESSAGES, answer, ToolMessage("done", tool_call_id=call["id"])])
    except openai.UnprocessableEntityError as error:
        assert error.param == "messages[2]" and error.code == "tools_not_supported", error.body
    else:
        raise AssertionError("a result of a tool was accepted")


@check("structured output is an object of the schema")
def _():
    model = chat(max_tokens=100, seed=1, logit_bias=NO_SPACE)
    for method in ("json_schema", "function_calling"):
        answer = model.with_structured_output(Paint, method=method, strict=True).invoke(MESSAGES)
        assert isinstance(answer, Paint) and answer.kind in ("a", "b"), (method, answer)


@check("errors are those of the OpenAI client")
def _():
    for wanted, call in [
        (openai.BadRequestError, lambda: chat(temperature=5).invoke(MESSAGES)),
        (openai.NotFoundError, lambda: chat(model="gpt-5").invoke(MESSAGES)),
        (openai.BadRequestError, lambda: chat(model="plain").invoke(MESSAGES)),
        (openai.UnprocessableEntityError, lambda: chat().bind_tools([Paint]).invoke(MESSAGES)),
        (openai.AuthenticationError, lambda: chat(api_key="wrong").invoke(MESSAGES)),
    ]:
        try:
            call()
        except wanted as error:
            assert error.body["message"] and error.code, error.body
        else:
            raise AssertionError(f"no {wanted.__name__}")


print(f"all {passed} checks passed")
