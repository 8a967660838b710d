"""LiteLLM: a chat, whole, streamed and asynchronous."""

import asyncio
import json
import sys
from importlib.metadata import version
from typing import Any

import litellm

CALL: dict[str, Any] = {
    "model": "openai/smollm2",
    "api_base": f"{sys.argv[1]}/v1",
    "api_key": sys.argv[2],
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
}
print(
    json.dumps(
        {
            "versions": {"litellm": version("litellm")},
            "answer": litellm.completion(**CALL).choices[0].message.content,
            "streamed": "".join(
                chunk.choices[0].delta.content or ""
                for chunk in litellm.completion(**CALL, stream=True)
            ),
            "asynchronous": asyncio.run(litellm.acompletion(**CALL)).choices[0].message.content,
        }
    )
)
