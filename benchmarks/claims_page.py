"""The page of `claims.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

from machine import described
from seeds import summary
from studies import ANNEALED, CONSTANT, METHODS

PLAIN = "bounded"  # the flow without alignment
HEAD = ("FD", "FD, EfficientNet", "accuracy", "w", "minutes", "paper's FID")
INTRODUCTION = """
- **FD**: Fréchet distance to {references:,} training images in the features of a classifier that is part of no loss;
  lower is better. That of {images:,} test images is {judge:.2f}; the classifier assigns {accuracy:.1%}
  of them to their class.
- **FD, EfficientNet**: the same in the features of EfficientNet-Lite0 ({efficientnet:.0f} for the test images). A
  dagger marks rows with these features in their loss, where the figure is no independent measure.
- **accuracy**: share of samples that the classifier assigns to their label.
- **w**: guidance strength. Rows without one are not guided; the others use the strength with the lowest FD on separate
  noise, of {strengths}.
- **minutes**: of training the reverse model on one thread, finishing included.
- **paper's FID**: BiFlow-B/2 on ImageNet 256x256 (arXiv 2512.10953); compare only the order of the rows.
"""
VERDICTS = """
A claim **holds** (or **does not hold**) if zero lies outside the 95% interval of the difference: by Student's t over
seeds, or for one seed by resampling the samples a thousand times, which leaves out the spread between trainings.
Intervals are not corrected for multiple claims.
"""
CURVES = """
The linear probe is that of the best layer, chosen on the same test images. *Share of the steps* is where a flow,
measured ten times in its training, first has the final figure of the flow without alignment.
"""


def render(found: Mapping[str, Any]) -> str:
    """The page: the tables, then the claims."""
    study, seeds = found["study"], found["seeds"]
    spread = f"{seeds} seeds, mean and standard deviation" if seeds > 1 else "one seed"
    strengths = f"{', '.join(CONSTANT)}; for the exact inverse also {' '.join(ANNEALED)}"
    lines = [
        f"# Claims on {study['title']}",
        "",
        f"Written by `{found['command']}`, on {described(found['machine'])}. Every flow is trained for",
        f"{study['flow_steps']:,} steps of the recipe [{study['recipe']}](../recipes.md), every reverse model for",
        f"{study['reverse_steps']:,}; rows with finishing train fewer steps, for about the same time.",
        f"{found['samples']:,} samples per row, {spread}.",
        INTRODUCTION.format(**found["real"], references=found["references"], strengths=strengths).rstrip(),
    ]
    for name, rows in found["rows"].items():
        lines += ["", f"## {name}", "", f"| {' | '.join([name, *HEAD])} |", f"|{' --- |' * (1 + len(HEAD))}"]
        for row, scores in rows.items():
            facts = found["facts"][name][row]
            dagger = " †" if facts["trained_on"] else ""
            cells = [
                summary([each["frechet_distance"] for each in scores], 1),
                summary([each["efficientnet"] for each in scores], 0) + dagger,
                summary([100 * each["class_accuracy"] for each in scores], 1) + "%",
                ", ".join(each["guidance"] for each in scores) if facts["guided"] else "",
                summary([each["minutes"] for each in scores], 0) if facts["one_pass"] else "",
                "" if facts["paper"] is None else f"{facts['paper']:.2f}",
            ]
            lines.append(f"| {' | '.join([row, *cells])} |")
    lines += ["", "## Alignment with EfficientNet", "", *flow_table(found["flows"]), CURVES.rstrip()]
    return "\n".join([*lines, "", "## Claims", VERDICTS, *found["claims"]]) + "\n"


def flow_table(flows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Every flow: classification by likelihood, exact samples, best probe, minutes, and steps to the plain figures."""
    head = ["alignment", "accuracy: gradient", "bayes", "FD, exact inverse", "linear probe", "minutes"]
    head += ["share of the steps to the plain accuracy", "to the plain FD"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, seeds in flows.items():
        cells = [summary([100 * each[method] for each in seeds], 1) + "%" for method in METHODS]
        cells.append(summary([each["frechet_distance"] for each in seeds], 1))
        best = [max(each["probes"].items(), key=lambda item: item[1]) for each in seeds]
        cells.append(", ".join(f"{100 * accuracy:.1f}% at [{layer}]" for layer, accuracy in best))
        cells.append(summary([each["minutes"] for each in seeds], 0))
        for key in ("accuracy", "frechet_distance"):
            shares = [each["reach"][key] for each in seeds]
            cells.append(", ".join("never" if share is None else f"{share:.1f}" for share in shares))
        lines.append(f"| {' | '.join(['none' if name == PLAIN else name, *cells])} |")
    return lines
