"""DeepSeek-V4's chat template. Its repositories ship Python code instead of a template; that code
is not run. This covers a chat with tools, with or without thinking; earlier thinking is left out.
The words of a level of effort are read from the text of that code. Tasks are not covered.

Established for Flash of 2026-07-31 from descriptions of that code; assumed for the others.
"""

import ast
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_args

from dspark.checkpoints.deepseek_v4_config import MODEL_TYPE
from dspark.checkpoints.model_folder import ModelFolder
from dspark.config import Effort

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, THINK, ANSWER = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
MARK = "｜DSML｜"
ENCODING = "encoding/encoding_dsv4.py"
LARGEST_ENCODING = 2**20  # bytes
WORDS_OF = "REASONING_EFFORT_"  # and the level: a string of that file
WORDLESS: Effort = "high"  # the level of plain thinking
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
WITH_EFFORT = (
    "{%- set thinks = enable_thinking if enable_thinking is defined and enable_thinking is not none"
    " else reasoning_effort is defined -%}"
    "{%- if reasoning_effort is defined -%}{%- set words = WORDS -%}"
    "{%- if reasoning_effort not in words -%}"
    "{{- raise_exception('it has these levels of effort: LEVELS') -}}{%- endif -%}"
    "{{- words[reasoning_effort] if thinks -}}{%- endif -%}"
)
WITHOUT_EFFORT = "{%- set thinks = enable_thinking -%}"
TEMPLATE = (
    "{{- '" + BEGIN + "' -}}EFFORT"
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
    "{{- '" + THINK + "' if thinks and loop.last else '" + ANSWER + "' -}}"
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
            tokenizer.chat_template = TEMPLATE.replace("EFFORT", _effort(folder))
    return tokenizer


def _effort(folder: ModelFolder) -> str:
    """The template's part that tells how much to think, right behind the first mark."""
    words = effort_words(folder)
    if not words:
        return WITHOUT_EFFORT
    levels = ", ".join(level for level in get_args(Effort) if level in words)
    return WITH_EFFORT.replace("LEVELS", levels).replace("WORDS", json.dumps(words))


def effort_words(folder: ModelFolder) -> Mapping[Effort, str]:
    """By level; none where the folder does not have the file, or it has another form."""
    found: dict[Effort, str] = {}
    path = folder.path / ENCODING
    with suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        if path.stat().st_size > LARGEST_ENCODING:
            return found
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            match statement:
                case ast.Assign([ast.Name(name)], ast.Constant(str(said))):
                    named = (
                        level for level in get_args(Effort) if name == WORDS_OF + level.upper()
                    )
                    found |= dict.fromkeys(named, said)
    return {WORDLESS: "", **found} if found else found
