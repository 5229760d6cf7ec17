"""Write what the judges of the digits recognise and refuse: python -m tests.studies.judge_cards. About a minute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from unlearnbench import registry
from unlearnbench.judges import Judge
from unlearnbench.judges.card import JudgeCard, card_rows, judge_cards, non_image_rows
from unlearnbench.judges.corruptions import SEVERITIES
from unlearnbench.tasks.digits_class import SPLITS

PAGE = Path(__file__).parents[2] / "results" / "judges.md"
TASKS = ("digits-class", "digits-text")
PROTOCOLS = {"default": "the reported judge", "selection": "the judge of tuning"}
DOMAINS = {"digits-class": ("digits",), "digits-text": ("digits", "colours")}
USES = {
    "train": "the original, methods and `retrain`",
    "judge": "training of the reported judge",
    "calibration": "threshold of the reported judge",
    "selection": "the judge of the selection protocol, with its threshold",
    "reference": "what FID and related metrics compare with; half of the images of the cards below",
    "floor": "real images whose score is the floor; the other half",
}
HEAD = """# What the judges see

A judge must see what people see. A method that only dims its images, or blurs them a little, has forgotten nothing: a
judge that refuses such images would say that it has. And noise shows nothing, whatever a classifier calls it. So each
judge has a card: real images that it never saw are corrupted in twelve ways and five severities, and images that show
nothing are made in nine ways.

- **Where at least 90 % of equally corrupted images are named right, at most 5 % may be refused.**
- **Of each kind of noise (uniform, Gaussian, black and white), at least 98 % must be refused.** Other images without a
  concept are shown, not required.

`unlearnbench judges --task digits-text` prints the cards of a task, with `--protocol selection` those of the judge that
tuning uses, and exits with 1 if one misses a requirement. It works for every task with labelled real images, such as
`cifar10-class` and your own. `python -m tests.studies.judge_cards` writes this page.

## How the digits are split

The 1,797 UCI digits are split class by class; no picture is in two parts, which a test checks by their pixels. In
`digits-text` each of them is there in six colours.

"""
MADE = """
## How the judges are made

`digits-cnn` and `coloured-digits-cnn`, version 2, are small convolutional networks, trained with outlier exposure: an
extra class is "nothing of these". Each sees an image twice, as it is and stretched to the full range, in which neither
contrast nor brightness is left. 70 % of training images are corrupted, as in the card, and a quarter once more. The
judge abstains where the log-odds of the extra class against the best other are above a threshold: the lowest that
refuses at most 2 % of the calibration images in every cell of the card in which 90 % are named right, and 0.5 % of
those that are not corrupted. `unlearnbench pretrain` makes them again.

`digits-neighbours` and `coloured-digits-neighbours`, version 2, compare stretched images with the 180 digits of their
part and 14 changed copies of each; the nearest three vote. They abstain on what is further away than corrupted digits
are from each other, by the same rule. They are less exact than the networks, and need only rank settings of a method.

The ResNet-34 of `cifar10-class` takes its threshold from corrupted calibration images too, from version 3 on. Training
is the papers', without corruptions, unless `train_resnet` is asked for them (`corrupted_share`). The papers' judge
never abstains: only closed answers (`ua_closed`) compare with theirs. This project has trained none, so there is no
card of it here: `unlearnbench judges --task cifar10-class --protocol default --pretrained FOLDER` makes it.

The judge of `compact`, `cifar10-resnet8`, is a small ResNet, trained from scratch with outlier exposure by the same
rule; its card is on [its own page](cifar10-compact.md), since it needs the photographs.

Networks, copies and shares were chosen on images of `train`, and for the networks of `selection`. Each judge's held-out
images were looked at two or three times, which changed one choice: at 3 % of the calibration images in place of 2 %,
`digits-neighbours` refused 5.4 % at severity 5 of "noise".

## Cards

Each cell is "named right / refused", in percent, of all images of the row; ✗ marks a missed requirement.
"""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(heads) + " |"
    yield "| " + " | ".join("---" for _ in heads) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def title(judge: Judge) -> str:
    """Which judge it is; the page is stale if it does not name each one so."""
    return f"{judge.name} {judge.version} (hash {judge.hash[:12]})"


def lines(card: JudgeCard, task: str, about: str, domain: str, judge: Judge) -> Iterator[str]:
    """One card, with its heading."""
    yield f"\n### {title(judge)}: {domain}\n"
    missed = f"{len(card.failed)} requirements are missed" if card.failed else "every requirement is met"
    yield f"{about} of `{task}`, on {card.images} held-out images: {missed}.\n".capitalize()
    yield from table(["severity", *map(str, SEVERITIES)], card_rows(card))
    yield ""
    yield from table(["shows nothing", "refused (%)"], non_image_rows(card))


def parts() -> str:
    """How the digits are split, as a table."""
    total = sum(SPLITS.values())
    rows = [(f"`{name}`", str(count), str(10 * count), USES[name]) for name, count in SPLITS.items()]
    rows.append(("unused", "up to 9", str(1797 - 10 * total), "the rarest digit has 174 images"))
    return "\n".join(table(["part", "of each digit", "images", "used for"], rows))


def page() -> str:
    """The whole page."""
    cards: list[str] = []
    for task in TASKS:
        cls = registry.load_task(task)
        for protocol, about in PROTOCOLS.items():
            made = cls(cls.default_forget, protocol=protocol)
            judge = made.judge()
            found = judge_cards(judge, *made.labelled_images())
            for card, domain in zip(found, DOMAINS[task], strict=True):
                cards += lines(card, task, about, domain, judge)
    return HEAD + parts() + "\n" + MADE + "\n".join(cards) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
