"""The value of QEMU's option ``-cpu``: a model, and features switched on or off."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

_SWITCHES = {"on": True, "off": False}


@attrs.frozen(kw_only=True)
class CpuType:
    """A model and its features.

    Attributes:
        model: name of the model.
        features: features switched on or off.
        enforce: refuse to start where a feature of the model is missing.
        others: properties that are no switches, verbatim.
    """

    model: str
    features: Mapping[str, bool]
    enforce: bool = False
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [self.model, *(f"{name}={'on' if on else 'off'}" for name, on in self.features.items())]
        return ",".join([*words, *(["enforce"] if self.enforce else [])])

    @classmethod
    def parse(cls, text: str) -> CpuType:
        """Read ``MODEL,+x,-y,x=on,y=off,x,enforce``; QEMU takes a name alone for one that is switched on."""
        model, *words = (word.strip() for word in text.split(","))
        features: dict[str, bool] = {}
        others: list[str] = []
        for word in filter(None, words):
            name, equals, value = word.partition("=")
            if word[0] in "+-" and not equals:
                features[word[1:]] = word[0] == "+"
            elif not equals or value in _SWITCHES:
                features[name] = _SWITCHES[value] if equals else True
            else:
                others.append(word)
        enforce = features.pop("enforce", False)
        if features.get("check"):
            # QEMU checks anyhow.
            del features["check"]
        return cls(model=model, features=features, enforce=enforce, others=tuple(others))
