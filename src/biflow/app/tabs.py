"""The tabs of the page, and the page."""

from collections.abc import Callable
from html import escape
from typing import Any

from biflow.app.desk import Desk, import_gradio, new_seed, options_of, whole
from biflow.app.edit import edit_tab
from biflow.app.html import as_html
from biflow.app.studio import MOST_COMPARED, NO_CLASS, Studio

CLASSIFY = [  # best first
    ("every class tried: best, a pass each", "bayes"),
    ("ten gradients: ten times the cost", "steps"),
    ("one gradient: quick, least sure", "gradient"),
]


def sample_tab(desk: Desk, studio: Studio) -> None:
    """Images of classes."""
    with desk.left():
        classes = desk.classes("Classes", "None chosen: all in turn")
        count = desk.number("Images", studio.most, 16)
        way = desk.way()
        with desk.gr.Row(elem_classes="pair"):
            button = desk.button("Sample", name="sample-go")
            again = desk.button("New seed", main=False, name="sample-again")
    with desk.right():
        result = desk.result("Images appear here.", "sample-result")

    def act(names: list[str] | None, count: int, *chosen: Any) -> str:
        return as_html(studio.sample(names or [], whole(count, "number of images"), **options_of(*chosen)))

    def anew(names: list[str] | None, count: int, guidance: float, _: Any, *method: Any) -> tuple[str, int]:
        seed = new_seed()
        return act(names, count, guidance, seed, *method), seed

    desk.on(button.click, act, [classes, count, *way], [result])
    desk.on(again.click, anew, [classes, count, *way], [result, way[1]])


def classify_tab(desk: Desk, studio: Studio) -> None:
    """The classes of uploads."""
    if not studio.names:
        desk.hint("This model has no classes, so it cannot classify.")
        return
    with desk.left():
        files = desk.files("classify-files")
        method = desk.gr.Dropdown(CLASSIFY, value=studio.classify_method, label="Method")
        button = desk.button("Classify", name="classify-go")
    with desk.right():
        result = desk.result("The likeliest classes of each image appear here.", "classify-result")
    desk.on(button.click, lambda files, how: as_html(studio.classify(files, how)), [files, method], [result])


def rank_tab(desk: Desk, studio: Studio) -> None:
    """Uploads by likelihood."""
    if not studio.scores:
        desk.hint("This model is one of latents: it cannot tell how likely images are, so it cannot rank them.")
        return
    with desk.left():
        files = desk.files("rank-files")
        name = desk.one_class("As images of", NO_CLASS)
        button = desk.button("Rank", name="rank-go")
    with desk.right():
        hint = "Images appear here, the least likely first. To rank a whole folder, choose all files in it."
        result = desk.result(hint, "rank-result")
    desk.on(button.click, lambda files, name: as_html(studio.rank(files, name)), [files, name], [result])


def compare_tab(desk: Desk, studio: Studio) -> None:
    """Every sampler on the same noise."""
    with desk.left():
        classes = desk.classes("Classes", "None chosen: all in turn")
        count = desk.number("Images", min(MOST_COMPARED, studio.most), 8)
        way = desk.way(method=False)
        button = desk.button("Compare", name="compare-go")
    with desk.right():
        result = desk.result("Images by every sampler appear here, with their times.", "compare-result")

    def act(names: list[str] | None, count: int, *chosen: Any) -> str:
        return as_html(studio.compare(names or [], whole(count, "number of images"), **options_of(*chosen)))

    desk.on(button.click, act, [classes, count, *way], [result])


TABS: dict[str, Callable[[Desk, Studio], None]] = {
    "Sample": sample_tab,
    "Edit": edit_tab,
    "Classify": classify_tab,
    "Rank": rank_tab,
    "Compare": compare_tab,
}


def make_page(studio: Studio) -> Any:
    """All tabs."""
    gr = import_gradio()
    with gr.Blocks(title="biflow", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
        gr.HTML(f"<header><h1>biflow</h1><p>{escape(studio.facts())}</p></header>", elem_id="head")
        with gr.Tabs():
            for title, fill in TABS.items():
                with gr.Tab(title, elem_id=title.lower()), gr.Row(elem_classes="desk"):
                    fill(Desk(gr, studio), studio)
    return page
