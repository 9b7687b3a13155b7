"""Verifies an event with the official client, as a receiver does. The argument is JSON with its headers and its body; the secret is
in OPENAI_WEBHOOK_SECRET."""

import json
import sys

import openai

sent = json.loads(sys.argv[1])
client = openai.OpenAI(api_key="unused")
event = client.webhooks.unwrap(sent["body"], sent["headers"])
assert event.type == "batch.completed" and event.object == "event", event
assert event.data.id.startswith("batch_") and event.id == sent["headers"]["webhook-id"], event
try:
    client.webhooks.unwrap(sent["body"].replace("batch_", "batch-"), sent["headers"])
except openai.InvalidWebhookSignatureError:
    pass
else:
    raise AssertionError("a changed event was accepted")
