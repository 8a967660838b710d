"""instructor: a model's answer as an object of a class."""

import json
import sys
from importlib.metadata import version

import instructor
import openai
from pydantic import BaseModel


class Capital(BaseModel):
    country: str
    city: str


def ask(mode: instructor.Mode) -> object:
    plain = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key=sys.argv[2], max_retries=0)
    client = instructor.from_openai(plain, mode=mode)
    found = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "The capital of France is Paris."}],
        response_model=Capital,
        temperature=0,
        max_tokens=128,
        max_retries=1,
    )
    return isinstance(found, Capital) and found.model_dump()


modes = (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS)
answers = {mode.name: ask(mode) for mode in modes}
print(json.dumps({"versions": {"instructor": version("instructor")}, "answers": answers}))
