"""Asks a model, streams an answer, and makes an embedding. Address and key are taken from the environment."""

import os

# At import LiteLLM fetches a list of prices from GitHub, which takes long where there is no way to it.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
import litellm

# "openai/" chooses the protocol; the gateway gets what stands behind it.
model = "openai/" + os.environ["MODEL"]
# Not num_retries: it would multiply with max_retries, and needs another package.
options = {"timeout": 900, "max_retries": 5}
limits = {"max_tokens": 32, "temperature": 0}

question = [{"role": "user", "content": "What is the capital of France?"}]
answer = litellm.completion(model=model, messages=question, **limits, **options)
print("answer:", answer.choices[0].message.content)

japanese = [{"role": "user", "content": "日本の首都はどこですか。"}]
pieces = 0
for chunk in litellm.completion(model=model, messages=japanese, stream=True, **limits, **options):
    pieces += 1
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print(f"\nstreamed in {pieces} pieces")

# A model that generates text gives one vector per token; their mean stands for the whole text.
vectors = litellm.embedding(model=model, input=["東京"], **options).data[0]["embedding"]
mean = [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]
print("embedding:", len(vectors), "tokens,", len(mean), "numbers, first", mean[0])
