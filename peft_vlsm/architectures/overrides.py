"""Stands in for one method of one module instance, and leaves no trace when taken away.

An instance attribute would be lost on the way into a copy if it were a closure: it would still call the original
module. These are objects that hold their module, so deepcopy and pickle bind the copy's override to the copy.
"""

from collections.abc import Callable
from typing import Any

from torch import nn


class MethodOverride:
    """
    Replaces `module.name` by itself; subclasses define what a call does.

    Args:
        module (`nn.Module`): the instance whose method is replaced.
        name (`str`): the method's name.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self.previous: Callable | None = module.__dict__.get(name)
        module.__dict__[name] = self

    @property
    def __wrapped__(self) -> Callable:
        """The replaced method, bound; `inspect.signature` follows it."""
        if self.previous is not None:
            return self.previous
        # Not `types.MethodType`, which torch.compile does not know and breaks its graph at.
        return getattr(type(self.module), self.name).__get__(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must say what a call of {self.name} does.")

    def remove(self) -> None:
        """Gives the module its own method back, or what else stands in for it above or below this override."""
        holder = self.module.__dict__.get(self.name)
        if holder is self:
            del self.module.__dict__[self.name]
            if self.previous is not None:
                self.module.__dict__[self.name] = self.previous
            return
        while isinstance(holder, MethodOverride):
            if holder.previous is self:
                holder.previous = self.previous
                return
            holder = holder.previous
