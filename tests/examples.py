"""The examples of methods on the page Add a method, as they stand there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/how-to/add-a-method.md"


def example_of_the_docs(name: str) -> type:
    """The trainer that an example on the page defines."""
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (example,) = (block for block in examples if f"class {name}(" in block)
    namespace = {"__name__": __name__}
    exec(example, namespace)
    return namespace[name]
