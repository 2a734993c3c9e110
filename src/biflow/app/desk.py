"""What the tabs are made of: controls with the model's own limits, and what happens when one is pressed."""

import os
import secrets
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from biflow.app.html import error_html, hint_html
from biflow.app.studio import Studio
from biflow.data.decode import IMAGE_SUFFIXES
from biflow.errors import InputError
from biflow.extras import require
from biflow.sampling.options import SamplingOptions

GUIDANCE = "How strongly the class is followed; 0 for none"
MOST_SEED = 10**6  # of those that a button chooses
SUFFIXES = sorted(IMAGE_SUFFIXES)


def import_gradio() -> Any:
    """The package, with everything in it switched off that would ask other machines."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    return require("gradio")


class Desk:
    """The controls that tabs have in common."""

    def __init__(self, gr: Any, studio: Studio) -> None:
        self.gr, self.studio = gr, studio

    def left(self) -> Any:
        """The column of controls."""
        return self.gr.Column(scale=4, min_width=260)

    def right(self) -> Any:
        """The column of results."""
        return self.gr.Column(scale=7, min_width=260)

    def classes(self, label: str, info: str) -> Any:
        """Several classes by name."""
        return self.gr.Dropdown(
            self.studio.names, multiselect=True, allow_custom_value=True, visible=bool(self.studio.names),
            label=label, info=info,
        )  # fmt: skip

    def one_class(self, label: str, value: str | None = None, info: str | None = None) -> Any:
        """One class by name; one that is not known is answered with the nearest."""
        return self.gr.Dropdown(
            self.studio.names, value=value, allow_custom_value=True, visible=bool(self.studio.names),
            label=label, info=info,
        )  # fmt: skip

    def number(self, label: str, most: int, value: int) -> Any:
        """A count."""
        return self.gr.Slider(1, most, min(most, value), step=1, label=label, buttons=[])

    def files(self, name: str) -> Any:
        """Images of the person's own, several at once."""
        return self.gr.File(
            file_count="multiple",
            file_types=SUFFIXES,
            height=180,
            label=f"Images, up to {self.studio.most}",
            elem_id=name,
        )

    def way(self, *, method: bool = True) -> list[Any]:
        """Guidance, seed and method, in the order of `way_of`."""
        gr, studio = self.gr, self.studio
        most = studio.most_guidance
        guidance = gr.Slider(
            0, max(most, 1), 0, step=0.05, label="Guidance", info=GUIDANCE, visible=most > 0, buttons=[]
        )
        with gr.Accordion("More", open=False, elem_classes="more"):
            seed = gr.Number(0, label="Seed", info="Same seed, same images")
            methods = list(studio.methods.items())
            choice = gr.Dropdown(methods, value=methods[0][1], label="Method", visible=method)
        return [guidance, seed, choice] if method else [guidance, seed]

    def result(self, hint: str, name: str, *, render: bool = True) -> Any:
        """Where pictures appear."""
        return self.gr.HTML(hint_html(hint), elem_id=name, elem_classes="result", min_height=120, render=render)

    def hint(self, text: str) -> None:
        """A sentence instead of controls."""
        self.gr.HTML(hint_html(text))

    def button(self, title: str, *, main: bool = True, name: str | None = None) -> Any:
        """Something to press."""
        return self.gr.Button(title, variant="primary" if main else "secondary", size="md", min_width=90, elem_id=name)

    def on(self, trigger: Any, act: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """Call a function, one at a time over the whole page; what is wrong with its input is said in one sentence.

        The sentence appears in the first of the outputs that is text; the others stay as they are.
        """
        area = next(place for place, each in enumerate(outputs) if isinstance(each, self.gr.HTML))

        @wraps(act)
        def spoken(*given: Any) -> Any:
            try:
                return act(*given)
            except InputError as error:
                said = [self.gr.skip()] * len(outputs)
                said[area] = error_html(str(error))
                return said if len(said) > 1 else said[0]

        return trigger(
            spoken, list(inputs), list(outputs), api_visibility="private", concurrency_id="model", concurrency_limit=1
        )


def options_of(guidance: float, seed: float | None, method: str = "reverse") -> SamplingOptions:
    """How images come from noise, as the controls say."""
    return {"guidance": float(guidance), "seed": whole(seed, "seed"), "method": method}


def whole(value: float | None, what: str) -> int:
    """A number that a person typed.

    >>> whole(3.0, "seed")
    3
    """
    if value is None or value != int(value):
        got = "none" if value is None else f"{value:g}"
        raise InputError(f"Expected a whole number as {what}; got {got}. Type one, such as 4.")
    return int(value)


def new_seed() -> int:
    """Another seed than before, by chance."""
    return secrets.randbelow(MOST_SEED)
