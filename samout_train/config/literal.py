r"""Text that OmegaConf takes as it stands: `\${x}` is what it reads as `${x}`, each time that it resolves."""

import re
from collections.abc import Mapping
from typing import Any

INTERPOLATION = re.compile(r"(\\*)\$\{")


def escaped(node: Any) -> Any:
    """Return plain settings so that resolving them gives them back as they are.

    Args:
        node: Dictionaries, lists and values.
    """
    if isinstance(node, Mapping):
        return {name: escaped(value) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(escaped, node))
    # A backslash means something only in front of what it can escape, so only there it is doubled.
    return INTERPOLATION.sub(lambda found: 2 * found[1] + r"\${", node) if isinstance(node, str) else node
