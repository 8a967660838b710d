"""Chat templates of the shapes that models in the field have."""

from __future__ import annotations

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # A default system prompt, and no word about tools.
    "default system": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + "
        "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Strips messages, alternates roles strictly, writes the special tokens itself.
    "instruct": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # Headers, blocks on lines of their own, namespaces, tools with an indent.
    "headers": """\
{{- bos_token }}
{%- set ns = namespace(system="") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
<|header|>system<|end|>
{% if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{% endif %}
{{- ns.system + '<|eot|>' }}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- '<|header|>ipython<|end|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot|>' }}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|header|>assistant<|end|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- '}<|eot|>' }}
    {%- else %}
        {{- '<|header|>' + message['role'] + '<|end|>\\n\\n' + message['content'] + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
    # Macros, the generation tag, loop controls, filters with expressions.
    "extras": """\
{% macro show(role, text) %}<{{ role | upper }}>{{ text }}</{{ role | upper }}>{% endmacro %}
{% for message in messages %}
{% if message.role == 'tool' %}{% continue %}{% endif %}
{% if message.role == 'assistant' %}
{% generation %}{{ show('assistant', message.content) }}{% endgeneration %}

{% else %}
{{ show(message.role, message.content | replace('&', 'and')) }}
{% endif %}
{% endfor %}
{{ tools | default([], true) | map(attribute='function.name') | join(', ') }}
{% if add_generation_prompt %}<ASSISTANT>{% endif %}
""",
}
