"""The tabs, and the page that holds them."""

from collections.abc import Callable
from html import escape
from typing import Any

from biflow.app.backend import MAX_COMPARED, NO_CLASS, Backend, TabResult
from biflow.app.controls import Controls, import_gradio, random_seed, sampling_options, to_int
from biflow.app.edit import edit_tab
from biflow.app.html import result_html

CLASSIFY_METHODS = [  # most accurate first
    ("Bayes' rule: most accurate", "bayes"),
    ("10 gradients: 10x the cost of one", "steps"),
    ("1 gradient: fastest, least accurate", "gradient"),
]
ALL_CLASSES = "Leave empty to cycle through all classes."


def sample_tab(controls: Controls, backend: Backend) -> None:
    """Sample images of given classes."""
    with controls.input_column():
        classes = controls.class_dropdown("Classes", ALL_CLASSES, multiselect=True)
        count = controls.count_slider("Number of images", backend.max_images, 16)
        sampling = controls.sampling_inputs()
        with controls.gr.Row(elem_classes="pair"):
            button = controls.button("Sample", "sample-go")
            reseed = controls.button("New seed", "sample-again", primary=False)
    output = controls.output_in_column("Samples appear here.", "sample-result")

    def sample(names: list[str] | None, count: int, *options: Any) -> TabResult:
        return backend.sample(names or [], to_int(count, "number of images"), **sampling_options(*options))

    def sample_new_seed(names: list[str] | None, count: int, guidance: float, _: Any, *method: Any) -> tuple[str, int]:
        seed = random_seed()
        return result_html(sample(names, count, guidance, seed, *method)), seed

    controls.connect(button.click, sample, [classes, count, *sampling], [output])
    controls.connect(reseed.click, sample_new_seed, [classes, count, *sampling], [output, sampling[1]])


def classify_tab(controls: Controls, backend: Backend) -> None:
    """Classify uploaded images."""
    if not backend.class_names:
        controls.message("This model is unconditional, so it cannot classify images.")
        return
    with controls.input_column():
        files = controls.file_upload("classify-files")
        info = "Bayes' rule takes one pass per class."
        label, value = "Classification method", backend.classify_method
        method = controls.gr.Dropdown(CLASSIFY_METHODS, value=value, label=label, info=info)
        button = controls.button("Classify", "classify-go")
    output = controls.output_in_column("The most likely classes of each image appear here.", "classify-result")
    controls.connect(button.click, backend.classify, [files, method], [output])


def rank_tab(controls: Controls, backend: Backend) -> None:
    """Rank uploaded images by likelihood."""
    if not backend.has_likelihood:
        controls.message("This model works on latents and gives no image likelihood, so it cannot rank images.")
        return
    with controls.input_column():
        files = controls.file_upload("rank-files")
        name = controls.class_dropdown("Likelihood given class", value=NO_CLASS)
        button = controls.button("Rank", "rank-go")
    hint = "Images appear here, least likely first. To rank a folder, select all files in it."
    output = controls.output_in_column(hint, "rank-result")
    controls.connect(button.click, backend.rank, [files, name], [output])


def compare_tab(controls: Controls, backend: Backend) -> None:
    """Compare all sampling methods on the same noise."""
    with controls.input_column():
        classes = controls.class_dropdown("Classes", ALL_CLASSES, multiselect=True)
        count = controls.count_slider("Images per method", min(MAX_COMPARED, backend.max_images), 8)
        sampling = controls.sampling_inputs(method=False)
        button = controls.button("Compare", "compare-go")
    output = controls.output_in_column("Samples and timings of every sampling method appear here.", "compare-result")

    def compare(names: list[str] | None, count: int, *options: Any) -> TabResult:
        return backend.compare(names or [], to_int(count, "number of images"), **sampling_options(*options))

    controls.connect(button.click, compare, [classes, count, *sampling], [output])


TABS: dict[str, Callable[[Controls, Backend], None]] = {
    "Sample": sample_tab,
    "Edit": edit_tab,
    "Classify": classify_tab,
    "Rank": rank_tab,
    "Compare": compare_tab,
}


def make_page(backend: Backend) -> Any:
    """The page as `gr.Blocks`."""
    gr = import_gradio()
    with gr.Blocks(title="biflow", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
        gr.HTML(f"<header><h1>biflow</h1><p>{escape(backend.model_summary())}</p></header>", elem_id="head")
        with gr.Tabs():
            for title, fill in TABS.items():
                with gr.Tab(title, elem_id=title.lower()), gr.Row(elem_classes="columns"):
                    fill(Controls(gr, backend), backend)
    return page
