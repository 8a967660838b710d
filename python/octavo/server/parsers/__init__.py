"""From the text that a model writes to reasoning, content and tool calls.

Everything here is a linear scanner over text that comes in pieces. Nothing that a model writes is
evaluated, and what does not parse is given out as the text it is.
"""
