from .text import look_at as look_at, text_problems as text_problems
