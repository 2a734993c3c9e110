"""Shared Gradio components of the tabs, and how their events are connected."""

import os
import secrets
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from biflow.app.backend import Backend, TabResult
from biflow.app.html import error_html, hint_html, result_html
from biflow.data.formats import IMAGE_SUFFIXES
from biflow.errors import InputError
from biflow.extras import require
from biflow.sampling.options import SamplingOptions

RANDOM_SEEDS = 10**6  # random seeds are below this
SUFFIXES = sorted(IMAGE_SUFFIXES)


def import_gradio() -> Any:
    """Import gradio with analytics and telemetry disabled."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    return require("gradio")


class Controls:
    """Makes the components that several tabs use."""

    def __init__(self, gr: Any, backend: Backend) -> None:
        self.gr, self.backend = gr, backend

    def input_column(self) -> Any:
        """The column of inputs, at the left."""
        return self.gr.Column(scale=4, min_width=260)

    def output_column(self) -> Any:
        """The column of results, at the right."""
        return self.gr.Column(scale=7, min_width=260)

    def output_in_column(self, hint: str, elem_id: str) -> Any:
        """The column of results with one output."""
        with self.output_column():
            return self.output(hint, elem_id)

    def class_dropdown(self, label: str, info: str | None = None, **options: Any) -> Any:
        """Select classes; free text is allowed, so that a misspelt name gets a suggestion."""
        names = self.backend.class_names
        return self.gr.Dropdown(names, allow_custom_value=True, visible=bool(names), label=label, info=info, **options)

    def count_slider(self, label: str, maximum: int, value: int) -> Any:
        """A slider from 1."""
        return self.gr.Slider(1, maximum, min(maximum, value), step=1, label=label, buttons=[])

    def file_upload(self, elem_id: str) -> Any:
        """Upload several images at once."""
        label = f"Images (at most {self.backend.max_images})"
        return self.gr.File(file_count="multiple", file_types=SUFFIXES, height=180, label=label, elem_id=elem_id)

    def sampling_inputs(self, *, method: bool = True) -> list[Any]:
        """Guidance, seed and, optionally, method: the arguments of `sampling_options`, in order."""
        gr, maximum = self.gr, self.backend.max_guidance
        guidance = gr.Slider(
            0, max(maximum, 1), 0, step=0.05, label="Guidance", info="0 turns guidance off.",
            visible=maximum > 0, buttons=[],
        )  # fmt: skip
        with gr.Accordion("Advanced", open=False, elem_classes="advanced"):
            seed = gr.Number(0, label="Seed", info="The same seed gives the same images.")
            methods = list(self.backend.methods.items())
            choice = gr.Dropdown(methods, value=methods[0][1], label="Sampling method", visible=method)
        return [guidance, seed, choice] if method else [guidance, seed]

    def output(self, hint: str, elem_id: str, *, render: bool = True) -> Any:
        """Where results and errors appear."""
        return self.gr.HTML(hint_html(hint), elem_id=elem_id, elem_classes="result", min_height=120, render=render)

    def message(self, text: str) -> None:
        """Text shown instead of a tab's inputs."""
        self.gr.HTML(hint_html(text))

    def button(self, text: str, elem_id: str, *, primary: bool = True) -> Any:
        """A button."""
        variant = "primary" if primary else "secondary"
        return self.gr.Button(text, variant=variant, size="md", min_width=90, elem_id=elem_id)

    def connect(self, event: Any, fn: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """Call `fn` on an event and show its `TabResult` or values; over the whole page, one call runs at a time.

        The message of an `InputError` appears in the first HTML component of the outputs; the others keep their values.
        """
        error_index = next(i for i, output in enumerate(outputs) if isinstance(output, self.gr.HTML))

        @wraps(fn)
        def with_errors(*args: Any) -> Any:
            try:
                found = fn(*args)
            except InputError as error:
                values = [self.gr.skip()] * len(outputs)
                values[error_index] = error_html(str(error))
                return values if len(values) > 1 else values[0]
            return result_html(found) if isinstance(found, TabResult) else found

        one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1}
        return event(with_errors, list(inputs), list(outputs), api_visibility="private", **one_at_a_time)


def sampling_options(guidance: float, seed: float | None, method: str = "reverse") -> SamplingOptions:
    """Values of `Controls.sampling_inputs` -> options of `Pipeline.sample`."""
    return {"guidance": float(guidance), "seed": to_int(seed, "seed"), "method": method}


def to_int(value: float | None, name: str) -> int:
    """The value of a `gr.Number` or `gr.Slider` as an integer.

    >>> to_int(3.0, "seed")
    3
    """
    if value is None or value != int(value):
        got = "none" if value is None else f"{value:g}"
        raise InputError(f"Expected a whole number as {name}; got {got}. Enter one, such as 4.")
    return int(value)


def random_seed() -> int:
    """A random seed."""
    return secrets.randbelow(RANDOM_SEEDS)
