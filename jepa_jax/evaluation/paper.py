"""The paper's figures (VL-JEPA, arXiv 2512.10942v2), to stand beside ours."""

# {task: {metric: (BASE, SFT)}} in percent, as printed; None where the paper has none.
FIGURES: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "ssv2": {"top_1": (19.3, 73.2)},
    "epic_kitchens_100": {"action_top_1": (21.8, 44.6)},
    "egoexo4d": {"top_1": (33.2, 68.1)},
    "kinetics_400": {"top_1": (64.8, 84.8)},
    "coin_sr": {"top_1": (47.4, 66.4)},
    "coin_tr": {"top_1": (79.4, 90.3)},
    "crosstask_sr": {"top_1": (64.5, 79.8)},
    "crosstask_tr": {"top_1": (89.6, 96.2)},
    "msr_vtt": {"text_to_video_recall_at_1": (40.0, 46.2)},
    "activitynet": {"text_to_video_recall_at_1": (64.9, 62.4)},
    "didemo": {"text_to_video_recall_at_1": (50.0, 52.3)},
    "msvd": {"text_to_video_recall_at_1": (49.0, 52.3)},
    "youcook2": {"text_to_video_recall_at_1": (40.4, 37.8)},
    "pvd_bench": {"text_to_video_recall_at_1": (83.1, 82.6)},
    "dream_1k": {"text_to_video_recall_at_1": (93.3, 89.3)},
    "vdc_1k": {"text_to_video_recall_at_1": (88.8, 87.7)},
    "gqa": {"accuracy": (None, 61.5)},
    "tallyqa": {"accuracy": (None, 69.9)},
    "pope": {"accuracy": (None, 85.7)},
    "popev2": {"accuracy": (None, 86.3)},
    "world_prediction_wm": {"accuracy": (63.9, 65.7)},
    "sugarcrepe_pp": {"accuracy": (63.9, 58.4)},
    "visla": {"accuracy": (42.9, 39.5)},
    # One figure, without a word on which model's: the paper's best, fine-tuned.
    "epic_kitchens_100_anticipation": {"action_recall_at_5": (None, 34.2)},
}


def beside_paper(task: str, metrics: dict[str, dict]) -> dict[str, dict]:
    """Metrics with `paper_base` and `paper_sft`, as shares of one, or None."""
    figures = FIGURES.get(task, {})

    def share(percent: float | None) -> float | None:
        return None if percent is None else percent / 100

    found = {name: map(share, figures.get(name, (None, None))) for name in metrics}
    return {
        name: {**metric, **dict(zip(("paper_base", "paper_sft"), found[name], strict=True))}
        for name, metric in metrics.items()
    }
