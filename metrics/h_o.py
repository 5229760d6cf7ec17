"""H_o: the harmonic mean of efficacy, specificity and generality (MACE's table of objects)."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.table_metrics import mean_probability
from unlearnbench.testing import toy


class HO(Metric):
    """3 / (1 / (1 - ACC_e) + 1 / ACC_s + 1 / (1 - ACC_g)); 0 where one of the three is 0 (Lu et al., CVPR 2024)."""

    title, axis, better, unit, scale, stored = "H_o", "efficacy", "higher", "%", 100.0, "probability"
    limits, rank, everywhere = (0.0, 1.0), 32, False
    judge_needs = "gives_accuracy_by_probability"

    def applies(self, plan):
        """Whether a plan asks for the object, for others and for synonyms."""
        return {"forget", "retain", "synonyms"} <= {item.group for item in plan}

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """A number in [0, 1] without an interval; unknown where one of the three is."""
        erased, others, synonyms = (mean_probability(outcome, group) for group in ("forget", "retain", "synonyms"))
        n = sum(each.n for each in (erased, others, synonyms))
        missing = sum(each.missing for each in (erased, others, synonyms))
        if erased.value is None or others.value is None or synonyms.value is None:
            return Score(None, n, missing, reason="ACC_e, ACC_s or ACC_g is unknown")
        shares = (1 - erased.value, others.value, 1 - synonyms.value)
        return Score(3 / sum(1 / share for share in shares) if all(shares) else 0.0, n, missing)

    def known(self) -> Iterator[Known]:
        """Probabilities in proportion to the weights of classes."""

        def case(erased: int, others: int, synonyms: int) -> Outcome:
            """Of ten images of a group, how many show what they ask for."""

            def images(right: int, digit: int) -> list[tuple[int, toy.Image]]:
                return [(digit, toy.shows(digit if i < right else 9)) for i in range(10)]

            return toy.outcome(
                [image for _, image in images(erased, 3)], images(others, 5), groups={"synonyms": images(synonyms, 3)}
            )

        yield Known("0.2, 0.9, 0.4", case(2, 9, 4), 3 / (1 / 0.8 + 1 / 0.9 + 1 / 0.6))  # 0.745
        yield Known("all erased, all kept", case(0, 10, 0), 1.0, quality="good")
        yield Known("nothing erased", case(10, 10, 10), 0.0, quality="bad")
        yield Known("nothing kept", case(0, 0, 0), 0.0, quality="bad")
