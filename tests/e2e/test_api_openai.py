"""The official Python client, on any engine."""
import pytest

openai = pytest.importorskip("openai", reason="PyPI openai is not installed")


@pytest.fixture(scope="module")
def sdk(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def ask(text):
    return [{"role": "user", "content": text}]


def test_models(sdk, model):
    assert model in [m.id for m in sdk.models.list()]
    assert sdk.models.retrieve(model).owned_by


def test_chat(sdk, model):
    r = sdk.chat.completions.create(model=model, messages=ask("Hello"), max_tokens=8, temperature=0)
    assert r.choices[0].message.role == "assistant" and r.usage.total_tokens > 0
    stream = sdk.chat.completions.create(model=model, messages=ask("Hello"), max_tokens=8,
                                         temperature=0, stream=True,
                                         stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in stream:
        usage = chunk.usage or usage
        for c in chunk.choices:
            text += c.delta.content or ""
    assert text == r.choices[0].message.content and usage.total_tokens == r.usage.total_tokens


def test_completions(sdk, model):
    r = sdk.completions.create(model=model, prompt="Once", max_tokens=4, logprobs=1)
    assert r.choices[0].logprobs.tokens
    assert "".join(c.choices[0].text for c in sdk.completions.create(
        model=model, prompt="Once", max_tokens=4, stream=True)) is not None


def test_errors_have_their_classes(sdk, model):
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("none")
    with pytest.raises(openai.BadRequestError) as e:
        sdk.chat.completions.create(model=model, messages=ask("x"), temperature=9)
    assert e.value.param == "temperature" and e.value.code == "invalid_value"


def test_async(server, model):
    import asyncio

    async def run():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as sdk:
            runs = [sdk.chat.completions.create(model=model, messages=ask("Hello"), max_tokens=4)
                    for _ in range(8)]
            return await asyncio.gather(*runs)

    assert len(asyncio.run(run())) == 8
