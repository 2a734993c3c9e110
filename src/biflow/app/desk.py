"""What the tabs are made of: controls with the model's own limits, and what happens when one is pressed."""

import os
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import Any

from biflow.app.studio import Studio
from biflow.data.decode import IMAGE_SUFFIXES
from biflow.errors import InputError
from biflow.pipeline import SamplingOptions

SUFFIXES = sorted(IMAGE_SUFFIXES)


def import_gradio() -> Any:
    """The package, with everything in it switched off that would ask other machines."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError:
        raise InputError(
            "Expected the package gradio for the app; it is not installed. Install it: pip install 'biflow[demo]'."
        ) from None
    return gradio


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
        return self.gr.Slider(1, most, min(most, value), step=1, precision=0, label=label, buttons=[])

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
            0, max(most, 1), 0, step=0.1, label="Guidance", info="0 for none", visible=most > 0, buttons=[]
        )
        with gr.Accordion("More", open=False, elem_classes="more"):
            seed = gr.Number(0, precision=0, label="Seed", info="Same seed, same images")
            methods = list(studio.methods.items())
            choice = gr.Dropdown(methods, value=methods[0][1], label="Method", visible=method)
        return [guidance, seed, choice] if method else [guidance, seed]

    def result(self, hint: str, name: str, *, render: bool = True) -> Any:
        """Where pictures appear."""
        text = f'<p class="hint">{escape(hint)}</p>'
        return self.gr.HTML(text, elem_id=name, elem_classes="result", min_height=120, render=render)

    def hint(self, text: str) -> None:
        """A sentence instead of controls."""
        self.gr.HTML(f'<p class="hint">{escape(text)}</p>')

    def button(self, title: str, *, main: bool = True, name: str | None = None) -> Any:
        """Something to press."""
        return self.gr.Button(title, variant="primary" if main else "secondary", size="md", min_width=90, elem_id=name)

    def on(self, trigger: Any, act: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """Call a function, one at a time over the whole page; what is wrong with its input is said in one sentence."""

        @wraps(act)
        def spoken(*given: Any) -> Any:
            try:
                return act(*given)
            except InputError as error:
                raise self.gr.Error(escape(str(error)), duration=20, print_exception=False) from None

        return trigger(
            spoken, list(inputs), list(outputs), api_visibility="private", concurrency_id="model", concurrency_limit=1
        )


def options_of(guidance: float, seed: int, method: str = "reverse") -> SamplingOptions:
    """How images come from noise, as the controls say."""
    return {"guidance": float(guidance), "seed": seed, "method": method}
