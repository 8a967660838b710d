"""lm-eval's local-completions: token ids in batches, echo, log-probabilities; and generation."""

import json
import sys
from importlib.metadata import version

from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

PROMPT = "The capital of France is"
model = LocalCompletionsAPI(
    base_url=f"{sys.argv[1]}/v1/completions",
    model="smollm2",
    tokenizer_backend="remote",
    auth_token=sys.argv[2],
    batch_size=4,
    max_length=2048,
)
pairs = [(PROMPT, " Paris"), (PROMPT, " London"), ("1, 2, 3, 4,", " 5"), ("", "Hello there")]
scored = model.loglikelihood([Instance("loglikelihood", {}, p, i) for i, p in enumerate(pairs)])
rolling = model.loglikelihood_rolling(
    [Instance("loglikelihood_rolling", {}, ("The quick brown fox jumps over the lazy dog.",), 0)]
)
settings = {"until": ["."], "max_gen_toks": 8, "temperature": 0}
text = model.generate_until([Instance("generate_until", {}, (PROMPT, settings), 0)])
chat = LocalChatCompletion(
    base_url=f"{sys.argv[1]}/v1/chat/completions", model="smollm2", max_length=2048
)
messages = json.dumps([{"role": "user", "content": "What is the capital of France?"}])
settings = {"until": ["\n"], "max_gen_toks": 16, "temperature": 0}
said = chat.generate_until([Instance("generate_until", {}, (JsonChatStr(messages), settings), 0)])
print(
    json.dumps(
        {
            "versions": {"lm_eval": version("lm_eval")},
            "scored": scored,
            "rolling": rolling,
            "generated": text,
            "said": said,
        }
    )
)
