"""LlamaIndex's OpenAILike: a chat, whole and streamed, and a completion."""

import json
import sys
from importlib.metadata import version

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

QUESTION = [ChatMessage(role="user", content="What is the capital of France?")]


def model(*, is_chat: bool, max_tokens: int) -> OpenAILike:
    return OpenAILike(
        model="smollm2",
        api_base=f"{sys.argv[1]}/v1",
        api_key=sys.argv[2],
        is_chat_model=is_chat,
        temperature=0,
        max_tokens=max_tokens,
    )


chat = model(is_chat=True, max_tokens=24)
completion = model(is_chat=False, max_tokens=2)
print(
    json.dumps(
        {
            "versions": {
                name: version(name)
                for name in ("llama-index-core", "llama-index-llms-openai-like", "openai")
            },
            "answer": chat.chat(QUESTION).message.content,
            "streamed": "".join(piece.delta or "" for piece in chat.stream_chat(QUESTION)),
            "completed": completion.complete("The capital of France is").text,
        }
    )
)
