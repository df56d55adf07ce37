"""Asks a model, streams an answer, and makes an embedding. Address and key are taken from the environment."""

import os

from openai import OpenAI

model = os.environ["MODEL"]
client = OpenAI(timeout=900, max_retries=5)
limits = {"max_tokens": 32, "temperature": 0}

print("models:", *[one.id for one in client.models.list()])

question = [{"role": "user", "content": "What is the capital of France?"}]
answer = client.chat.completions.create(model=model, messages=question, **limits)
print("answer:", answer.choices[0].message.content)

japanese = [{"role": "user", "content": "日本の首都はどこですか。"}]
pieces = 0
for chunk in client.chat.completions.create(model=model, messages=japanese, stream=True, **limits):
    pieces += 1
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print(f"\nstreamed in {pieces} pieces")

# A model that generates text gives one vector per token; their mean stands for the whole text.
vectors = client.embeddings.create(model=model, input="東京").data[0].embedding
mean = [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]
print("embedding:", len(vectors), "tokens,", len(mean), "numbers, first", mean[0])
