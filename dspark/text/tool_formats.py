"""The form in which a model calls tools, told by its chat template."""

from dspark.errors import InputError
from dspark.text.tool_calls_dsml import DSML
from dspark.text.tool_calls_dsml import MARK as DSML_MARK
from dspark.text.tool_calls_gemma import GEMMA
from dspark.text.tool_calls_harmony import HARMONY
from dspark.text.tool_calls_hermes import HERMES
from dspark.text.tool_calls_lfm import LFM
from dspark.text.tool_format import ToolFormat

# what a template with tools contains, the most telling first: a form, or a family whose form is not
# read
SIGNS: tuple[tuple[str, ToolFormat | str], ...] = (
    ("<arg_key>", "GLM"),
    (GEMMA.opening, GEMMA),
    (LFM.opening, LFM),
    ("<|tool_list_start|>", LFM),
    ("List of tools: [", LFM),
    (DSML_MARK, DSML),
    (HERMES.opening, HERMES),
    ("[TOOL_CALLS]", "Mistral"),
    ("[AVAILABLE_TOOLS]", "Mistral"),
    ("<｜tool▁calls▁begin｜>", "DeepSeek-V3"),
    ("to=functions", HARMONY),
    ("<|tool_calls_section_begin|>", "Kimi K2"),
    ("<|START_ACTION|>", "Command A"),
    ("<minimax:tool_call>", "MiniMax"),
    ("<|python_tag|>", "Llama 3"),
    ("ipython", "Llama 3"),
)
READ = sorted({each.title for _, each in SIGNS if isinstance(each, ToolFormat)})


def format_of(template: str) -> ToolFormat:
    """Raises InputError if the template offers no tools, or their calls cannot be read."""
    found = next((each for sign, each in SIGNS if sign in template), None)
    if isinstance(found, ToolFormat) and "tools" in template:
        return found
    what = "this model's chat template has no tools that dspark can read"
    if isinstance(found, str):
        what = f"this model calls tools in the form of {found}, which dspark cannot read"
    raise InputError(what, f"Leave tools out, or use a model of these: {', '.join(READ)}.")
