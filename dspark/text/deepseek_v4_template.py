"""DeepSeek-V4's chat template. Its repositories ship Python code instead of a template; that code
is not run. This covers a chat with tools, with or without thinking; earlier thinking is left out.
Levels of effort, whose words are not established, and tasks are not covered.

Established for Flash of 2026-07-31 from descriptions of that code; assumed for the others.
"""

from typing import Any

from dspark.checkpoints.deepseek_v4_config import MODEL_TYPE
from dspark.checkpoints.model_folder import ModelFolder

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, THINK, ANSWER = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
MARK = "｜DSML｜"
# the marks are the model's, the words between them ours
TOOLS = (
    "\\n\\n## Tools\\n\\nTo use a tool, write a block in this form:\\n\\n"
    f"<{MARK}tool_calls>\\n"
    f'<{MARK}invoke name="$TOOL_NAME">\\n'
    f'<{MARK}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE'
    f"</{MARK}parameter>\\n"
    f"...\\n</{MARK}invoke>\\n...\\n</{MARK}tool_calls>\\n\\n"
    'A text is written as it is, with string="true"; any other value as JSON, with '
    'string="false".\\n\\n'
    "### Available Tool Schemas\\n\\n"
)
CALLS = (
    "{{- '\\n\\n<" + MARK + "tool_calls>\\n' -}}"
    "{%- for call in message['tool_calls'] -%}"
    "{{- '<" + MARK + "invoke name=\"' + call['function']['name'] + '\">\\n' -}}"
    "{%- for key, value in call['function']['arguments'].items() -%}"
    "{%- set kind = 'true' if value is string else 'false' -%}"
    "{{- '<" + MARK + "parameter name=\"' + key + '\" string=\"' + kind + '\">' -}}"
    "{{- value if value is string else value | tojson -}}"
    "{{- '</" + MARK + "parameter>\\n' -}}"
    "{%- endfor -%}"
    "{{- '</" + MARK + "invoke>\\n' -}}"
    "{%- endfor -%}"
    "{{- '</" + MARK + "tool_calls>' -}}"
)
TEMPLATE = (
    "{{- '" + BEGIN + "' -}}"
    "{%- macro offered() -%}"
    "{{- '" + TOOLS + "' -}}"
    "{%- for tool in tools -%}{{- tool['function'] | tojson + '\\n' -}}{%- endfor -%}"
    "{%- endmacro -%}"
    "{%- if tools and messages[0]['role'] != 'system' -%}{{- offered() -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- set role = message['role'] -%}"
    "{%- set before = loop.previtem['role'] if loop.previtem is defined else '' -%}"
    "{%- set next = loop.nextitem['role'] if loop.nextitem is defined else '' -%}"
    "{%- if role in ('user', 'tool') -%}"
    "{{- '\\n\\n' if before in ('user', 'tool') else '" + USER + "' -}}"
    "{%- if role == 'tool' -%}{{- '<tool_result>' + message['content'] + '</tool_result>' -}}"
    "{%- else -%}{{- message['content'] -}}{%- endif -%}"
    "{%- if next == 'assistant' or (loop.last and add_generation_prompt) -%}"
    "{{- '" + ASSISTANT + "' -}}"
    "{{- '" + THINK + "' if enable_thinking and loop.last else '" + ANSWER + "' -}}"
    "{%- endif -%}"
    "{%- elif role == 'assistant' -%}"
    "{{- message['content'] -}}"
    "{%- if message['tool_calls'] -%}" + CALLS + "{%- endif -%}"
    "{{- '" + END + "' -}}"
    "{%- elif role == 'system' -%}"
    "{{- message['content'] -}}"
    "{%- if tools and loop.first -%}{{- offered() -}}{%- endif -%}"
    "{%- else -%}"
    "{{- raise_exception('DeepSeek-V4 is asked by system, user, assistant and tool only') -}}"
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
