"""DeepSeek-V4's chat template. Its repositories ship Python code instead of a template; that code
is not run. This covers a chat without reasoning, tools or tasks.

Established for Flash of 2026-07-31 from descriptions of that code; assumed for the others.
"""

from typing import Any

from dspark.checkpoints.deepseek_v4_config import MODEL_TYPE
from dspark.checkpoints.model_folder import ModelFolder

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, ANSWER = "<｜User｜>", "<｜Assistant｜>", "</think>"
TEMPLATE = (
    "{{- '" + BEGIN + "' -}}"
    "{%- for message in messages -%}"
    "{%- set role = message['role'] -%}"
    "{%- set before = loop.previtem['role'] if loop.previtem is defined else '' -%}"
    "{%- set next = loop.nextitem['role'] if loop.nextitem is defined else '' -%}"
    "{%- if role == 'user' -%}"
    "{{- '\\n\\n' if before == 'user' else '" + USER + "' -}}"
    "{{- message['content'] -}}"
    "{%- if next == 'assistant' or (loop.last and add_generation_prompt) -%}"
    "{{- '" + ASSISTANT + ANSWER + "' -}}"
    "{%- endif -%}"
    "{%- elif role == 'assistant' -%}"
    "{{- message['content'] + '" + END + "' -}}"
    "{%- elif role == 'system' -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{{- raise_exception('DeepSeek-V4 is asked by system, user and assistant only') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def with_own_prompt(tokenizer: Any, folder: ModelFolder) -> Any:
    """The tokenizer, with V4's chat template if it has V4's marks and no template."""
    if tokenizer.chat_template is None and folder.has("config.json"):
        marks = {BEGIN, END, USER, ASSISTANT, ANSWER}
        is_v4 = folder.config.get("model_type") == MODEL_TYPE
        if is_v4 and marks <= tokenizer.get_vocab().keys():
            tokenizer.chat_template = TEMPLATE
    return tokenizer
